"""The teacher's objective: the continuous-time masked NELBO of MDLM (arXiv 2406.07524, eq. 10)."""

from __future__ import annotations

from torch import Tensor

from idlm.errors import UserError
from idlm.models.modeling import DiffusionLM
from idlm.objectives.base import Draw, LossSum, row_weights
from idlm.objectives.chunks import sum_of_rows
from idlm.processes import Absorbing
from idlm.random import Stream


def masked_nelbo(model: DiffusionLM, tokens: Tensor, draw: Draw) -> LossSum:
    """Sum over tokens of -alpha'/(1-alpha) * 1[masked] * -log p(x0 | z_t), one time per sequence.

    Only masked positions go through the head, a chunk at a time: visible ones contribute zero by
    SUBS.

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

    def nelbo(hidden: Tensor, x0: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
        log_p = process.clean_log_probs(model.head(hidden))
        nll = -log_p.gather(-1, x0.unsqueeze(-1)).squeeze(-1)
        return weight * nll, nll

    weight = row_weights(process.schedule.weight(t), masked)
    tables = hidden[masked], tokens[masked], weight
    total, nll = sum_of_rows(nelbo, *tables, trained=model, vocab_size=process.vocab_size)
    return LossSum(total, tokens.numel(), {"masked_nll": nll / masked.sum()})
