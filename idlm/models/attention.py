"""Bidirectional attention: SDPA everywhere, flash-attn where it is installed and allowed."""

from __future__ import annotations

from functools import lru_cache
from importlib.util import find_spec

import torch
import torch.nn.functional as F
from torch import Tensor

from idlm.errors import UserError

BACKENDS = ("auto", "sdpa", "flash")


@lru_cache(maxsize=1)
def flash_attn_installed() -> bool:
    """Whether the optional flash-attn package can be imported."""
    return find_spec("flash_attn") is not None


def check_backend(backend: str) -> None:
    """Refuse an attention backend that does not exist or is not installed.

    Raises:
        UserError: naming the choice and the remedy.
    """
    if backend not in BACKENDS:
        raise UserError(f"attention is {backend!r}; choose one of {', '.join(BACKENDS)}")
    if backend == "flash" and not flash_attn_installed():
        raise UserError(
            "attention is 'flash' but flash-attn is not installed; "
            "run `pip install idlm[flash-attn]` or choose 'auto'"
        )


def attend(q: Tensor, k: Tensor, v: Tensor, *, backend: str) -> Tensor:
    """Softmax attention without mask, scale 1/sqrt(head size).

    Args:
        q: queries ``[B, M, H, E]``.
        k: keys ``[B, L, H, E]``.
        v: values, alike.
        backend: ``auto`` takes flash-attn on CUDA in half precision when it is installed and
            SDPA otherwise; ``sdpa`` and ``flash`` insist.

    Returns:
        ``[B, M, H, E]``.
    """
    half = q.is_cuda and q.dtype in (torch.float16, torch.bfloat16)
    if backend == "flash" and not half:
        raise UserError(
            f"attention is 'flash' but the tensors are {q.dtype} on {q.device.type}; "
            "flash-attn needs CUDA and half precision, so set precision to bf16-mixed or "
            "attention to 'auto'"
        )
    if half and backend != "sdpa" and flash_attn_installed():
        from flash_attn import flash_attn_func

        return flash_attn_func(q, k, v)
    out = F.scaled_dot_product_attention(q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2))
    return out.transpose(1, 2)


def rotary_tables(inv_freq: Tensor, length: int) -> tuple[Tensor, Tensor]:
    """cos and sin of position x frequency, ``[L, 1, E]``, angles repeated as [angles, angles]."""
    position = torch.arange(length, device=inv_freq.device, dtype=inv_freq.dtype)
    angle = torch.outer(position, inv_freq)
    angle = torch.cat([angle, angle], dim=-1).unsqueeze(1)
    return angle.cos(), angle.sin()


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotary embedding in rotate-half form, pairs (j, j + E/2), for ``[B, L, H, E]``.

    Args:
        x: queries or keys.
        cos: of all positions ``[L, 1, E]``, or of each row's own ``[B, L, 1, E]``.
        sin: alike.
    """
    first, second = x.chunk(2, dim=-1)
    return x * cos + torch.cat([-second, first], dim=-1) * sin
