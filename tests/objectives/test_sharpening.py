"""The sharpened teacher against numbers worked out by hand."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch

from idlm.errors import UserError
from idlm.objectives import DMMD, AlternatingDistillation, Draw, Networks
from idlm.objectives.sharpening import Sharpening

P = torch.tensor([0.5, 0.3, 0.15, 0.05], dtype=torch.float64)
E2 = math.exp(-2)


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        # squares 25, 9, 2.25, 0.25 of hundredths: their sum is 36.5
        ({"temperature": 0.5}, [25 / 36.5, 9 / 36.5, 2.25 / 36.5, 0.25 / 36.5]),
        # the nucleus of 0.75 is the first two; the rest keeps e^-2 of its mass of 0.2
        ({"top_p": 0.75}, [x / (0.8 + 0.2 * E2) for x in (0.5, 0.3, 0.15 * E2, 0.05 * E2)]),
        # one more where 0.8 does not suffice
        ({"top_p": 0.85}, [x / (0.95 + 0.05 * E2) for x in (0.5, 0.3, 0.15, 0.05 * E2)]),
        # e^-ln 4 = 1/4
        (
            {"top_p": 0.4, "penalty": math.log(4)},
            [x / 0.625 for x in (0.5, 0.075, 0.0375, 0.0125)],
        ),
        # temperature first: then the first token alone holds 0.68 and is the nucleus of 0.6
        (
            {"temperature": 0.5, "top_p": 0.6},
            [x / (25 + 11.5 * E2) for x in (25, 9 * E2, 2.25 * E2, 0.25 * E2)],
        ),
    ],
)
def test_the_sharpened_teacher_is_what_one_computes_by_hand(
    settings: dict[str, float], expected: list[float]
) -> None:
    answer = Sharpening(**settings)(P.log().expand(2, 3, 4)).exp()
    wanted = torch.tensor(expected, dtype=torch.float64)
    torch.testing.assert_close(answer, wanted.expand(2, 3, 4), rtol=1e-12, atol=0)  # fp64


def test_nothing_is_changed_and_nothing_removed() -> None:
    log_p = P.log()
    assert Sharpening()(log_p) is log_p
    assert bool((Sharpening(0.1, 0.1)(log_p) > -60).all())  # 10 ln(0.05 / 0.5) - 2, and no -inf


@pytest.mark.parametrize("process", ["absorbing", "uniform"])
@pytest.mark.parametrize(
    "settings", [{"teacher_temperature": 0.5}, {"teacher_top_p": 0.4}, {}], ids=str
)
def test_a_sharpened_teacher_is_distilled_as_a_teacher_of_that_prediction_is(
    table: Callable[..., Any],
    uniform_table: Callable[..., Any],
    process: str,
    settings: dict[str, float],
) -> None:
    """Both losses equal those of a table that holds the sharpened probabilities."""
    n, p = 200, [0.5, 0.3, 0.2]
    sharp = {
        "teacher_temperature": [25 / 38, 9 / 38, 4 / 38],
        "teacher_top_p": [x / (0.5 + 0.5 * E2) for x in (0.5, 0.3 * E2, 0.2 * E2)],
    }.get(next(iter(settings), ""), p)

    def make(probs: list[float]) -> Any:
        if process == "absorbing":
            return table(probs=probs)
        return uniform_table(probs=torch.tensor(probs, dtype=torch.float64).expand(3, 3))

    student, fake = make(probs=[0.2, 0.5, 0.3]), make(probs=[0.3, 0.3, 0.4])
    tokens, draw = torch.randint(0, 3, (n, 1)), Draw(torch.arange(n), n, 0, 0)
    for loss in ("student_loss", "auxiliary_loss"):
        ours = getattr(DMMD(**settings), loss)(Networks(make(probs=p), student, fake), tokens, draw)
        theirs = getattr(DMMD(), loss)(Networks(make(probs=sharp), student, fake), tokens, draw)
        torch.testing.assert_close(ours.total, theirs.total, rtol=1e-10, atol=0)  # fp64
        plain = getattr(DMMD(), loss)(Networks(make(probs=p), student, fake), tokens, draw)
        assert (ours.total.item() != plain.total.item()) == bool(settings)


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"teacher_temperature": 0.0}, "teacher_temperature is 0.0; it must be above 0"),
        ({"teacher_temperature": float("nan")}, "teacher_temperature is nan; it must be above 0"),
        ({"teacher_top_p": 0.0}, r"teacher_top_p is 0.0; it must be in \(0, 1\]"),
        ({"teacher_top_p": 1.1}, r"teacher_top_p is 1.1; it must be in \(0, 1\]"),
        ({"nucleus_penalty": 2.0}, "nucleus_penalty is 2.0 but teacher_top_p is 1, which leaves"),
        (
            {"nucleus_penalty": 0.0, "teacher_top_p": 0.5},
            "nucleus_penalty is 0.0; it must be above 0",
        ),
        (
            {"nucleus_penalty": float("inf"), "teacher_top_p": 0.5},
            "nucleus_penalty is inf; it must be above 0 and finite",
        ),
    ],
)
@pytest.mark.parametrize("kind", [DMMD, AlternatingDistillation])
def test_settings_that_are_wrong_or_would_do_nothing_are_refused(
    kind: Any, settings: dict[str, float], sentence: str
) -> None:
    with pytest.raises(UserError, match=sentence):
        kind(**settings)
