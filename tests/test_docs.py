"""References from the sources to docs/methods.md, and links inside it, lead somewhere."""

from __future__ import annotations

import inspect
import re
from pathlib import Path

import pytest

import idlm.objectives
from idlm.objectives import DistillationObjective
from idlm.paths import repo_dir

DOCS = repo_dir() / "docs"
# "methods C.7.2", "methods C and E", "methods C.1 to C.3"; the number alone, as in "(E.2)"
NAMED = re.compile(r"\bmethods ([0A-I](?:\.\d+)*(?:(?:,| and| to) [A-I](?:\.\d+)*)*)\b")
PLAIN = re.compile(r"\b[A-I]\.\d+(?:\.\d+)?\b")


def references(text: str) -> set[str]:
    """What a source refers to, such as ``C.7.2`` or ``E``."""
    flat = re.sub(r"\s+(?:#\s*)?", " ", text)
    named = {part for found in NAMED.findall(flat) for part in re.split(r",? (?:and |to )?", found)}
    return named | set(PLAIN.findall(flat))


def sources() -> list[Path]:
    """All sources but this file, whose references are made up."""
    found = (p for folder in ("idlm", "tests") for p in (repo_dir() / folder).rglob("*.py"))
    return sorted(p for p in found if p != Path(__file__).resolve())


def entries() -> set[str]:
    index = (DOCS / "methods.md").read_text().split("## Index of references")[1]
    return set(re.findall(r"^\| ([0A-I][.\d]*) \|", index, re.MULTILINE))


def test_references_are_found_in_every_form_that_the_sources_use() -> None:
    text = """(arXiv 1; methods
    # A.2), methods C and E): methods D.2, D.3). methods C.1 to C.3. "the C.7.12" methods F.
    two methods differ: methods 0), step A.B or 1.A.3x, methods Both."""
    expected = "A.2 C E D.2 D.3 C.1 C.3 C.7.12 F 0"
    assert references(text) == set(expected.split())


def test_every_reference_of_the_sources_has_an_entry_in_the_index() -> None:
    known, lost = entries(), []
    for path in sources():
        found = references(path.read_text())
        lost += [f"{path.relative_to(repo_dir())}: {ref}" for ref in sorted(found - known)]
    assert lost == []
    assert len(known) > 30


def test_no_entry_of_the_index_is_idle() -> None:
    """A reference that no source makes would only look as if it meant something."""
    used = set().union(*(references(p.read_text()) for p in sources()))
    assert idle(entries(), used) == set()


def idle(known: set[str], used: set[str]) -> set[str]:
    """Entries to which no reference leads, nor to a part of them."""
    return {ref for ref in known if not any(f"{u}.".startswith(f"{ref}.") for u in used)}


def test_a_part_keeps_an_entry_alive_and_a_longer_number_does_not() -> None:
    assert idle({"C", "C.1", "C.7"}, {"C.12", "C.7.2"}) == {"C.1"}
    assert not [p for p in sources() if p.name == Path(__file__).name]


def anchor(heading: str) -> str:
    """How GitHub names a heading."""
    return re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")


def test_every_link_of_the_methods_page_leads_to_a_heading_or_a_page() -> None:
    text = (DOCS / "methods.md").read_text()
    headings = {anchor(line) for line in re.findall(r"^#+ (.*)$", text, re.MULTILINE)}
    targets = re.findall(r"\]\(([^)]+)\)", text)
    assert len(targets) > 30
    for target in targets:
        page, _, part = target.partition("#")
        assert (DOCS / page).exists(), target
        assert page or part in headings, target


@pytest.mark.parametrize("page", ["extending", "training", "decisions"])
def test_every_link_of_a_page_leads_to_a_file_and_to_a_heading_in_it(page: str) -> None:
    targets = re.findall(r"\]\(([^)]+)\)", (DOCS / f"{page}.md").read_text())
    assert targets
    for target in targets:
        name, _, part = target.partition("#")
        file = (DOCS / name) if name else DOCS / f"{page}.md"
        assert file.exists(), target
        headings = re.findall(r"^#+ (.*)$", file.read_text(), re.MULTILINE) if part else []
        assert not part or part in map(anchor, headings), target


def test_the_training_page_has_every_objective_with_all_of_its_settings() -> None:
    table = (DOCS / "training.md").read_text().split("| `idlm.objectives.` |")[1].split("\n\n")[0]
    rows = [[cell.strip() for cell in line.split("|")[1:5]] for line in table.splitlines()[2:]]
    documented = {
        name.strip("`"): re.findall(r"`(\w+)`", settings) for name, _, settings, _ in rows
    }
    exported = {name: getattr(idlm.objectives, name) for name in idlm.objectives.__all__}
    kinds = {
        name: list(inspect.signature(kind).parameters)
        for name, kind in exported.items()
        if inspect.isclass(kind) and issubclass(kind, DistillationObjective) and kind.processes
    }
    assert len(kinds) == 11
    assert documented == kinds


def test_the_python_of_the_likelihood_page_runs(capsys: pytest.CaptureFixture[str]) -> None:
    snippets = re.findall(
        r"^```python\n(.*?)^```", (DOCS / "likelihood.md").read_text(), re.M | re.S
    )
    assert len(snippets) == 1
    for snippet in snippets:
        exec(compile(snippet, "docs/likelihood.md", "exec"), {})
    assert "'perplexity':" in capsys.readouterr().out
