"""Alternating distillation: a student against a fake model that follows it.

Two published methods are settings of one objective (names as in methods C and E):

=====================  =========================  ================================
                       IDLM (arXiv 2602.19066)    D-MMD (arXiv 2603.20155)
=====================  =========================  ================================
state z that is scored  fresh: z ~ q(z_t | x)     posterior: z ~ q(z_s | x, z_t)
fake model's target     student                   student + anchor * teacher
times                   two draws over [0, 1]     s ~ U, t = min(1, s + U(0, 1/k))
fake model sees         z; or the input's time or share of masks, too
                        (``fake_sees``, ours)
pure noise as input     hardly ever; or a share   a share of 1 / (2 k)
                        (``pure_noise``, ours)
=====================  =========================  ================================

Steps shared by both: noise data to z_in; the student turns it into probabilities G (kept soft);
draw x ~ G; re-noise x to z; compare teacher and fake model at z. Gradient reaches the student
through the explicit G only: z carries none.

This file has the settings; :mod:`idlm.objectives.alternating_masked` has the losses of the masked
process, where everything may be done at masked positions alone, and
:mod:`idlm.objectives.alternating_uniform` those of the uniform one.

Departures from the papers, on either process. ``fake_sees`` and ``pure_noise`` are not in them, and
off by default. Students have a latent by default, a vector of 64 and 64 numbers per position, where
IDLM has none and D-MMD noise per position for masked students alone; the vector enters every adaLN
by rows of its own, the noise per position is added to the embedding of the mask (of every token on
the uniform process, which has no mask). All times are at least 0.001, so that the weight is finite;
D-MMD does not publish its w(s). Logits are fp32 before any softmax (methods C.7.12). Losses are
sums that the caller divides by the token count, where the papers sum over positions: a constant
factor L.
"""

from __future__ import annotations

import math
from types import ModuleType
from typing import ClassVar, Literal, get_args

import torch
from torch import Tensor, nn

from idlm.errors import UserError
from idlm.models.dit import Latent
from idlm.models.modeling import DiffusionLM
from idlm.objectives import alternating_masked, alternating_uniform
from idlm.objectives.base import (
    DistillationObjective,
    Draw,
    LossSum,
    Networks,
    TimeDraws,
    matching_times,
    two_times,
)
from idlm.objectives.pairing import check_pairing
from idlm.objectives.sharpening import Sharpening
from idlm.processes import Absorbing, Process

Renoise = Literal["fresh", "posterior"]
Weighting = Literal["nelbo", "flat"]
FakeSees = Literal["state", "input_time", "input_masks"]

# cosines that tell a fake model what the student's input was
_WAVES = 8


class AlternatingDistillation(DistillationObjective):
    """Inverse distillation and discrete moment matching, and what lies between.

    Args:
        renoise: ``fresh`` forgets the student's input (IDLM); ``posterior`` keeps what it showed
            (D-MMD), so that training states are those of a sampler with ``target_steps`` steps.
        anchor: weight of the teacher in the fake model's target; 0 for IDLM, 1 for D-MMD.
        target_steps: k, the number of sampling steps to aim at; 16 if not given. ``fresh`` aims at
            none and takes none.
        time_draws: ``independent`` permutes the strata of one of the two times over the global
            batch; ``tied`` reproduces the published code (``fresh`` only; methods C.7.2).
        weighting: ``nelbo`` weighs a state by -alpha'/(1-alpha), ``flat`` by 1.
        fake_sees: ``state`` as in both papers; ``input_time`` also tells the fake model the time
            of the student's input, ``input_masks`` the share of its positions that were masked
            (absorbing process only), which is all that a masked network reads of the time. Without
            either the fake model learns what the student writes from all inputs together, and
            errors at one that cancel errors at another cost nothing: a student of few steps, whose
            inputs and states are far apart, drifts. With it the loss is a mixture over inputs of
            what it is for one kind.
        pure_noise: share of the student's inputs that are pure noise, t_in = 1, where a sampler
            starts (``fresh`` only); the others are uniform. ``posterior`` has a share of
            1 / (2 target_steps) by itself.
        teacher_temperature, teacher_top_p, nucleus_penalty: distil a sharpened teacher, see
            :class:`~idlm.objectives.sharpening.Sharpening`.

    Raises:
        UserError: for a value outside what is listed.
    """

    processes: ClassVar[tuple[str, ...]] = ("absorbing", "uniform")
    shardable: ClassVar[bool] = True

    def __init__(
        self,
        *,
        renoise: Renoise = "posterior",
        anchor: float = 1.0,
        target_steps: int | None = None,
        time_draws: TimeDraws = "independent",
        weighting: Weighting = "nelbo",
        fake_sees: FakeSees = "state",
        pure_noise: float = 0.0,
        teacher_temperature: float = 1.0,
        teacher_top_p: float = 1.0,
        nucleus_penalty: float | None = None,
    ) -> None:
        choices = {
            "renoise": (renoise, ("fresh", "posterior")),
            "time_draws": (time_draws, ("independent", "tied")),
            "weighting": (weighting, ("nelbo", "flat")),
            "fake_sees": (fake_sees, get_args(FakeSees)),
        }
        for name, (value, allowed) in choices.items():
            if value not in allowed:
                raise UserError(f"{name} is {value!r}; choose one of {', '.join(allowed)}")
        if time_draws == "tied" and renoise != "fresh":
            raise UserError(
                f"time_draws is 'tied', which needs renoise 'fresh', but renoise is {renoise!r}; "
                "leave time_draws at 'independent'"
            )
        if not 0.0 <= pure_noise < 1.0:
            raise UserError(f"pure_noise is {pure_noise}; it is a share of the inputs, in [0, 1)")
        if time_draws == "tied" and pure_noise > 0:
            raise UserError(
                f"time_draws is 'tied', but pure_noise is {pure_noise}, which stretches the times "
                "of the input away from those of the state; leave pure_noise at 0, or time_draws "
                "at 'independent'"
            )
        if renoise != "fresh" and pure_noise > 0:
            raise UserError(
                f"pure_noise is {pure_noise}, but renoise is {renoise!r}, half of whose inputs are "
                "pure noise at target_steps 1 and a share of 1 / (2 target_steps) otherwise; leave "
                "pure_noise out, or choose renoise 'fresh'"
            )
        if not anchor >= 0:
            raise UserError(f"anchor is {anchor}; it is a weight, 0 (IDLM) or more (D-MMD: 1)")
        if renoise == "fresh" and target_steps is not None:
            raise UserError(
                f"target_steps is {target_steps} but renoise is 'fresh', which aims at no number "
                "of steps; leave target_steps out, or choose renoise 'posterior'"
            )
        if target_steps is not None and target_steps < 1:
            raise UserError(f"target_steps is {target_steps}; it must be at least 1")
        self.renoise = renoise
        self.anchor = anchor
        self.target_steps = target_steps or (16 if renoise == "posterior" else None)
        self.time_draws = time_draws
        self.weighting = weighting
        self.fake_sees = fake_sees
        self.pure_noise = pure_noise
        self.sharpening = Sharpening(teacher_temperature, teacher_top_p, nucleus_penalty)

    def times(self, draw: Draw) -> tuple[Tensor, Tensor]:
        """Times of the student's input and of the re-noised state, each ``[B]``."""
        if self.target_steps is None:
            t_in, t_out = two_times(draw, self.time_draws)
            return (t_in / (1.0 - self.pure_noise)).clamp(max=1.0), t_out
        return matching_times(draw, self.target_steps)

    def make_auxiliary(self, teacher: DiffusionLM, student: DiffusionLM) -> nn.Module | None:
        """A copy of the teacher, with a silent input for what else it sees."""
        if self.fake_sees == "state":
            return super().make_auxiliary(teacher, student)
        return teacher.with_latent(latent_global=_WAVES, latent_position=0)

    def told(self, model: DiffusionLM, input_said: Tensor) -> Latent | None:
        """What a fake model is told beside a state, ``None`` for a teacher.

        It enters where a generator's latent does: at first without any effect, and also in a
        network without time conditioning.

        Args:
            model: teacher or fake model.
            input_said: of the student's input, its times or shares of masks, ``[B]``.
        """
        if self.fake_sees == "state" or not model.has_latent:
            return None
        waves = torch.arange(1, _WAVES + 1, device=input_said.device)
        return Latent(torch.cos(math.pi * waves * input_said.unsqueeze(-1)), None)

    def weights(self, process: Process, time: Tensor) -> Tensor:
        """w of a state at each of the times ``[B]``, ``[B]``."""
        nelbo = self.weighting == "nelbo"
        return process.schedule.weight(time) if nelbo else torch.ones_like(time)

    def auxiliary_loss(self, networks: Networks, tokens: Tensor, draw: Draw) -> LossSum:
        """w [ CE(student | fake) + anchor CE(teacher | fake) ] at z (methods C.3, E.2)."""
        return self._losses(networks).auxiliary_loss(self, networks, tokens, draw)

    def student_loss(self, networks: Networks, tokens: Tensor, draw: Draw) -> LossSum:
        """-w <G, log teacher - log fake> at z (methods C.2, E.2)."""
        return self._losses(networks).student_loss(self, networks, tokens, draw)

    def _losses(self, networks: Networks) -> ModuleType:
        """Whether masked positions alone count, or every one, because no state tells its noise."""
        process = networks.student.process
        check_pairing(self, process)
        if self.fake_sees == "input_masks" and not isinstance(process, Absorbing):
            raise UserError(
                f"fake_sees is 'input_masks', but the {process.name} process has no mask; choose "
                "'input_time' or 'state'"
            )
        return alternating_masked if isinstance(process, Absorbing) else alternating_uniform
