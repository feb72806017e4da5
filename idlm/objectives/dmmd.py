"""D-MMD: discrete moment matching distillation (arXiv 2603.20155)."""

from __future__ import annotations

from idlm.objectives.alternating import AlternatingDistillation, FakeSees, Weighting


class DMMD(AlternatingDistillation):
    """Match E[x | z_s] of the student's trajectories to the teacher's, with an anchored fake.

    L_GEN and L_AUX of the paper (methods E.1, E.2): z_s comes from the posterior q(z_s | x, z_t),
    and the fake model's target is half student, half teacher, so that it equals the teacher exactly
    when the student is consistent. See :class:`AlternatingDistillation` for the steps and
    :mod:`idlm.objectives.alternating` for the departures.

    Args:
        target_steps: k, the number of sampling steps to aim at.
        anchor: weight of the teacher in the fake model's target; the paper's is 1.
        weighting: w(s); the paper does not state its value. ``nelbo`` gives each noise level
            the same total weight.
        fake_sees: ``state`` as in the paper; with ``input_masks`` or ``input_time`` a student of
            few steps drifts less, see :class:`AlternatingDistillation`.
        teacher_temperature: distil the teacher at this temperature.
        teacher_top_p: distil the teacher's nucleus; the paper's text experiments take 0.85 for
            masked, 0.50 and 0.70 for uniform teachers.
        nucleus_penalty: nats that a token outside the nucleus loses; 2 if not given.
    """

    def __init__(
        self,
        *,
        target_steps: int = 16,
        anchor: float = 1.0,
        weighting: Weighting = "nelbo",
        fake_sees: FakeSees = "state",
        teacher_temperature: float = 1.0,
        teacher_top_p: float = 1.0,
        nucleus_penalty: float | None = None,
    ) -> None:
        super().__init__(
            renoise="posterior",
            anchor=anchor,
            target_steps=target_steps,
            weighting=weighting,
            fake_sees=fake_sees,
            teacher_temperature=teacher_temperature,
            teacher_top_p=teacher_top_p,
            nucleus_penalty=nucleus_penalty,
        )
