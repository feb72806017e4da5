"""``idlm.generate``: samples in batches, reproducible one by one."""

from __future__ import annotations

import secrets
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from idlm.errors import UserError
from idlm.models.modeling import DiffusionLM
from idlm.processes import Absorbing
from idlm.sampling.ancestral import Callback, StepState, sample_ancestral

# tokens in flight per batch unless the caller says otherwise: fits a laptop and keeps it busy
_TOKENS_PER_BATCH = 16 * 1024
SAMPLING_DTYPE = "float64"


@dataclass(frozen=True)
class GenerationOutput:
    """Samples and what they cost.

    Attributes:
        tokens: int64 ``[N, L]`` on the CPU.
        nfe: network calls made for one batch, the largest over batches; a call in which only some
            of the batch's samples reveal a token counts.
        tokens_per_call: L / nfe.
        seconds: wall-clock time of the whole call.
        seed: the seed that was used; with it sample ``i`` can be made again, alone.
    """

    tokens: Tensor
    nfe: int
    tokens_per_call: float
    seconds: float
    seed: int


def check_request(
    model: DiffusionLM,
    *,
    num_samples: int,
    length: int,
    steps: int,
    temperature: float,
    top_p: float,
    batch_size: int | None,
) -> None:
    """Refuse what cannot be generated.

    Raises:
        UserError: naming the value, what is allowed and what to do.
    """
    if not isinstance(model.process, Absorbing):
        raise UserError(
            f"the model's process is {model.process.name!r}; this sampler needs 'absorbing'"
        )
    context = model.config.model_length
    for name, value in (("num_samples", num_samples), ("steps", steps), ("length", length)):
        if value < 1:
            raise UserError(f"{name} is {value}; it must be at least 1")
    if batch_size is not None and batch_size < 1:
        raise UserError(f"batch_size is {batch_size}; it must be at least 1, or left out")
    if length > context:
        raise UserError(
            f"length is {length} but the model was trained on {context} tokens; "
            f"ask for {context} or fewer"
        )
    if not 0.0 < temperature < float("inf"):
        raise UserError(f"temperature is {temperature}; it must be above 0 and finite, 1 is plain")
    if not 0.0 < top_p <= 1.0:
        raise UserError(f"top_p is {top_p}; it must be in (0, 1], 1 keeps every token")


@contextmanager
def _evaluating(model: DiffusionLM) -> Iterator[None]:
    was_training = model.training
    model.eval()
    try:
        with torch.inference_mode():
            yield
    finally:
        model.train(was_training)


@contextmanager
def _progress(shown: bool, batches: int, steps: int, callback: Callback | None) -> Iterator[Any]:
    """A step callback that also moves a progress bar when one was asked for."""
    if not shown:
        yield callback
        return
    from rich.progress import MofNCompleteColumn, Progress, TimeElapsedColumn

    columns = (*Progress.get_default_columns(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns) as bar:
        task = bar.add_task("generating", total=batches * steps)

        def moved(state: StepState) -> None:
            bar.advance(task)
            if callback is not None:
                callback(state)

        yield moved


def generate(
    model: DiffusionLM,
    num_samples: int = 1,
    length: int | None = None,
    steps: int = 16,
    *,
    temperature: float = 1.0,
    top_p: float = 1.0,
    seed: int | None = None,
    progress: bool = False,
    batch_size: int | None = None,
    first_index: int = 0,
    callback: Callback | None = None,
) -> GenerationOutput:
    """Generate token sequences with the ancestral sampler and float64 categorical draws.

    Args:
        model: what :func:`idlm.load` returns.
        num_samples: N.
        length: tokens per sample; the model's context by default.
        steps: sampler steps, each at most one network call.
        temperature: divides the logits of the clean-token prediction.
        top_p: nucleus of the clean-token prediction.
        seed: sample ``i`` is a function of (seed, i) alone; a random seed if not given.
        progress: show a progress bar.
        batch_size: samples in flight; chosen from the length if not given.
        first_index: number of the first sample, to continue or split a set of samples.
        callback: called with a :class:`~idlm.sampling.ancestral.StepState` after every step.

    Raises:
        UserError: for a request outside what the model can do.
    """
    length = model.config.model_length if length is None else length
    check_request(
        model,
        num_samples=num_samples,
        length=length,
        steps=steps,
        temperature=temperature,
        top_p=top_p,
        batch_size=batch_size,
    )
    if seed is None:
        seed = secrets.randbits(31)  # torch.seed() would reseed the caller's own generators
    size = batch_size or max(1, _TOKENS_PER_BATCH // length)
    batches = -(-num_samples // size)
    started = time.perf_counter()
    parts: list[Tensor] = []
    nfe = 0
    with _evaluating(model), _progress(progress, batches, steps, callback) as on_step:
        for start in range(0, num_samples, size):
            stop = min(start + size, num_samples)
            sample = torch.arange(start, stop, device=model.device) + first_index
            tokens, calls = sample_ancestral(
                model,
                sample,
                length,
                steps,
                seed=seed,
                temperature=temperature,
                top_p=top_p,
                callback=on_step,
            )
            parts.append(tokens.cpu())
            nfe = max(nfe, calls)
    seconds = time.perf_counter() - started
    return GenerationOutput(torch.cat(parts), nfe, length / nfe, seconds, seed)
