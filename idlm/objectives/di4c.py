"""Di4C: a mixture of products learns how the positions of one step depend on each other.

"Distillation of Discrete Diffusion through Dimensional Correlations", arXiv 2410.08709; what is
computed is the loss of the authors' text code (methods G.2). The student is the mixture
p(x0 | x_t) = E_lambda prod_d p(x0_d | x_t, lambda); a product cannot say that two tokens that are
revealed together go together. With n latents for each sequence and LME_i f = log mean_i exp f::

    cor      = -[ LME_i sum_d log p_i(x0_d) - sum_d LME_i log p_i(x0_d) ]       x0 the data
    ind      = sum_d KL( teacher_d || mean_i p_i,d )
    dist     = mean_i sum_d KL( teacher_d || p_i,d )                            t < delta
    cons_cor = mean_j cor at xh_j ~ p(. | x_s[j], lambda'_j)                    t >= delta
    cons_ind = sum_d KL( mean_j p(. | x_s[j], lambda'_j)_d || mean_i p_i,d )    t >= delta
    loss     = c(t) cor + ind + dist + cons_cor + cons_ind,  c(t) = 0.1 sigmoid(20 (t - 0.5))

where x_s[j] is one ancestral step of the teacher from x_t and p_i = p(. | x_t, lambda_i), the only
place that gradient passes through. ``ind`` stands for the marginals' part of the likelihood: the
second bracket of ``cor`` is its control variate.

Bias. For n latents E[LME_i] is below the log-likelihood of the mixture (Jensen), and so is that of
every marginal: ``cor`` is the difference of two biased terms and bounds nothing, and a KL to the
mean of n predictions is above that to the mixture. Where the latent decides among K tokens, ``ind``
and ``cons_ind`` each charge about (K - 1) / 2n nats per position for it, and only c(t) ``cor``
pays: two equal tokens are learnt with c = 0.1 and n = 64, or c = 1 and n = 8, but with c = 0.1 and
n = 16, the published constants, the student becomes a product. n = 1 has ``cor`` = 0 throughout.

Start. Where the prediction does not depend on the latent, both brackets of ``cor`` have the same
gradient: a silent latent is a saddle, which c(t) = 0.1 leaves slowly. The code's latent is awake
from the start; ``latent_init`` of the distillation module does that here.

Departures from the paper and its code. lambda is the student's Gaussian latent (a vector through
adaLN, noise at each position), not one number in [0, 1] as an extra token. A time for every
sequence, stratified over the global batch, where the code has one for all and so wants batches of
one. Times are continuous and the same everywhere: the code rounds them to multiples of 1/1024, and
once more when it noises, so its x_t is of a time 1/1024 later than the teacher's step from it. Sums
run over masked positions, where alone the terms are not zero. The teacher is no mixture (the code
can take a Di4C model for a second round). The uniform process, which the code does not have, is
the same with all positions and with E[x | z] of :func:`~idlm.objectives.alternating_uniform
.given_state` for p. Losses are sums that the caller divides by the token count, where the code
takes means over sequences: a constant factor L.

The file is long because the four losses are parts of one sum and share every table.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from math import inf
from typing import ClassVar, NamedTuple, cast

import torch
from torch import Tensor, nn

from idlm.errors import UserError
from idlm.models.dit import Latent
from idlm.models.modeling import DiffusionLM
from idlm.objectives.alternating_uniform import draw_posterior
from idlm.objectives.base import (
    DistillationObjective,
    Draw,
    LossSum,
    Networks,
    Trains,
    mean,
    row_weights,
)
from idlm.objectives.chunks import in_chunks
from idlm.objectives.divergences import entropy, kl, log_mean_exp
from idlm.objectives.mixture import correlation, drawn_tokens, law, scored
from idlm.objectives.pairing import check_pairing
from idlm.processes import Absorbing, Uniform
from idlm.random import Stream
from idlm.schedules import stratified_times

_FIRST_TIME = 1e-5  # the code's sampling_eps: at t = 0 nothing is left to predict


class Terms(NamedTuple):
    """What makes up the loss of each sequence, in nats, ``[B]`` each; see the module's text.

    Attributes:
        weight: c(t).
        entropy: mean entropy of the student's predictions at each scored position, ``[M]``.
    """

    cor: Tensor
    ind: Tensor
    dist: Tensor
    cons_cor: Tensor
    cons_ind: Tensor
    weight: Tensor
    entropy: Tensor

    @property
    def loss(self) -> Tensor:
        """The loss of each sequence, ``[B]``."""
        return self.weight * self.cor + self.ind + self.dist + self.cons_cor + self.cons_ind


class Later(NamedTuple):
    """The student one step of the teacher later, at the positions scored in x_t; no gradient.

    Attributes:
        hidden: its features, with latents of its own, ``[M, n, D]``.
        z: x_s, a state for each latent, int64 ``[M, n]``.
        s: the times, ``[M, 1]``.
        drawn: xh, a draw from each prediction, int64 ``[M, n]``.
    """

    hidden: Tensor
    z: Tensor
    s: Tensor
    drawn: Tensor


class Di4C(DistillationObjective):
    """Data, distillation and consistency terms for a mixture student, on batches of any size.

    One update of a sequence runs the student 2 n times and the teacher once. Logits of n latents
    are computed in chunks of positions and again in the backward pass; what is kept for all
    positions are features and log-likelihoods.

    Args:
        num_latents: n, the latents of each sequence, 2 or more; the published text runs have 16.
        delta: times below it are distilled, the others made consistent; 0.02.
        near_share: share of the sequences whose time is below ``delta``; 0.3.
        teacher_steps, step_share: the teacher's step is min(1 / ``teacher_steps``,
            ``step_share`` t) long; 1024 and 0.5.
        correlation_weight, correlation_slope, correlation_center: c(t) = weight sigmoid(slope
            (t - center)); 0.1, 20 and 0.5.
        control_variates: learn the marginals of data and of the later prediction as KLs (``ind``,
            ``cons_ind``), not from single tokens. Without them these two terms and the second
            bracket of ``cor`` and ``cons_cor`` drop, as in the code: consistency keeps its expected
            gradient and gains variance; in the data term c(t) then weighs the marginals, too.

    Raises:
        UserError: for a value outside what is listed.
    """

    processes: ClassVar[tuple[str, ...]] = ("absorbing", "uniform")
    trains: ClassVar[Trains] = "student"

    def __init__(
        self,
        *,
        num_latents: int = 16,
        delta: float = 0.02,
        near_share: float = 0.3,
        teacher_steps: int = 1024,
        step_share: float = 0.5,
        correlation_weight: float = 0.1,
        correlation_slope: float = 20.0,
        correlation_center: float = 0.5,
        control_variates: bool = True,
    ) -> None:
        if num_latents < 2:
            raise UserError(
                f"num_latents is {num_latents}; it must be at least 2, because one latent is a "
                "product, whose correlation term is 0 whatever it predicts"
            )
        if teacher_steps < 1:
            raise UserError(f"teacher_steps is {teacher_steps}; it must be at least 1")
        for name, value, fits, allowed in (
            ("delta", delta, 1e-4 <= delta < 1, "in [0.0001, 1)"),
            ("near_share", near_share, 0 <= near_share <= 1, "in [0, 1]"),
            ("step_share", step_share, 0 < step_share < 1, "in (0, 1)"),
            ("correlation_weight", correlation_weight, 0 <= correlation_weight < inf, "0 or more"),
            ("correlation_slope", correlation_slope, abs(correlation_slope) < inf, "finite"),
            ("correlation_center", correlation_center, abs(correlation_center) < inf, "finite"),
        ):
            if not fits:
                raise UserError(f"{name} is {value}; it must be {allowed}")
        self.num_latents = num_latents
        self.delta = delta
        self.near_share = near_share
        self.teacher_steps = teacher_steps
        self.step_share = step_share
        self.correlation_weight = correlation_weight
        self.correlation_slope = correlation_slope
        self.correlation_center = correlation_center
        self.control_variates = control_variates

    def check(self, teacher: DiffusionLM, student: DiffusionLM) -> None:
        """Refuse a student that is no mixture.

        Raises:
            UserError: if the student has no latent.
        """
        if not student.has_latent:
            raise UserError(
                "Di4C trains a mixture over the student's latent, but this student has none; set "
                "latent_global or latent_position above 0"
            )

    def times(self, draw: Draw) -> Tensor:
        """Times, float64 ``[B]``: U(0, delta) with chance ``near_share``, else U(delta, 1)."""
        u = stratified_times(*draw.strata(), draw.uniform(stream=Stream.TIME), minimum=0.0)
        near = u / self.near_share if self.near_share else u
        far = (u - self.near_share) / (1.0 - self.near_share) if self.near_share < 1 else u
        t = torch.where(u < self.near_share, self.delta * near, self.delta + (1 - self.delta) * far)
        return t.clamp(min=_FIRST_TIME)

    def coefficient(self, t: Tensor) -> Tensor:
        """c(t), the weight of the data's correlations, of the shape of ``t``."""
        slope = self.correlation_slope * (t - self.correlation_center)
        return self.correlation_weight * torch.sigmoid(slope)

    def student_loss(self, networks: Networks, tokens: Tensor, draw: Draw) -> LossSum:
        """The terms of all sequences, summed; gradient through p(. | x_t, lambda_i) alone."""
        check_pairing(self, networks.student.process)
        self.check(networks.teacher, networks.student)
        t = self.times(draw)
        noise = draw.uniform(tokens.shape[1], stream=Stream.CORRUPT)
        z = networks.student.process.corrupt(tokens, t, noise)
        parts = []
        near = t < self.delta
        for these, far in ((near, False), (~near, True)):
            if bool(these.any()):
                own = draw.rows(draw.sample[these])
                parts.append(self.terms(networks, tokens[these], z[these], t[these], own, far=far))
        terms = Terms(*(torch.cat(term) for term in zip(*parts, strict=True)))
        logs = {
            name: getattr(terms, name).detach().sum() / tokens.numel()
            for name in ("cor", "ind", "dist", "cons_cor", "cons_ind")
        }
        logs["student_entropy"] = mean(terms.entropy)
        return LossSum(terms.loss.sum(), tokens.numel(), logs, asked=terms.entropy.shape[0])

    def terms(
        self, networks: Networks, tokens: Tensor, z: Tensor, t: Tensor, draw: Draw, *, far: bool
    ) -> Terms:
        """The terms of given states.

        Args:
            networks: teacher and student.
            tokens: clean tokens, int64 ``[B, L]``.
            z: x_t, int64 ``[B, L]``.
            t: its times, float64 ``[B]``.
            draw: names latents, the teacher's steps and the draws after them.
            far: make consistent, as from ``delta`` on; otherwise distil.
        """
        student, process = networks.student, networks.student.process
        rows = scored(process, z)
        states = z.unsqueeze(1).expand(-1, self.num_latents, -1)
        hidden = self._features(student, states, t, draw, first=1)[rows]
        with torch.no_grad():
            seen = networks.teacher.features(z, process.schedule.sigma(t).float())
        later = self.later(networks, seen, z, t, draw) if far else ()

        def score(*tables: Tensor) -> tuple[Tensor, ...]:
            return self._score(networks, *tables)

        tables = (hidden, seen[rows], tokens[rows], z[rows], row_weights(t, rows), *later)
        numbers = self.num_latents * process.vocab_size
        spread, *found = in_chunks(score, *tables, numbers=numbers)
        # zeros where nothing is scored: sums over d are sums over all positions
        own, ind, second, *theirs = (
            x.new_zeros(*rows.shape, *x.shape[1:]).index_put((rows,), x) for x in found
        )
        cor = correlation(own, control=self.control_variates)
        dist = cons_cor = cons_ind = torch.zeros_like(cor)
        if far:
            cons_cor = correlation(*theirs, control=self.control_variates).mean(-1)
            cons_ind = second.sum(1)
        else:
            dist = second.sum(1)
        return Terms(cor, ind.sum(1), dist, cons_cor, cons_ind, self.coefficient(t), spread)

    def _score(self, networks: Networks, *tables: Tensor) -> tuple[Tensor, ...]:
        """At M positions: entropy, log p_i(x0), ind, dist; or cons_ind last, and log p_i(xh_j)."""
        hidden, seen, x0, z, t, *later = tables
        student, process = networks.student, networks.student.process
        log_p = law(process, student.head(hidden), z.unsqueeze(1), t.unsqueeze(1))
        log_mixture = log_mean_exp(log_p, 1)
        with torch.no_grad():
            log_q = law(process, networks.teacher.head(seen), z, t)
        spread = entropy(log_p).mean(1)
        own = log_p.gather(-1, x0.reshape(-1, 1, 1).expand(*log_p.shape[:2], 1)).squeeze(-1)
        zero = torch.zeros_like(spread)
        ind = kl(log_q, log_mixture) if self.control_variates else zero
        if not later:
            return spread, own, ind, kl(log_q, log_p.mean(1))
        hidden_s, z_s, s, drawn = later
        cons_ind = zero
        if self.control_variates:
            with torch.no_grad():
                log_p_s = log_mean_exp(law(process, student.head(hidden_s), z_s, s), 1)
            cons_ind = kl(log_p_s, log_mixture)
        theirs = log_p.gather(-1, drawn.unsqueeze(1).expand(*log_p.shape[:2], -1))
        return spread, own, ind, cons_ind, theirs

    @torch.no_grad()
    def later(self, networks: Networks, seen: Tensor, z: Tensor, t: Tensor, draw: Draw) -> Later:
        """One ancestral step of the teacher for each latent, and what the student draws there.

        Args:
            networks: teacher and student; the student runs in eval mode.
            seen: the teacher's features of ``z``, ``[B, L, D]``.
            z: x_t, int64 ``[B, L]``.
            t: its times, float64 ``[B]``.
            draw: names the randomness.
        """
        student, process = networks.student, networks.student.process
        s = t - (self.step_share * t).clamp(max=1.0 / self.teacher_steps)
        z_s = self._teacher_step(networks.teacher, seen, z, s, t, draw)
        with _evaluating(student):
            hidden = self._features(student, z_s, s, draw, first=1 + self.num_latents)
        rows = scored(process, z)
        hidden, states = hidden[rows], z_s.transpose(1, 2)[rows]
        times = row_weights(s, rows).unsqueeze(1)
        noise = draw.uniform(*reversed(z_s.shape[1:]), stream=Stream.TOKEN)[rows]
        tables = (hidden, states, times.expand(states.shape), noise)
        drawn = drawn_tokens(student, *(x.flatten(0, 1) for x in tables))
        return Later(hidden, states, times, drawn.view_as(states))

    def _teacher_step(
        self, teacher: DiffusionLM, seen: Tensor, z: Tensor, s: Tensor, t: Tensor, draw: Draw
    ) -> Tensor:
        """n draws of the teacher's p(x_s | x_t), int64 ``[B, n, L]``."""
        process, n = teacher.process, self.num_latents
        before = z.unsqueeze(1).expand(-1, n, -1)
        noise = draw.uniform(*before.shape[1:], stream=Stream.REVEAL)
        asked = scored(process, before)
        if isinstance(process, Absorbing):
            asked = asked & (noise < process.reveal_probability(s, t).reshape(-1, 1, 1))
        tokens = drawn_tokens(
            teacher,
            seen.unsqueeze(1).expand(*before.shape, -1)[asked],
            before[asked],
            t.reshape(-1, 1, 1).expand(before.shape)[asked],
            draw.uniform(*before.shape[1:], stream=Stream.TEACHER)[asked],
        )
        after = before.masked_scatter(asked, tokens)
        if isinstance(process, Absorbing):
            return after
        x, now, noise = (value.flatten(0, 1) for value in (after, before, noise))
        s, t = s.repeat_interleave(n), t.repeat_interleave(n)
        return draw_posterior(cast(Uniform, process), x, now, s, t, noise).view_as(before)

    def _features(
        self, student: DiffusionLM, z: Tensor, t: Tensor, draw: Draw, *, first: int
    ) -> Tensor:
        """Features of states ``[B, n, L]``, each with a latent of its own, ``[B, L, n, D]``."""
        _, n, length = z.shape
        latents = (draw.branch(first + i).latent(student, length) for i in range(n))
        parts = zip(*cast(Iterable[Latent], latents), strict=True)
        # as the states: those of one sequence are neighbours
        joined = (None if p[0] is None else torch.stack(p, 1).flatten(0, 1) for p in parts)
        sigma = student.process.schedule.sigma(t).float().repeat_interleave(n)
        hidden = student.features(z.flatten(0, 1), sigma, Latent(*joined))
        return hidden.unflatten(0, (-1, n)).transpose(1, 2)


@contextmanager
def _evaluating(model: nn.Module) -> Iterator[None]:
    """Eval mode, and every module's own mode afterwards."""
    modes = [(module, module.training) for module in model.modules()]
    try:
        model.eval()
        yield
    finally:
        for module, training in modes:
            module.training = training
