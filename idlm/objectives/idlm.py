"""IDLM: inverse distillation of a masked diffusion language model (arXiv 2602.19066)."""

from __future__ import annotations

from typing import ClassVar

from idlm.objectives.alternating import AlternatingDistillation, FakeSees, Weighting
from idlm.objectives.base import TimeDraws


class IDLM(AlternatingDistillation):
    """L(teacher, p_G) - min_f L(f, p_G): the student's data must suit the teacher best.

    IDLM-MDLM, section 3 and algorithm 1 of the paper (methods C.1 to C.3): states are re-noised
    from scratch and the fake model follows the student alone. See :class:`AlternatingDistillation`
    for the steps, :mod:`idlm.objectives.alternating` for the departures and
    :class:`idlm.objectives.IDLMDuo` for the uniform process.

    Args:
        time_draws: ``independent`` as in the paper, ``tied`` as in its code (methods C.7.2).
        weighting: ``nelbo`` as in the paper; ``flat`` has less variance.
        fake_sees: ``state`` as in the paper; with ``input_masks`` or ``input_time`` a student of
            few steps drifts less, see :class:`AlternatingDistillation`.
        pure_noise: share of the student's inputs that are pure noise; 0 as in the paper.
    """

    processes: ClassVar[tuple[str, ...]] = ("absorbing",)

    def __init__(
        self,
        *,
        time_draws: TimeDraws = "independent",
        weighting: Weighting = "nelbo",
        fake_sees: FakeSees = "state",
        pure_noise: float = 0.0,
    ) -> None:
        super().__init__(
            renoise="fresh",
            anchor=0.0,
            time_draws=time_draws,
            weighting=weighting,
            fake_sees=fake_sees,
            pure_noise=pure_noise,
        )
