"""The methods of ``idlm bench toys`` and their settings there.

A method is a line of :data:`METHODS`. All students start from the teacher's weights.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from idlm.bench.toy_networks import TinyVADD
from idlm.errors import UserError
from idlm.objectives.base import DistillationObjective, Draw
from idlm.objectives.di4c import Di4C
from idlm.objectives.dmd2 import DMD2
from idlm.objectives.dmmd import DMMD
from idlm.objectives.duo_dcd import DuoDCD
from idlm.objectives.idlm import IDLM
from idlm.objectives.idlm_duo import IDLMDuo
from idlm.objectives.instant import InstantMomentMatching
from idlm.objectives.moment_matching import MomentMatching
from idlm.objectives.sdtt import SDTT

TEACHER = "teacher"
# steps at which students are sampled, and teachers
STUDENT_STEPS = (1, 2, 4)
TEACHER_STEPS = (1, 2, 4, 16)


@dataclass(frozen=True)
class Method:
    """How a method is run.

    Attributes:
        process: of its teacher.
        make: the objective, for a run of so many student updates.
        updates: student updates.
        latent: size of the student's latent vector.
        ablate: whether ``--method all`` also runs it without.
        settings: of the distillation module, where they differ from :data:`SETTINGS`.
    """

    process: str
    make: Callable[[int], DistillationObjective]
    updates: int = 500
    latent: int = 16
    ablate: bool = False
    settings: dict[str, Any] = field(default_factory=dict)


class PureNoiseIDLM(IDLM):
    """IDLM whose student starts from pure noise half of the time, and from there in one step.

    IDLM's times are uniform, which makes every position of L = 2 masked in one input of three, of
    L = 8 in one of nine; the others teach little that the teacher does not know. With weight 1.
    """

    def __init__(self) -> None:
        super().__init__(weighting="flat")

    def times(self, draw: Draw) -> tuple[Tensor, Tensor]:
        """As IDLM's; the upper half of the input times becomes 1, the lower half is stretched."""
        t_in, t_out = super().times(draw)
        return (2.0 * t_in).clamp(max=1.0), t_out


# What the methods share. A first momentum of 0 is what GANs use: a student and a fake model with
# momentum chase each other. The latent starts awake: to a student that ignores it no gradient says
# in which direction to listen, and it leaves that saddle late or never.
SETTINGS: dict[str, Any] = {
    "lr": 4e-3,
    "betas": (0.0, 0.99),
    "warmup": 20,
    "decay": "linear",
    "ema_decay": 0.98,
}
_AWAKE = 3.0
_TWO_SCALES = {"fake_lr": 1e-2}


def _rounds(updates: int, rounds: int) -> int:
    """Updates of a round, so that all rounds are made within the run."""
    return max(1, updates // rounds)


METHODS: dict[str, Method] = {
    "idlm": Method("absorbing", lambda _: PureNoiseIDLM(), ablate=True, settings=_TWO_SCALES),
    "dmmd": Method(
        "absorbing",
        lambda _: DMMD(target_steps=1, weighting="flat"),
        ablate=True,
        settings=_TWO_SCALES,
    ),
    "instant": Method(
        "absorbing",
        lambda _: InstantMomentMatching(target_steps=1, weighting="flat"),
        ablate=True,
    ),
    "vadd": Method("absorbing", lambda updates: TinyVADD(kl_warmup=updates // 2)),
    "di4c": Method("absorbing", lambda _: Di4C(num_latents=8, teacher_steps=64)),
    "sdtt": Method(
        "absorbing",
        lambda updates: SDTT(num_steps=32, min_steps=1, round_updates=_rounds(updates, 5)),
        latent=0,
    ),
    "dmmd-uniform": Method(
        "uniform",
        lambda _: DMMD(target_steps=1, weighting="flat"),
        settings=_TWO_SCALES,
    ),
    "instant-uniform": Method(
        "uniform", lambda _: InstantMomentMatching(target_steps=1, weighting="flat")
    ),
    "idlm-duo": Method("uniform", lambda _: IDLMDuo(), settings=_TWO_SCALES),
    "duo-dcd": Method(
        "uniform",
        lambda updates: DuoDCD(num_steps=16, round_updates=_rounds(updates, 5)),
        latent=0,
    ),
    "mm": Method(
        "gaussian", lambda _: MomentMatching(target_steps=1), latent=0, settings=_TWO_SCALES
    ),
    "mm-instant": Method("gaussian", lambda _: InstantMomentMatching(target_steps=1), latent=0),
    "dmd2": Method("gaussian", lambda _: DMD2(target_steps=4), latent=0, settings=_TWO_SCALES),
}
PROCESSES = ("absorbing", "uniform", "gaussian")


def find(name: str) -> Method:
    """The method of that name.

    Raises:
        UserError: if there is none.
    """
    if name not in METHODS:
        close = difflib.get_close_matches(name, [*METHODS, TEACHER], n=1)
        hint = f"did you mean {close[0]!r}?" if close else "choose one of them"
        known = ", ".join([*METHODS, TEACHER])
        raise UserError(f"there is no method {name!r} for the toys (there are {known}); {hint}")
    return METHODS[name]


def settings_of(method: Method, latent: int) -> dict[str, Any]:
    """Arguments of the distillation module, the latent's among them."""
    settings = {**SETTINGS, **method.settings}
    if method.process == "gaussian":
        return settings  # its state is the noise
    return {
        **settings,
        "latent_global": latent,
        "latent_position": 0,
        "latent_init": _AWAKE if latent else 0.0,
    }
