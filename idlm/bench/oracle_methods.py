"""The methods of ``idlm bench oracle`` and their settings there.

All start from the teacher's weights and make the same number of student updates.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from idlm.bench import shared
from idlm.bench.shared import rounds
from idlm.objectives.base import DistillationObjective
from idlm.objectives.di4c import Di4C
from idlm.objectives.dmmd import DMMD
from idlm.objectives.duo_dcd import DuoDCD
from idlm.objectives.idlm import IDLM
from idlm.objectives.idlm_duo import IDLMDuo
from idlm.objectives.instant import InstantMomentMatching
from idlm.objectives.sdtt import SDTT
from idlm.objectives.vadd import VADD

# Sampling steps that methods which aim at a number of them aim at.
TARGET_STEPS = 8
# Size of the noise per position, where a student has a latent and the method takes that part.
PER_POSITION = 8


@dataclass(frozen=True)
class Method:
    """How a method is run.

    Attributes:
        process: of its teacher.
        make: the objective, for a run of so many student updates.
        latent: size of the student's latent vector; noise per position comes with it.
        per_position: whether the method takes noise per position.
        ablate: whether ``--method all`` also runs it without a latent.
        settings: of the distillation module, where they differ from :data:`SETTINGS`.
    """

    process: str
    make: Callable[[int], DistillationObjective]
    latent: int = 64
    per_position: bool = True
    ablate: bool = False
    settings: dict[str, Any] = field(default_factory=dict)


# What the methods share. The latent starts silent, so that a student starts as its teacher: on text
# that is worth more than the time it takes to leave it.
SETTINGS: dict[str, Any] = {**shared.SETTINGS, "lr": 5e-4, "ema_decay": 0.99}
_TWO_SCALES = {"fake_lr": 1e-3}

METHODS: dict[str, Method] = {
    "idlm": Method(
        "absorbing", lambda _: IDLM(fake_sees="input_time"), ablate=True, settings=_TWO_SCALES
    ),
    "dmmd": Method(
        "absorbing",
        lambda _: DMMD(target_steps=TARGET_STEPS),
        ablate=True,
        settings=_TWO_SCALES,
    ),
    "instant": Method("absorbing", lambda _: InstantMomentMatching(target_steps=TARGET_STEPS)),
    "vadd": Method(
        "absorbing", lambda updates: VADD(kl_warmup=updates, samples=4), per_position=False
    ),
    "di4c": Method(
        "absorbing", lambda _: Di4C(num_latents=4, teacher_steps=64, correlation_weight=1.0)
    ),
    # rounds of 64 -> 32 -> 16 -> 8 -> 4 steps
    "sdtt": Method(
        "absorbing",
        lambda updates: SDTT(num_steps=64, min_steps=4, round_updates=rounds(updates, 4)),
        latent=0,
    ),
    "dmmd-uniform": Method(
        "uniform", lambda _: DMMD(target_steps=TARGET_STEPS), settings=_TWO_SCALES
    ),
    "instant-uniform": Method(
        "uniform", lambda _: InstantMomentMatching(target_steps=TARGET_STEPS)
    ),
    "idlm-duo": Method("uniform", lambda _: IDLMDuo(), settings={"clip": 0.1, **_TWO_SCALES}),
    # dt of 1/16, 1/8 .. 1
    "duo-dcd": Method(
        "uniform",
        lambda updates: DuoDCD(num_steps=16, round_updates=rounds(updates, 5)),
        latent=0,
    ),
}


def settings_of(method: Method, latent: int) -> dict[str, Any]:
    """Arguments of the distillation module, the latent's among them."""
    return {
        **SETTINGS,
        **method.settings,
        "latent_global": latent,
        "latent_position": PER_POSITION if latent and method.per_position else 0,
    }
