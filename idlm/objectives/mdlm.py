"""The teacher's objective: the continuous-time masked NELBO of MDLM (arXiv 2406.07524, eq. 10)."""

from __future__ import annotations

import torch
from torch import Tensor

from idlm.errors import UserError
from idlm.models.modeling import DiffusionLM
from idlm.objectives.base import Draw, LossSum, mean, row_weights
from idlm.processes import Absorbing
from idlm.random import Stream


def masked_nelbo(model: DiffusionLM, tokens: Tensor, draw: Draw) -> LossSum:
    """Sum over tokens of -alpha'/(1-alpha) * 1[masked] * -log p(x0 | z_t), one time per sequence.

    Only masked positions go through the head: visible ones contribute zero by SUBS.

    Args:
        model: a denoiser of the absorbing process.
        tokens: clean tokens, int64 ``[B, L]``.
        draw: names the randomness.

    Returns:
        The sum in nats; its mean is the NELBO per token.

    Raises:
        UserError: if the model is of another process.
    """
    process = model.process
    if not isinstance(process, Absorbing):
        raise UserError(
            f"the masked NELBO is defined for the absorbing process, but the model's process is "
            f"{process.name!r}; train a masked model"
        )
    t = draw.times(Stream.TIME)
    z_t = process.corrupt(tokens, t, draw.uniform(tokens.shape[1], stream=Stream.CORRUPT))
    masked = z_t == process.mask_id
    hidden = model.features(z_t, process.schedule.sigma(t))
    log_p = process.clean_log_probs(model.head(hidden[masked]))
    nll = -log_p.gather(-1, tokens[masked].unsqueeze(-1)).squeeze(-1)
    total = (row_weights(process.schedule.weight(t), masked) * nll).sum()
    with torch.no_grad():
        logs = {"masked_nll": mean(nll)}
    return LossSum(total, tokens.numel(), logs)
