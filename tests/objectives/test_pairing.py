"""Which objective goes with which process, in the code and in the docs."""

from __future__ import annotations

import pytest

from idlm.errors import UserError
from idlm.objectives import DMMD, IDLM, AlternatingDistillation, IDLMDuo
from idlm.objectives.pairing import check_pairing, pairing_table
from idlm.paths import repo_dir
from idlm.processes import Absorbing, Process, Uniform

DEFINED = [
    (AlternatingDistillation, Absorbing),
    (AlternatingDistillation, Uniform),
    (DMMD, Absorbing),
    (DMMD, Uniform),
    (IDLM, Absorbing),
    (IDLMDuo, Uniform),
]


@pytest.mark.parametrize("kind", [AlternatingDistillation, DMMD, IDLM, IDLMDuo])
@pytest.mark.parametrize("process", [Absorbing, Uniform])
def test_a_pairing_passes_if_it_is_defined_and_is_refused_with_what_to_choose_if_not(
    kind: type, process: type[Process]
) -> None:
    if (kind, process) in DEFINED:
        check_pairing(kind(), process(5))
        return
    with pytest.raises(UserError) as refused:
        check_pairing(kind(), process(5))
    sentence = str(refused.value)
    own = {IDLM: "absorbing", IDLMDuo: "uniform"}[kind]
    assert sentence.startswith(f"{kind.__name__} is defined for the {own} process, but the ")
    assert f"process is {process.name!r}; choose one of " in sentence
    offered = sentence.split("choose one of ")[1].split(", or ")[0].split(", ")
    assert sorted(offered) == sorted(k.__name__ for k, p in DEFINED if p is process)


def test_an_objective_that_names_no_process_is_told_where_to() -> None:
    class Silent(AlternatingDistillation):
        processes = ()

    with pytest.raises(UserError, match=r"Silent names no process .* processes, .*'uniform',\)"):
        check_pairing(Silent(), Uniform(5))


def test_the_table_in_the_docs_is_the_one_in_the_code() -> None:
    assert pairing_table() in (repo_dir() / "docs" / "methods.md").read_text()


def test_the_table_says_what_is_defined() -> None:
    head, _, *rows = (
        [cell.strip(" `") for cell in line.strip("|").split("|")]
        for line in pairing_table().splitlines()
    )
    defined = {
        (row[0], process)
        for row in rows
        for process, mark in zip(head[1:], row[1:], strict=True)
        if mark == "yes"
    }
    assert defined >= {(kind.__name__, process.name) for kind, process in DEFINED}
    assert ("IDLM", "uniform") not in defined
    assert ("IDLMDuo", "absorbing") not in defined
