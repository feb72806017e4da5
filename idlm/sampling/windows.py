"""Text of any length, window after window (semi-autoregressive), with a stop rule.

The first window is as long as the model's context. Each further one moves on by ``stride``: its
first (context - stride) tokens are the text so far, clamped, and it writes ``stride`` new ones, the
last window as many as are missing (MDLM, arXiv 2406.07524, section 3.5). Windows lie at the same
places for every row, so a batch of unequal prompts needs no padding.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from idlm.models.modeling import DiffusionLM
from idlm.sampling.base import Callback, Sampler, Settings, StepState


def window_bounds(length: int, context: int, stride: int) -> list[tuple[int, int]]:
    """First position and end of every window over ``length`` tokens."""
    starts = range(0, max(length - context, 0) + stride, stride)
    return [(start, min(start + context, length)) for start in starts]


def sample_windows(
    sampler: Sampler,
    model: DiffusionLM,
    tokens: Tensor,
    write: Tensor,
    sample: Tensor,
    settings: Settings,
    *,
    stride: int,
    stop: Tensor,
    callback: Callback | None = None,
) -> tuple[Tensor, Tensor, int]:
    """Sample rows of one length in windows; up to the context, a single window is the sampler.

    Args:
        sampler: of the model's process.
        model: in eval mode.
        tokens: int64 ``[B, L]`` on the model's device.
        write: True where to write, bool ``[B, L]``.
        sample: running numbers of the rows, int64 ``[B]``.
        settings: steps of each window, seed, temperature, nucleus and order.
        stride: new tokens of each window after the first.
        stop: token ids, int64 ``[S]``. A row ends at the first of them that was written, looked
            for when a window is complete; it then costs no more calls.
        callback: called after every step with the whole rows that are still being written.

    Returns:
        Tokens ``[B, L]``, their stop token repeated behind a row's end; ends int64 ``[B]``; calls.
    """
    tokens, length = tokens.clone(), tokens.shape[1]
    ends = torch.full_like(sample, length)
    going = torch.arange(len(sample), device=sample.device)
    nfe = written = 0
    for number, (start, end) in enumerate(window_bounds(length, model.config.model_length, stride)):
        fresh = write[going, start:end]
        fresh[:, : written - start] = False
        written = end
        if not bool(fresh.any()):  # a prompt that fills the window, or every row has ended
            continue
        part, calls = sampler(
            model,
            tokens[going, start:end],
            fresh,
            sample[going],
            settings,
            window=number,
            callback=_whole_rows(callback, tokens[going], start, nfe),
        )
        nfe += calls
        tokens[going, start:end] = part
        if len(stop):
            found = fresh & torch.isin(part, stop)
            stopped = found.any(1)
            first = start + found.int().argmax(1) + 1
            ends[going] = torch.where(stopped, first, length)
            going = going[~stopped]
    last = tokens.gather(1, (ends - 1).unsqueeze(1))
    beyond = torch.arange(length, device=ends.device) >= ends.unsqueeze(1)
    return torch.where(beyond, last, tokens), ends, nfe


def _whole_rows(callback: Callback | None, rows: Tensor, start: int, nfe: int) -> Callback | None:
    """A callback that sees a window's states as states of whole rows ``[B, L]``."""
    if callback is None:
        return None

    def seen(state: StepState) -> None:
        end = start + state.tokens.shape[1]
        tokens, revealed = rows.clone(), torch.zeros_like(rows, dtype=torch.bool)
        tokens[:, start:end], revealed[:, start:end] = state.tokens, state.revealed
        sample = state.sample.clone()  # the sampler's own numbers the noise of the next step
        callback(
            replace(state, tokens=tokens, revealed=revealed, nfe=nfe + state.nfe, sample=sample)
        )

    return seen
