"""``idlm.generate``: samples in batches, reproducible one by one."""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from idlm.errors import UserError
from idlm.models.modeling import DiffusionLM
from idlm.sampling.base import ANCESTRAL, FLOAT64, RANDOM, Callback, Sampler, Settings, StepState
from idlm.sampling.checks import check_request
from idlm.sampling.registry import sampler_for
from idlm.sampling.requests import Canvas, make_canvas, stop_ids
from idlm.sampling.windows import sample_windows, window_bounds

__all__ = ["SAMPLING_DTYPE", "GenerationOutput", "check_request", "generate"]

# tokens in flight per batch unless the caller says otherwise: fits a laptop and keeps it busy
_TOKENS_PER_BATCH = 16 * 1024
SAMPLING_DTYPE = FLOAT64  # unless a caller asks for the research option


@dataclass(frozen=True)
class GenerationOutput:
    """Samples and what they cost.

    Attributes:
        tokens: int64 ``[N, L]`` on the CPU. Behind the end of a row stands its stop token, or the
            mask id if its infill was shorter than the longest, or V where the process has no mask.
        nfe: network calls made for one batch, the largest over batches; a call in which only some
            of the batch's samples take part counts.
        tokens_per_call: tokens written for the sample with the most of them, divided by nfe.
        seconds: wall-clock time of the whole call.
        seed: the seed that was used; with it sample ``i`` can be made again, alone.
        lengths: tokens of each row, prompt and stop token included, int64 ``[N]``.
    """

    tokens: Tensor
    nfe: int
    tokens_per_call: float
    seconds: float
    seed: int
    lengths: Tensor


def generate(
    model: DiffusionLM,
    num_samples: int = 1,
    length: int | None = None,
    steps: int = 16,
    *,
    prompt: Any = None,
    infill: Any = None,
    temperature: float = 1.0,
    top_p: float = 1.0,
    seed: int | None = None,
    progress: bool = False,
    order: str = RANDOM,
    tail: str = ANCESTRAL,
    stride: int | None = None,
    stop: Any = None,
    tokenizer: Any = None,
    batch_size: int | None = None,
    first_index: int = 0,
    callback: Callback | None = None,
    probabilities: bool = False,
    sampling_dtype: str = FLOAT64,
    sampler: Sampler | None = None,
) -> GenerationOutput:
    """Generate token sequences, with float64 categorical draws unless told otherwise.

    Given tokens are never noised, and stay as they are through every step.

    Args:
        model: what :func:`idlm.load` returns.
        num_samples: N; with a prompt or an infill for each sample it may be left at 1.
        length: tokens per sample, prompt included; the model's context by default.
        steps: sampler steps, each at most one network call; of each window if there are several.
        prompt: what every sample begins with. Token ids ``[P]``, or a single row, for all samples,
            ``[N, P]`` or N rows of any lengths for one each; or a text, or N texts.
        infill: a sequence with places to write, of any number and size. Token ids ``[L]``,
            ``[N, L]`` or N rows of any lengths in which None, or the mask id if the process has
            one, marks them; a pair (tokens, mask) of such rows with mask True there; or a text, or
            N texts, in which ``[MASK]`` is one token to write and ``[MASK:12]`` twelve. In text
            put a slot right behind a word: most tokens bring the space before them along.
        temperature: divides the logits of the clean-token prediction.
        top_p: nucleus of the clean-token prediction.
        seed: sample ``i`` is a function of (seed, i) alone; a random seed if not given.
        progress: show a progress bar on stderr.
        order: which positions reveal first: "random", as trained, or the surest by "confidence",
            "entropy" or "margin", at the price of diversity (see :mod:`idlm.sampling.orders`);
            the uniform process has no order.
        tail: how the uniform process ends: "ancestral", a last update with alpha_s = 1, or
            "greedy", one more network call and the likeliest token at every position (see
            :mod:`idlm.sampling.uniform`).
        stride: write in windows of the context's length, so that ``length`` may exceed it; each
            window keeps the last (context - stride) tokens and writes ``stride`` new ones.
        stop: a token id, a list of them, or "eos": a sample ends at the first one it writes.
        tokenizer: for texts and "eos"; the checkpoint's own by default.
        batch_size: samples in flight; chosen from the length if not given.
        first_index: number of the first sample, to continue or split a set of samples.
        callback: called with a :class:`~idlm.sampling.base.StepState` after every step.
        probabilities: whether the states hold the distributions that tokens were drawn from.
        sampling_dtype: "float64", exact; or "float32", the truncated races of several published
            codes, to measure what they do (see :mod:`idlm.sampling.float32`).
        sampler: one of your own in place of the process's. Which of the settings it heeds is its
            own affair; what the process has no use for is still refused.

    Raises:
        UserError: for a request outside what the model can do.
    """
    context = model.config.model_length
    check_request(
        model,
        num_samples=num_samples,
        length=context if length is None else length,
        steps=steps,
        temperature=temperature,
        top_p=top_p,
        batch_size=batch_size,
        order=order,
        tail=tail,
        sampling_dtype=sampling_dtype,
        stride=stride,
        first_index=first_index,
        seed=seed,
        sampler=sampler,
    )
    if infill is not None and stop is not None:
        raise UserError("stop ends a text, but an infill has its own end; leave stop or infill out")
    if probabilities and callback is None:
        raise UserError("probabilities are for a callback, and there is none; give one")
    if probabilities and sampling_dtype != FLOAT64:
        raise UserError(
            f"probabilities are of exact draws, and sampling_dtype is {sampling_dtype!r}; leave "
            "probabilities out"
        )
    canvas = make_canvas(
        model,
        num_samples,
        length,
        prompt=prompt,
        infill=infill,
        tokenizer=tokenizer,
        stride=stride,
    )
    stops = stop_ids(model, stop, tokenizer).to(model.device)
    if seed is None:
        seed = secrets.randbits(31)  # torch.seed() would reseed the caller's own generators
    settings = Settings(steps, seed, temperature, top_p, order, probabilities, tail, sampling_dtype)
    stride = stride or context
    started = time.perf_counter()
    batches = _batches(canvas, batch_size, context)
    planned = [settings.rounds * len(window_bounds(width, context, stride)) for _, width in batches]
    tokens, lengths, nfe = canvas.tokens.clone(), canvas.lengths.clone(), 0
    with _evaluating(model), _progress(progress, sum(planned), callback) as (on_step, reach):
        for number, (index, width) in enumerate(batches):
            rows, ends, calls = sample_windows(
                sampler or sampler_for(model.process, sampling_dtype),
                model,
                canvas.tokens[index, :width].to(model.device),
                canvas.write[index, :width].to(model.device),
                (index + first_index).to(model.device),
                settings,
                stride=stride,
                stop=stops,
                callback=on_step,
            )
            tokens[index, :width], lengths[index] = rows.cpu(), ends.cpu()
            nfe = max(nfe, calls)
            reach(sum(planned[: number + 1]))
    seconds = time.perf_counter() - started
    inside = torch.arange(tokens.shape[1]) < lengths.unsqueeze(1)
    most = int((canvas.write & inside).sum(1).max())
    return GenerationOutput(tokens, nfe, most / nfe, seconds, seed, lengths)


def _batches(canvas: Canvas, size: int | None, context: int) -> list[tuple[Tensor, int]]:
    """Rows that are sampled together, and their common length: no padding enters the network."""
    batches = []
    for width in canvas.lengths.unique().tolist():
        rows = (canvas.lengths == width).nonzero().squeeze(1)
        most = size or max(1, _TOKENS_PER_BATCH // min(width, context))
        batches += [(index, width) for index in rows.split(most)]
    return batches


@contextmanager
def _evaluating(model: DiffusionLM) -> Iterator[None]:
    was_training = model.training
    model.eval()
    try:
        # not inference_mode: what a callback keeps could then enter no computation with gradients
        with torch.no_grad():
            yield
    finally:
        model.train(was_training)


@contextmanager
def _progress(
    shown: bool, total: int, callback: Callback | None
) -> Iterator[tuple[Callback | None, Callable[[int], None]]]:
    """A step callback that also moves a bar when one was asked for, and a way to set the bar.

    A stop rule leaves steps out, which the end of a batch makes up for.
    """
    if not shown:
        yield callback, lambda steps: None
        return
    from rich.console import Console
    from rich.progress import MofNCompleteColumn, Progress, TimeElapsedColumn

    columns = (*Progress.get_default_columns(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=Console(stderr=True)) as bar:
        task = bar.add_task("generating", total=total)

        def moved(state: StepState) -> None:
            bar.advance(task)
            if callback is not None:
                callback(state)

        yield moved, lambda steps: bar.update(task, completed=steps)
