"""The parts of the package form layers: read one from the bottom up, and nothing points back."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

from idlm.paths import repo_dir

PACKAGE = repo_dir() / "idlm"


def imports(tree: ast.AST) -> Iterator[str]:
    """Dotted names that a module imports, also inside functions; not those for types alone."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            continue
        if isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
            yield from (f"{node.module}.{alias.name}" for alias in node.names)
        elif isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        yield from imports(node)


def graph(package: Path) -> dict[str, set[str]]:
    """Which parts (folders and single modules) of a package each part imports."""
    parts = {path.stem for path in package.iterdir() if path.suffix == ".py" or path.is_dir()}
    found: dict[str, set[str]] = {part: set() for part in parts - {"__init__"}}
    for path in package.rglob("*.py"):
        part = path.relative_to(package).parts[0].removesuffix(".py")
        if part == "__init__":  # the front door, which everything stands behind
            continue
        for name in imports(ast.parse(path.read_text(encoding="utf-8"))):
            first, _, rest = name.partition(".")
            other = rest.partition(".")[0]
            if first == package.name and other in found and other != part:
                found[part].add(other)
    return found


def test_no_part_imports_one_that_stands_on_it() -> None:
    layers = graph(PACKAGE)
    try:
        order = list(TopologicalSorter(layers).static_order())
    except CycleError as error:
        pytest.fail(f"these parts import each other in a circle: {' <- '.join(error.args[1])}")
    assert order.index("errors") < order.index("models") < order.index("objectives")
    assert order.index("objectives") < order.index("training") < order.index("cli")


def test_a_circle_would_be_found(tmp_path: Path) -> None:
    package = tmp_path / "idlm"
    for name in ("data", "models"):
        (package / name).mkdir(parents=True)
    (package / "data" / "rows.py").write_text("def f():\n    from idlm.models import net\n")
    (package / "models" / "net.py").write_text("import idlm.data.rows\n")
    with pytest.raises(CycleError):
        TopologicalSorter(graph(package)).prepare()
