"""The uniform teacher's objective: the continuous-time NELBO of UDLM (arXiv 2412.10193).

Also the second half of Duo's training (arXiv 2506.10892); its first half, the curriculum on
relaxed states, is not here.
"""

from __future__ import annotations

from torch import Tensor

from idlm.errors import UserError
from idlm.models.modeling import DiffusionLM
from idlm.objectives.base import Draw, LossSum
from idlm.objectives.nelbo import token_nelbo
from idlm.processes import Uniform


def uniform_nelbo(model: DiffusionLM, tokens: Tensor, draw: Draw) -> LossSum:
    """Sum over tokens of :meth:`idlm.processes.Uniform.nll_per_token`, one time per sequence.

    Args:
        model: a denoiser of the uniform process.
        tokens: clean tokens, int64 ``[B, L]``.
        draw: names the randomness.

    Returns:
        The sum in nats; its mean is the NELBO per token.

    Raises:
        UserError: if the model is of another process.
    """
    process = model.process
    if not isinstance(process, Uniform):
        raise UserError(
            f"the uniform NELBO is defined for the uniform process, but the model's process is "
            f"{process.name!r}; train a uniform model"
        )
    return token_nelbo(model, tokens, draw)
