"""Exact match of numbers: the share of completions whose answer is the right number."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import torch
from torch import Tensor
from torchmetrics import Metric

from idlm.data.answers import (
    MARKER,
    last_number,
    marked_number,
    same_number,
)
from idlm.errors import UserError
from idlm.sandbox import FAILURES, Limits, isolation, run_program
from idlm.sandbox.run import require_isolation

RULES = ("auto", "marker", "program", "last")
# How a completion can end: right, a number that is wrong, or none, and why.
CORRECT, WRONG, NO_ANSWER = "correct", "wrong", "no_answer"
VERDICTS = (CORRECT, WRONG, *FAILURES)


@dataclass(frozen=True)
class Verdict:
    """What became of one completion.

    Attributes:
        verdict: one of :data:`VERDICTS`.
        number: what it answered; None if it did not.
        how: "marker", "program" or "last": how the answer was found.
        detail: of a program that failed, why.
    """

    verdict: str
    number: Fraction | None
    how: str
    detail: str = ""


class ExactMatch(Metric):
    """The share of problems whose answer is the right number, and how the others failed.

    Where the answer is, by ``rule``:

    - "marker": the number behind the first ``####``, as GSM8K's own answers have it;
    - "program": the completion is Python and is run in a process of its own
      (:func:`idlm.sandbox.run_program`), as TinyGSM's answers want;
    - "last": the last number of the text;
    - "auto": "marker" if there is a ``####``, else "program".

    Two numbers are the same up to a millionth (:func:`idlm.data.answers.same_number`).

    Args:
        rule: see above.
        limits: of programs.
        weak: run programs even where the kernel cannot hold them.

    Attributes:
        verdicts: of the last update.

    Raises:
        UserError: if the rule is unknown, or programs cannot be run here and ``weak`` is off.
    """

    full_state_update = False
    higher_is_better = True
    verdict_counts: Tensor

    def __init__(
        self,
        rule: str = "auto",
        *,
        limits: Limits | None = None,
        weak: bool = False,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        if rule not in RULES:
            raise UserError(f"the answer rule is {rule!r}; choose one of {', '.join(RULES)}")
        if rule in ("auto", "program"):
            require_isolation(weak=weak)
        self.rule, self.limits, self.weak = rule, limits or Limits(), weak
        self.verdicts: list[Verdict] = []
        self._counted: dict[str, int] = {}
        zeros = torch.zeros(len(VERDICTS), dtype=torch.int64)
        self.add_state("verdict_counts", zeros, dist_reduce_fx="sum")

    def update(self, completions: Sequence[str], answers: Sequence[Fraction]) -> None:
        """Judge completions.

        Args:
            completions: what the model wrote behind each question.
            answers: the right numbers.

        Raises:
            ValueError: if there are not as many of one as of the other.
        """
        if len(completions) != len(answers):
            raise ValueError(f"{len(completions)} completions for {len(answers)} answers")
        self.verdicts = [self.judge(*pair) for pair in zip(completions, answers, strict=True)]
        for verdict in self.verdicts:
            self.verdict_counts[VERDICTS.index(verdict.verdict)] += 1

    def judge(self, completion: str, answer: Fraction) -> Verdict:
        """What becomes of one completion; counts nothing."""
        how = self.rule
        if how == "auto":
            how = "marker" if MARKER in completion else "program"
        if how == "program":
            found = run_program(program_in(completion), limits=self.limits, weak=self.weak)
            if found.outcome != "answered":
                return Verdict(found.outcome, None, how, found.detail)
            number = last_number(found.answer or "")
        else:
            number = (marked_number if how == "marker" else last_number)(completion)
        if number is None:
            return Verdict(NO_ANSWER, None, how, "no number in it")
        return Verdict(CORRECT if same_number(number, answer) else WRONG, number, how)

    def compute(self) -> Tensor:
        """The share that is correct, a float64 scalar in [0, 1]; nan without a completion."""
        # of all processes, which only compute() sees
        self._counted = dict(zip(VERDICTS, self.verdict_counts.tolist(), strict=True))
        counts = self.verdict_counts.double()
        return counts[VERDICTS.index(CORRECT)] / counts.sum()

    def details(self) -> dict[str, Any]:
        """The share with its error over problems, and the count of every verdict that came up.

        The standard error is that of a mean of independent 0s and 1s; the interval is Wilson's at
        95 %, which means something at 0 and 1, too. Counts are those of all processes; call it on
        every one of them.
        """
        share, counts = float(self.compute()), self._counted
        total = sum(counts.values())
        failed = {name: counts[name] for name in FAILURES if counts[name]}
        return {
            "exact_match": share,
            "exact_match_stderr": (
                math.sqrt(share * (1 - share) / (total - 1)) if total > 1 else math.nan
            ),
            "exact_match_interval": wilson(counts[CORRECT], total),
            "problems": total,
            "correct": counts[CORRECT],
            "wrong": counts[WRONG],
            "failed": sum(failed.values()),
            "failed_by_reason": failed,
        }

    def conditions(self) -> dict[str, Any]:
        """What the share must be printed with."""
        found: dict[str, Any] = {"answer_rule": self.rule, "tolerance": "a millionth"}
        if self.rule in ("auto", "program"):
            found |= {
                "program_seconds": self.limits.seconds,
                "program_memory_mb": self.limits.memory_mb,
                "program_output": self.limits.output,
                "program_isolation": isolation(),
            }
        return found


def program_in(completion: str) -> str:
    """The part of a completion to run: what its first fence holds, or all of it."""
    text = completion.replace("\r\n", "\n")
    if "```" in text:
        inside = text.split("```")[1]
        first, _, rest = inside.partition("\n")
        text = rest if first.strip().lower() in ("", "python", "py", "python3") else inside
    return text


def wilson(correct: int, total: int, z: float = 1.959964) -> list[float]:
    """Wilson's interval of a share, [low, high]; [0, 1] without a trial."""
    if total == 0:
        return [0.0, 1.0]
    share, square = correct / total, z * z / total
    middle = (share + square / 2) / (1 + square)
    half = z / (1 + square) * math.sqrt(share * (1 - share) / total + square / (4 * total))
    return [max(0.0, middle - half), min(1.0, middle + half)]
