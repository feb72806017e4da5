"""D-MMD: discrete moment matching distillation (arXiv 2603.20155), masked process."""

from __future__ import annotations

from idlm.objectives.alternating import AlternatingDistillation, Weighting


class DMMD(AlternatingDistillation):
    """Match E[x | z_s] of the student's trajectories to the teacher's, with an anchored fake.

    Section 3 of the paper: z_s comes from the posterior q(z_s | x, z_t), and the fake model's
    target is half student, half teacher, so that it equals the teacher exactly when the student
    is consistent. See :class:`AlternatingDistillation` for the steps and departures.

    Args:
        target_steps: k, the number of sampling steps to aim at.
        anchor: weight of the teacher in the fake model's target; the paper's is 1.
        weighting: w(s); the paper does not state its value. ``nelbo`` gives each noise level
            the same total weight.
    """

    def __init__(
        self, *, target_steps: int = 16, anchor: float = 1.0, weighting: Weighting = "nelbo"
    ) -> None:
        super().__init__(
            renoise="posterior", anchor=anchor, target_steps=target_steps, weighting=weighting
        )
