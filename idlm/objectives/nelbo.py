"""The continuous-time NELBO of a model of any process over tokens, as a loss."""

from __future__ import annotations

from torch import Tensor

from idlm.models.modeling import DiffusionLM
from idlm.objectives.base import Draw, LossSum
from idlm.objectives.chunks import over_positions
from idlm.random import Stream


def token_nelbo(model: DiffusionLM, tokens: Tensor, draw: Draw) -> LossSum:
    """Sum over tokens of the process's ``nll_per_token``, one time per sequence.

    Every position counts, in chunks: no table of ``[B, L, V]`` is held. For the absorbing process
    :func:`~idlm.objectives.mdlm.masked_nelbo` is the same number for less work.

    Args:
        model: a denoiser.
        tokens: clean tokens, int64 ``[B, L]``.
        draw: names the randomness.

    Returns:
        The sum in nats; its mean is the NELBO per token.
    """
    process = model.process
    t = draw.times(Stream.TIME)
    z_t = process.corrupt(tokens, t, draw.uniform(tokens.shape[1], stream=Stream.CORRUPT))
    hidden = model.features(z_t, process.schedule.sigma(t))

    def nelbo(hidden: Tensor, x0: Tensor, z: Tensor) -> tuple[Tensor]:
        return (process.nll_per_token(process.log_probs(model.head(hidden), z), x0, z, t),)

    (nll,) = over_positions(nelbo, hidden, tokens, z_t, vocab_size=process.vocab_size)
    return LossSum(nll.sum(), tokens.numel())
