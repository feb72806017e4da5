"""A sharpened teacher to distil: temperature and nucleus of its prediction (D-MMD, methods E.3)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from idlm.errors import UserError
from idlm.sampling.categorical import nucleus, temper

PENALTY = 2.0


@dataclass(frozen=True)
class Sharpening:
    """What is done to the teacher's log-probabilities before they are distilled.

    First the temperature, then the nucleus, as in sampling. Tokens outside the nucleus lose
    ``penalty`` nats and stay possible: with hard removal the student's cross-entropy has no bound
    (arXiv 2603.20155, section on temperature and top-p distillation).

    Args:
        temperature: of the teacher, above 0; 1 leaves it alone.
        top_p: mass of the nucleus, in (0, 1]; 1 leaves it alone.
        penalty: nats that a token outside the nucleus loses; the paper's 2 if not given.

    Raises:
        UserError: for a value outside what is listed, or a penalty without a nucleus.
    """

    temperature: float = 1.0
    top_p: float = 1.0
    penalty: float | None = None

    def __post_init__(self) -> None:
        if not 0 < self.temperature < float("inf"):
            raise UserError(
                f"teacher_temperature is {self.temperature}; it must be above 0, and 1 leaves the "
                "teacher alone"
            )
        if not 0 < self.top_p <= 1:
            raise UserError(
                f"teacher_top_p is {self.top_p}; it must be in (0, 1], and 1 leaves the teacher "
                "alone"
            )
        if self.penalty is None:
            return
        if self.top_p == 1:
            raise UserError(
                f"nucleus_penalty is {self.penalty} but teacher_top_p is 1, which leaves no token "
                "outside the nucleus; give a teacher_top_p below 1, or leave nucleus_penalty out"
            )
        if not 0 < self.penalty < float("inf"):
            raise UserError(
                f"nucleus_penalty is {self.penalty}; it must be above 0 and finite (D-MMD: 2)"
            )

    def __call__(self, log_probs: Tensor) -> Tensor:
        """Sharpened log-probabilities ``[..., V]`` in nats; the very input if nothing is set."""
        log_probs = temper(log_probs, self.temperature)
        if self.top_p == 1:
            return log_probs
        outside = nucleus(log_probs, self.top_p).isneginf()
        lost = PENALTY if self.penalty is None else self.penalty
        return torch.log_softmax(torch.where(outside, log_probs - lost, log_probs), dim=-1)
