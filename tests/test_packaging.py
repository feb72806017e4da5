from __future__ import annotations

import ast
import importlib
import importlib.metadata
import inspect
import re
import subprocess
import sys
from pathlib import Path

import pytest
from packaging.markers import default_environment
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from setuptools import find_packages

import idlm

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(__file__).resolve().parent.parent
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
PROJECT = PYPROJECT["project"]
PYTHONS = ["3.10", "3.11", "3.12", "3.13", "3.14"]

# What a CUDA build of torch requires and a CPU build does not; torch names its exact versions.
CUDA = re.compile(r"^(nvidia-|cuda-|triton)")
# Where the name to import is not the name to install.
IMPORT_NAMES = {"yaml": "pyyaml", "PIL": "pillow", "mauve": "mauve-text", "tomli": "pytest"}
# Installed by every one of our set-ups, and only tests use them.
TOOLS = {"pytest", "packaging", "setuptools"}


def relative(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def constraints() -> list[Requirement]:
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    return [Requirement(line) for line in lines if line and not line.startswith("#")]


def pinned(python: str) -> dict[str, list[str]]:
    """Versions that constraints.txt names for one Python, by package."""
    found: dict[str, list[str]] = {}
    for requirement in constraints():
        if requirement.marker and not requirement.marker.evaluate({"python_version": python}):
            continue
        (version,) = requirement.specifier
        found.setdefault(canonicalize_name(requirement.name), []).append(version.version)
    return found


def declared(*extras: str) -> list[Requirement]:
    groups = [PROJECT["optional-dependencies"][extra] for extra in extras]
    return [Requirement(line) for line in sum(groups, PROJECT["dependencies"])]


def names(requirements: list[Requirement]) -> set[str]:
    return {canonicalize_name(requirement.name) for requirement in requirements}


def closure(requirements: list[Requirement]) -> set[str]:
    """Everything that these requirements install here, by the metadata of what is installed."""
    todo = [(canonicalize_name(r.name), frozenset(r.extras)) for r in requirements]
    seen = set(todo)
    while todo:
        name, extras = todo.pop()
        for line in importlib.metadata.requires(name) or []:
            requirement = Requirement(line)
            marker = requirement.marker
            environments = [{"extra": extra} for extra in extras] or [{"extra": ""}]
            if marker and not any(marker.evaluate(env) for env in environments):
                continue
            item = (canonicalize_name(requirement.name), frozenset(requirement.extras))
            if item not in seen and not CUDA.match(item[0]):
                seen.add(item)
                todo.append(item)
    return {name for name, _ in seen}


def imports(path: Path) -> dict[str, bool]:
    """Top-level names a file imports: True where it happens as the file is imported."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    found: dict[str, bool] = {}

    def visit(node: ast.AST, eager: bool) -> None:
        for child in ast.iter_child_nodes(node):
            inside = isinstance(child, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda))
            guarded = isinstance(child, ast.If) and "TYPE_CHECKING" in ast.dump(child.test)
            modules = []
            if isinstance(child, ast.Import):
                modules = [alias.name for alias in child.names]
            elif isinstance(child, ast.ImportFrom) and child.level == 0:
                modules = [child.module or ""]
            for module in modules:
                top = module.partition(".")[0]
                found[top] = found.get(top, False) or eager
            visit(child, eager and not inside and not guarded)

    visit(tree, True)
    return {
        IMPORT_NAMES.get(top, top): eager
        for top, eager in found.items()
        if top not in sys.stdlib_module_names and top not in ("idlm", "tests")
    }


def test_the_description_spells_the_name_out():
    assert "inverse-distilled diffusion language models" in PROJECT["description"]


def test_the_version_has_one_source():
    assert "version" in PROJECT["dynamic"]
    assert importlib.metadata.version("idlm") == idlm.__version__
    assert f"{idlm.__version__}" in (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")


def test_both_commands_are_the_same_program():
    scripts = PROJECT["scripts"]
    assert set(scripts) == {"idlm", "lightning"}
    assert len(set(scripts.values())) == 1
    module, _, function = scripts["idlm"].partition(":")
    assert callable(getattr(importlib.import_module(module), function))


def test_lightning_installs_no_command_that_ours_would_overwrite():
    for package in ("lightning", "pytorch-lightning"):
        points = importlib.metadata.distribution(package).entry_points
        assert "lightning" not in {point.name for point in points}


def test_only_the_library_is_packaged_and_all_of_it():
    where = PYPROJECT["tool"]["setuptools"]["packages"]["find"]
    packaged = set(find_packages(str(ROOT), include=where["include"]))
    folders = {
        ".".join(path.parent.relative_to(ROOT).parts) for path in (ROOT / "idlm").rglob("*.py")
    }
    assert packaged == folders


@pytest.mark.parametrize("python", PYTHONS)
def test_constraints_name_one_exact_version_for_each_python(python):
    assert all([s.operator for s in r.specifier] == ["=="] for r in constraints())
    assert {name: v for name, v in pinned(python).items() if len(v) > 1} == {}


@pytest.mark.parametrize("python", PYTHONS)
def test_constraints_lie_in_the_declared_ranges(python):
    versions = pinned(python)
    for requirement in declared("test"):
        (version,) = versions[canonicalize_name(requirement.name)]
        assert requirement.specifier.contains(version), f"{requirement} on Python {python}"


def test_constraints_cover_everything_that_gets_installed():
    here = default_environment()["python_version"]
    missing = closure(declared("test")) | {"pip", "setuptools"}
    assert missing - set(pinned(here)) == set()


def test_constraints_leave_cuda_to_torch():
    assert [r.name for r in constraints() if CUDA.match(canonicalize_name(r.name))] == []


@pytest.mark.parametrize(
    "path",
    sorted((ROOT / "idlm").rglob("*.py")),
    ids=relative,
)
def test_the_library_imports_only_what_it_declares(path):
    always = names(declared())
    optional = names(declared(*(set(PROJECT["optional-dependencies"]) - {"test"})))
    for name, eager in imports(path).items():
        allowed = always if eager else always | optional
        assert canonicalize_name(name) in allowed, (
            f"{path.relative_to(ROOT)} imports {name}; add it to pyproject.toml's dependencies and "
            "constraints.txt, or import an extra inside the function that needs it"
        )


def test_the_tests_import_only_what_the_test_extra_installs():
    allowed = names(declared("test")) | TOOLS
    for path in sorted((ROOT / "tests").rglob("*.py")):
        local = {other.stem for other in path.parent.glob("*.py")}
        outside = {canonicalize_name(name) for name in imports(path).keys() - local}
        assert outside <= allowed, f"{path.relative_to(ROOT)} imports {outside - allowed}"


def test_the_package_itself_imports_nothing_heavy():
    code = (
        "import sys, idlm; print(sorted({'torch', 'lightning', 'transformers'} & set(sys.modules)))"
    )
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60
    )
    assert result.stdout == "[]\n"


@pytest.mark.parametrize("path", sorted((ROOT / "idlm").rglob("*.py")), ids=relative)
def test_every_public_method_is_documented_here_or_where_it_is_declared(path):
    name = relative(path.with_suffix("")).replace("/", ".").removesuffix(".__init__")
    module = importlib.import_module(name)
    for cls in vars(module).values():
        if not inspect.isclass(cls) or cls.__module__ != module.__name__:
            continue
        for name, member in vars(cls).items():
            if inspect.isfunction(member) and not name.startswith("_"):
                assert inspect.getdoc(getattr(cls, name)), f"{cls.__name__}.{name}"


def test_the_licence_is_apache_2():
    text = (ROOT / "LICENSE").read_text(encoding="utf-8")
    assert "Apache License" in text
    assert "Version 2.0, January 2004" in text
    assert "Copyright 2026 the idlm authors" in text
    assert PROJECT["license"] == "Apache-2.0"
