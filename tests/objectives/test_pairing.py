"""Which objective goes with which process, in the code and in the docs."""

from __future__ import annotations

import pytest

from idlm.errors import UserError
from idlm.objectives import (
    DMD2,
    DMMD,
    IDLM,
    SDTT,
    VADD,
    AlternatingDistillation,
    Di4C,
    DistillationObjective,
    DuoDCD,
    IDLMDuo,
    InstantMomentMatching,
    MomentMatching,
)
from idlm.objectives.pairing import check_pairing, pairing_table
from idlm.paths import repo_dir
from idlm.processes import Absorbing, Gaussian, Uniform

PROCESSES = {"absorbing": Absorbing(5), "uniform": Uniform(5), "gaussian": Gaussian()}
DEFINED = {
    AlternatingDistillation: ("absorbing", "uniform"),
    DMMD: ("absorbing", "uniform"),
    IDLM: ("absorbing",),
    SDTT: ("absorbing",),
    VADD: ("absorbing",),
    Di4C: ("absorbing", "uniform"),
    DuoDCD: ("uniform",),
    IDLMDuo: ("uniform",),
    InstantMomentMatching: ("absorbing", "uniform", "gaussian"),
    MomentMatching: ("gaussian",),
    DMD2: ("gaussian",),
}


@pytest.mark.parametrize("kind", DEFINED, ids=lambda kind: kind.__name__)
@pytest.mark.parametrize("process", PROCESSES)
def test_a_pairing_passes_if_it_is_defined_and_is_refused_with_what_to_choose_if_not(
    kind: type[DistillationObjective], process: str
) -> None:
    if process in DEFINED[kind]:
        check_pairing(kind(), PROCESSES[process])
        return
    with pytest.raises(UserError) as refused:
        check_pairing(kind(), PROCESSES[process])
    sentence = str(refused.value)
    own = " and the ".join(DEFINED[kind])
    assert sentence.startswith(f"{kind.__name__} is defined for the {own} process, but the ")
    assert f"process is {process!r}" in sentence
    offered = sentence.split("choose one of ")[1].split(", or start")[0].split(", ")
    assert sorted(offered) == sorted(k.__name__ for k, p in DEFINED.items() if process in p)


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
    assert defined == {(kind.__name__, name) for kind, names in DEFINED.items() for name in names}
