"""Which tokens a judging language model is asked about: the end-of-text rules, and input checks."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from idlm.errors import UserError
from idlm.metrics.evaluators import Evaluator

EOS_RULES = ("published", "strict")


def scored_positions(
    tokens: Tensor, eos_ids: Sequence[int], rule: str, attention: Tensor | None = None
) -> Tensor:
    """Which of the tokens ``1 .. L-1`` count, the end-of-text rules of GenPPL.

    "published" (the MDLM, Duo and IDLM code): every token that is not eos counts, also after an
    eos, and of the eos tokens the first of the row does. A row padded with eos that holds none
    of its own thus has its first pad token scored; in that code the two conditions are added,
    which for a mask is OR. "strict": a row ends with its first eos, which counts, and nothing
    after it does; padding never counts.

    The first token has no context and is never scored, but an eos there is the row's first.

    Args:
        tokens: ``[B, L]`` int64, padded on the right with eos.
        eos_ids: ids that end a text; none means that every token counts.
        rule: "published" or "strict".
        attention: 1 at real tokens, 0 at padding, ``[B, L]``; None for unpadded rows.

    Returns:
        Boolean ``[B, L-1]``, for tokens ``1 .. L-1``.
    """
    is_eos = torch.isin(tokens, torch.tensor(eos_ids, dtype=tokens.dtype, device=tokens.device))
    seen = is_eos.long().cumsum(-1)
    if rule == "published":
        return (~is_eos | (seen == 1))[:, 1:]
    counted = seen - is_eos.long() == 0
    if attention is not None:
        counted &= attention.bool()
    return counted[:, 1:]


def check_rule(eos: str) -> str:
    """Return ``eos`` if it names a rule.

    Raises:
        UserError: if not.
    """
    if eos not in EOS_RULES:
        raise UserError(f"eos={eos!r} is unknown: use one of {', '.join(EOS_RULES)}")
    return eos


def check_tokens(tokens: Tensor, evaluator: Evaluator) -> Tensor:
    """Token rows on the evaluator's device, as int64.

    Raises:
        ValueError: if they are not integer rows ``[B, L]``.
        UserError: if they are outside the evaluator's vocabulary.
    """
    if tokens.ndim != 2 or tokens.is_floating_point():
        raise ValueError(
            f"tokens have shape {tuple(tokens.shape)} and dtype {tokens.dtype}: give integer "
            "rows [B, L]"
        )
    size = int(evaluator.model.config.vocab_size)
    if tokens.numel() and (int(tokens.min()) < 0 or int(tokens.max()) >= size):
        raise UserError(
            f"tokens run from {int(tokens.min())} to {int(tokens.max())} but evaluator "
            f"{evaluator.name!r} knows 0 to {size - 1}: a different vocabulary, or masks left in "
            "the samples, need retokenize=True"
        )
    # A copy, since rows made under torch.inference_mode cannot be used where gradients are.
    return tokens.to(evaluator.device, torch.int64).clone()
