"""The methods of ``idlm bench toys`` and their settings there.

A method is a line of :data:`METHODS`. All students start from the teacher's weights.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from idlm.bench import shared
from idlm.bench.shared import rounds
from idlm.bench.toy_networks import TinyDMMD, TinyIDLM, TinyVADD
from idlm.errors import UserError
from idlm.objectives.base import DistillationObjective
from idlm.objectives.di4c import Di4C
from idlm.objectives.dmd2 import DMD2
from idlm.objectives.dmmd import DMMD
from idlm.objectives.duo_dcd import DuoDCD
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
        batch: sequences in each, and in each update of a fake model.
        latent: size of the student's latent vector.
        latent_init: scale of its first weights.
        ablation: student updates without a latent, where ``--method all`` runs that, too; 0 for
            methods that are defined with one or without one only. Behind masks few are enough:
            a product of marginals starts at its best.
        slower: of a run that is n times longer, learning rates are n ** -``slower`` of the usual
            ones, with which one seed of a few strays in a long run.
        settings: of the distillation module, where they differ from :data:`SETTINGS`.
    """

    process: str
    make: Callable[[int], DistillationObjective]
    updates: int = 250
    batch: int = 256
    latent: int = 16
    latent_init: float = 10.0
    ablation: int = 0
    slower: float = 0.0
    settings: dict[str, Any] = field(default_factory=dict)


# What the methods share. The latent starts awake: to a student that ignores it no gradient says in
# which direction to listen, and it leaves that saddle late or never.
SETTINGS: dict[str, Any] = {**shared.SETTINGS, "lr": 4e-3, "ema_decay": 0.98}
_TWO_SCALES = {"fake_lr": 1e-2}
# gradient norms have outliers, and one is enough to lose what was learnt
_CLIPPED = {"clip": 0.05}
_RATES = ("lr", "fake_lr")

METHODS: dict[str, Method] = {
    "idlm": Method(
        "absorbing",
        lambda _: TinyIDLM(weighting="flat", fake_sees="input_time", pure_noise=0.5),
        updates=300,
        batch=1024,
        latent_init=6.0,
        ablation=100,
        slower=0.5,
        settings={"warmup": 60, **_CLIPPED, **_TWO_SCALES},
    ),
    "dmmd": Method(
        "absorbing",
        lambda _: TinyDMMD(target_steps=2, weighting="flat", fake_sees="input_masks"),
        updates=300,
        batch=512,
        ablation=60,
        slower=0.5,
        settings={**_CLIPPED, **_TWO_SCALES},
    ),
    "instant": Method(
        "absorbing",
        lambda _: InstantMomentMatching(target_steps=1, weighting="flat"),
        updates=220,
        batch=512,
        ablation=60,
        settings=_CLIPPED,
    ),
    "vadd": Method(
        "absorbing",
        lambda updates: TinyVADD(kl_warmup=updates, samples=4),
        updates=300,
        batch=512,
    ),
    "di4c": Method(
        "absorbing",
        lambda _: Di4C(num_latents=8, teacher_steps=64, correlation_weight=1.0, near_share=0.1),
        updates=160,
        latent_init=3.0,
    ),
    "sdtt": Method(
        "absorbing",
        lambda updates: SDTT(num_steps=32, min_steps=1, round_updates=rounds(updates, 5)),
        updates=250,
        latent=0,
    ),
    "dmmd-uniform": Method(
        "uniform",
        lambda _: DMMD(target_steps=1, weighting="flat"),
        updates=250,
        ablation=250,
        settings={**_CLIPPED, **_TWO_SCALES},
    ),
    "instant-uniform": Method(
        "uniform",
        lambda _: InstantMomentMatching(target_steps=1, weighting="flat"),
        updates=160,
        ablation=80,
    ),
    "idlm-duo": Method(
        "uniform",
        lambda _: IDLMDuo(),
        updates=80,
        ablation=60,
        settings={"clip": 0.1, **_TWO_SCALES},
    ),
    "duo-dcd": Method(
        "uniform",
        lambda updates: DuoDCD(num_steps=16, round_updates=rounds(updates, 5), loss="kl-fwd"),
        updates=200,
        latent=0,
        settings={"lr": 1e-3},
    ),
    "mm": Method(
        "gaussian",
        lambda _: MomentMatching(target_steps=1),
        updates=200,
        latent=0,
        settings=_TWO_SCALES,
    ),
    "mm-instant": Method(
        "gaussian",
        lambda _: InstantMomentMatching(target_steps=1),
        updates=120,
        latent=0,
        settings={"lr": 1e-3},
    ),
    "dmd2": Method(
        "gaussian",
        lambda _: DMD2(target_steps=4),
        updates=60,
        latent=0,
        settings={"lr": 1e-3, **_TWO_SCALES},
    ),
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


def settings_of(method: Method, latent: int, longer: float = 1.0) -> dict[str, Any]:
    """Arguments of the distillation module, the latent's among them.

    Args:
        method: has settings of its own.
        latent: size of the student's latent vector, 0 for none.
        longer: how many times the method's updates are made. Rates are never raised for fewer.
    """
    settings = {**SETTINGS, **method.settings}
    factor = max(1.0, longer) ** -method.slower
    settings.update({name: settings[name] * factor for name in _RATES if name in settings})
    if method.process == "gaussian":
        return settings  # its state is the noise
    return {
        **settings,
        "latent_global": latent,
        "latent_position": 0,
        "latent_init": method.latent_init if latent else 0.0,
    }
