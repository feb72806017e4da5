"""Perplexity of a diffusion language model itself: the NELBO of held-out rows of tokens.

Not the perplexity of its samples under another model (:mod:`idlm.metrics.perplexity`): here the
model is judged by what it thinks of real text, as the papers do for teachers.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor
from torchmetrics import Metric

from idlm import random
from idlm.errors import UserError
from idlm.metrics.nelbo import diffusion_nats, reconstruction_nats
from idlm.models.modeling import DiffusionLM
from idlm.random import Stream
from idlm.schedules import Schedule, stratified_times

PUBLISHED = "published"
WHOLE = "whole"
INTERVALS = (PUBLISHED, WHOLE)
# The published sampling_eps (methods A.2): where the integral over times begins.
FIRST_TIME = 1e-3
# Keeps alpha above 0 at the end of the whole interval, where float64 could round it there.
_BELOW_END = 1.0 - 1e-12

STATEMENTS = {
    PUBLISHED: (
        "mean of the NELBO's integrand over t in [0.001, 1), as published numbers are computed; "
        "the NELBO is an upper bound of the negative log-likelihood, and this value leaves out "
        "its two ends, a thousandth of the time each"
    ),
    WHOLE: (
        "an unbiased estimate of an upper bound of the negative log-likelihood: reconstruction at "
        "t = 0.001 plus the integral from there to pure noise"
    ),
}


class NelboPerplexity(Metric):
    """Nats per token and perplexity of token rows by the continuous-time NELBO.

    Every row is noised ``draws`` times. A draw is one estimate of the whole corpus; the value is
    the mean over draws, and its Monte-Carlo error is that of this mean (sample standard deviation
    over draws / sqrt(draws)). It says how far the times and corruptions may be off, not how another
    text would differ.

    Times are stratified: of ``strata`` rows that follow one another each has a stratum of its own,
    at an offset drawn anew for every draw, so that every row meets all times (methods A.2; with the
    published fixed assignment a mean over draws would not tend to the corpus's NELBO).

    ``interval`` says what is integrated. "published": the mean over t in [0.001, 1), the loss and
    validation number of MDLM, UDLM and Duo. "whole": a strict upper bound in expectation, for a
    sampler with infinitely many steps from pure noise to t = 0.001 and one ancestral step to 0::

        E[-log p(x | z_0.001)] + integral over t from 0.001 to the time at which alpha would be 0

    where the network is told time 1 beyond time 1. It takes one more network call per row and draw.

    The tokens that count are all of the row's, as in the papers: also those that the corruption
    leaves visible, whose nats are 0. A row whose value is not finite is counted and makes the
    perplexity inf or nan: left out, it would reward a model that thinks a real token impossible.

    Args:
        model: what :func:`idlm.load` returns; its process has the NELBO's integrand. A generator
            gets a fresh epsilon for every row and draw, which is a bound, too, but a loose one.
        draws: how often each row is noised, 2 or more.
        strata: rows that share out the interval of times.
        interval: "published" or "whole".
        seed: of times, corruptions and epsilons.
        batch_size: rows per forward pass; the value does not depend on it.

    Raises:
        UserError: if a number is out of range.
    """

    full_state_update = False
    higher_is_better = False
    nats: Tensor
    token_count: Tensor
    row_count: Tensor
    failed_rows: Tensor

    def __init__(
        self,
        model: DiffusionLM,
        *,
        draws: int = 4,
        strata: int = 64,
        interval: str = PUBLISHED,
        seed: int = 0,
        batch_size: int = 8,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        check_settings(draws=draws, strata=strata, interval=interval, batch_size=batch_size)
        self.draws, self.strata, self.interval = draws, strata, interval
        self.seed, self.batch_size = seed, batch_size
        # not a submodule: the metric's device and dtype are no business of the model's
        self._model = [model.eval()]
        self._found: dict[str, float | int] = {}
        self.add_state("nats", torch.zeros(draws, dtype=torch.float64), dist_reduce_fx="sum")
        for name in ("token_count", "row_count", "failed_rows"):
            self.add_state(name, torch.zeros((), dtype=torch.int64), dist_reduce_fx="sum")

    def update(self, tokens: Tensor, index: Tensor | None = None) -> None:
        """Score rows.

        Args:
            tokens: clean rows, int64 ``[B, L]``.
            index: the running number of each row in the whole corpus, int64 ``[B]``, which names
                its noise; counted on from the last update if not given. Processes that share a
                corpus give it, so that each row has noise of its own.

        Raises:
            UserError: if a token is none that the network knows.
        """
        if index is None:
            index = torch.arange(len(tokens)) + int(self.row_count)
        model = self._model[0]
        _check_tokens(model, tokens)
        for rows, numbers in zip(
            tokens.split(self.batch_size), index.split(self.batch_size), strict=True
        ):
            rows, numbers = rows.to(model.device), numbers.to(model.device)
            values = torch.stack([self._score(rows, numbers, draw) for draw in range(self.draws)])
            self.nats += values.sum(1).to(self.nats.device)
            self.token_count += rows.numel()
            self.failed_rows += int((~torch.isfinite(values).all(0)).sum())
            self.row_count += len(rows)

    def compute(self) -> Tensor:
        """The perplexity exp(nats per token), a float64 scalar; nan without a row."""
        per_token = self.nats / self.token_count
        # of all processes, which only compute() sees
        self._found = {
            "nats_per_token": float(per_token.mean()),
            "nats_per_token_stderr": float(per_token.std()) / math.sqrt(self.draws),
            "tokens": int(self.token_count),
            "rows": int(self.row_count),
            "failed_rows": int(self.failed_rows),
        }
        return per_token.mean().exp()

    def details(self) -> dict[str, float | int]:
        """The value with its Monte-Carlo error; in nats per token, and as a perplexity.

        Counts are those of all processes; call it on every one of them.
        """
        perplexity = float(self.compute())
        # first order: the error is small, or more draws are wanted
        error = perplexity * self._found["nats_per_token_stderr"]
        return {**self._found, "perplexity": perplexity, "perplexity_stderr": error}

    def conditions(self) -> dict[str, Any]:
        """What the value must be printed with."""
        model = self._model[0]
        return {
            "process": model.process.name,
            "interval": self.interval,
            "statement": STATEMENTS[self.interval],
            "draws": self.draws,
            "strata": self.strata,
            "seed": self.seed,
            "network_dtype": str(model.dtype).removeprefix("torch."),
            "network_calls": self.draws * (2 if self.interval == WHOLE else 1),
            "generator": model.has_latent,
        }

    def _score(self, tokens: Tensor, index: Tensor, draw: int) -> Tensor:
        """One estimate of each row's nats, float64 ``[B]``."""
        model, length = self._model[0], tokens.shape[1]
        key: dict[str, Any] = {"seed": self.seed, "step": draw}
        t, width = self._times(model.process.schedule, index, key)
        noise = random.uniform(length, sample=index, stream=Stream.CORRUPT, **key)
        latent = model.sample_latent(index, length, **key)
        nats = diffusion_nats(model, tokens, t, noise, latent=latent)
        if self.interval == PUBLISHED:
            return nats
        first = torch.full_like(t, FIRST_TIME)
        noise = random.uniform(length, sample=index, stream=Stream.RENOISE, **key)
        return width * nats + reconstruction_nats(model, tokens, first, noise, latent=latent)

    def _times(
        self, schedule: Schedule, index: Tensor, key: dict[str, Any]
    ) -> tuple[Tensor, float]:
        """Stratified times of one draw, float64 ``[B]``, and the length of their interval."""
        block = index // self.strata
        shift = random.uniform(sample=block, stream=Stream.PERMUTE, **key) * self.strata
        stratum = (index + shift.long()) % self.strata
        offset = random.uniform(sample=index, stream=Stream.TIME, **key)
        if self.interval == PUBLISHED:
            return stratified_times(stratum, self.strata, offset, minimum=FIRST_TIME), 1.0
        end = float(schedule.inverse(torch.zeros((), dtype=torch.float64)))
        u = (stratum + offset) / self.strata
        width = end - FIRST_TIME
        return (FIRST_TIME + width * u).clamp(max=end * _BELOW_END), width


def check_settings(*, draws: int, strata: int, interval: str, batch_size: int) -> None:
    """Refuse settings that give no number, or none with an error.

    Raises:
        UserError: naming the setting.
    """
    if interval not in INTERVALS:
        raise UserError(f"interval is {interval!r}; choose one of {', '.join(INTERVALS)}")
    if draws < 2:
        raise UserError(f"draws is {draws}; a standard error needs 2 or more")
    for name, value in (("strata", strata), ("batch_size", batch_size)):
        if value < 1:
            raise UserError(f"{name} is {value}; it must be 1 or more")


def _check_tokens(model: DiffusionLM, tokens: Tensor) -> None:
    process = model.process
    mask_id = process.mask_id
    known = process.vocab_size if mask_id is None else mask_id
    if tokens.numel() and (int(tokens.min()) < 0 or int(tokens.max()) >= known):
        bad = tokens[(tokens < 0) | (tokens >= known)][0]
        raise UserError(
            f"the text has the token {int(bad)} and the network knows 0 to {known - 1}; tokenise "
            "it with the tokenizer that belongs to the checkpoint"
        )
