"""Whether a checkpoint is alive: the NELBO of a few rows beside that of knowing nothing."""

from __future__ import annotations

import math
from collections.abc import Iterable
from itertools import islice
from typing import Any, NamedTuple

import torch
from torch import Tensor

from idlm.data.packing import tokenize
from idlm.errors import UserError
from idlm.models.modeling import DiffusionLM
from idlm.objectives.base import Draw
from idlm.processes import Process
from idlm.random import Stream

_POSITIONS = 128  # whose logits are held at a time
_DOCUMENTS = 32


class Sanity(NamedTuple):
    """The NELBO of one batch beside that of a network which knows nothing.

    Attributes:
        nelbo: nats per token.
        uniform: of uniform predictions on the same corrupted batch, so with the same noise.
        rows: sequences in the batch.
        length: tokens in each.
    """

    nelbo: float
    uniform: float
    rows: int
    length: int

    @property
    def learned(self) -> bool:
        """Whether the network is at least one percent better than uniform predictions."""
        return math.isfinite(self.nelbo) and self.nelbo < 0.99 * self.uniform


@torch.no_grad()
def sanity_nelbo(model: DiffusionLM, tokens: Tensor, *, seed: int = 0) -> Sanity:
    """One-batch estimate of the continuous-time NELBO (MDLM eq. 10 for the absorbing process).

    Times are stratified over the batch. A generator gets one epsilon per row, so its value is an
    average over components and lies above the NELBO of their mixture.

    Args:
        model: the network.
        tokens: clean text, int64 ``[N, L]`` on the model's device.
        seed: of times, corruption and epsilon.

    Raises:
        UserError: if a token is none that the network knows.
    """
    process, (rows, length) = model.process, tokens.shape
    if (largest := int(tokens.max())) >= model.config.vocab_size:
        raise UserError(
            f"the tokenizer made token {largest} and the network knows {model.config.vocab_size}; "
            "give the tokenizer that belongs to the checkpoint"
        )
    draw = Draw(torch.arange(rows, device=tokens.device), rows, seed, 0)
    t = draw.times(Stream.TIME)
    z_t = process.corrupt(tokens, t, draw.uniform(length, stream=Stream.CORRUPT))
    sigma = process.schedule.sigma(t)
    total = uniform = 0.0
    for i in range(rows):  # row by row and in pieces: never a full [N, L, V]
        latent = model.sample_latent(draw.sample[i : i + 1], length, seed=seed, step=0)
        hidden = model.features(z_t[i : i + 1], sigma[i : i + 1], latent)
        for start in range(0, length, _POSITIONS):
            piece = slice(start, start + _POSITIONS)
            state = z_t[i : i + 1, piece]
            logits = model.head(hidden[:, piece])
            given = tokens[i : i + 1, piece], state, t[i : i + 1]
            total += _nats(process, logits, *given)
            uniform += _nats(process, torch.zeros_like(logits), *given)
    return Sanity(total / tokens.numel(), uniform / tokens.numel(), rows, length)


def _nats(process: Process, logits: Tensor, x0: Tensor, z_t: Tensor, t: Tensor) -> float:
    """The NELBO integrand of some positions, summed in nats."""
    nll = process.nll_per_token(process.log_probs(logits, z_t), x0, z_t, t)
    return float(nll.double().sum())


def text_rows(documents: Iterable[str], tokenizer: Any, *, rows: int, length: int) -> Tensor:
    """The first tokens of a text as rows, read no further than needed.

    Args:
        documents: an eos goes after each.
        tokenizer: of the checkpoint.
        rows: at most so many.
        length: tokens per row; a text of fewer gives one shorter row.

    Returns:
        int64 ``[N, L]``.

    Raises:
        UserError: if there is no text.
    """
    stream = iter(documents)
    found: list[Tensor] = []
    while sum(len(part) for part in found) < rows * length and (
        texts := list(islice(stream, _DOCUMENTS))
    ):
        found.append(torch.from_numpy(tokenize(texts, tokenizer).astype("int64")))
    if not found:
        raise UserError("there is no text to measure on; give --text FILE with some words in it")
    tokens = torch.cat(found)[: rows * length]
    length = min(length, len(tokens))
    return tokens[: len(tokens) // length * length].view(-1, length)
