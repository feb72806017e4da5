"""Measuring a cell: its samples are made, scored, and stored with their conditions."""

from __future__ import annotations

import functools
import hashlib
import platform
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from idlm.errors import UserError
from idlm.evaluation.cell import SAMPLERS, Cell
from idlm.evaluation.keep import keep_samples
from idlm.evaluation.scoring import score
from idlm.metrics import Evaluator, load_evaluator
from idlm.models import DiffusionLM, decode, fetch, load, load_tokenizer
from idlm.sampling.ancestral import Callback
from idlm.sampling.generate import check_request, generate

__all__ = ["Cell", "measure", "measure_each", "measure_reference", "weights_revision"]

BATCH_SIZE = 16


@dataclass
class CallCount:
    """Forward passes of a network, seen from outside the sampler.

    Attributes:
        calls: forward passes.
        rows: sequences in them, summed.
    """

    calls: int = 0
    rows: int = 0


@contextmanager
def count_calls(model: DiffusionLM) -> Iterator[CallCount]:
    """Count the calls of ``model.backbone`` by a forward hook while the context lasts."""
    count = CallCount()

    def hook(module: torch.nn.Module, inputs: tuple[Any, ...], output: Any) -> None:
        count.calls += 1
        count.rows += int(inputs[0].shape[0])

    handle = model.backbone.register_forward_hook(hook)
    try:
        yield count
    finally:
        handle.remove()


def weights_revision(checkpoint: str | Path, *, revision: str | None = None) -> str:
    """A name of a checkpoint's weights: the first 12 hex digits of their sha256.

    Args:
        checkpoint: folder, bundled name, hub id or Lightning file.
        revision: hub revision.

    Raises:
        UserError: if the checkpoint cannot be found or holds no safetensors.
    """
    folder = fetch(checkpoint, "*.json", "*.safetensors", "*.txt", "*.model", revision=revision)
    files = [folder] if folder.is_file() else sorted(folder.glob("*.safetensors"))
    if not files:
        raise UserError(f"{folder} has no .safetensors file; give a checkpoint folder or hub id")
    digest = hashlib.sha256()
    for file in files:
        with open(file, "rb") as stream:
            while piece := stream.read(1 << 22):
                digest.update(piece)
    return f"sha256:{digest.hexdigest()[:12]}"


@functools.lru_cache(maxsize=4)
def _open(
    checkpoint: str, revision: str | None, weights: str, device: str, dtype: str
) -> tuple[DiffusionLM, Any]:
    """Model and tokenizer; the weights' hash is in the key so that a new export is read again."""
    model = load(checkpoint, revision=revision, device=device, dtype=getattr(torch, dtype))
    return model, load_tokenizer(checkpoint, revision=revision)


@functools.lru_cache(maxsize=2)
def open_evaluator(name: str, device: str, dtype: str = "float32") -> Evaluator:
    """The judging model, loaded once per process."""
    return load_evaluator(name, device=device, dtype=dtype)


def measure(
    cell: Cell,
    *,
    evaluator: str | Evaluator,
    device: str = "cpu",
    batch_size: int = BATCH_SIZE,
    save_samples: str | Path | None = None,
    callback: Callback | None = None,
) -> dict[str, Any]:
    """Generate the samples of a cell and measure them: :func:`measure_each` with one evaluator.

    Args:
        cell: what to generate.
        evaluator: causal language model that judges: path, bundled name, hub id or loaded.
        device: of both models: cpu, cuda or cuda:N.
        batch_size: sequences generated together; changes the speed and nothing else.
        save_samples: path of a samples.jsonl to write.
        callback: called after every sampler step, for progress bars.

    Raises:
        UserError: if a model cannot be loaded or the cell cannot be generated.
    """
    judge = evaluator if isinstance(evaluator, Evaluator) else open_evaluator(evaluator, device)
    [found] = measure_each(
        cell,
        evaluators=[judge],
        device=device,
        batch_size=batch_size,
        save_samples=save_samples,
        callback=callback,
    )
    return found


def measure_each(
    cell: Cell,
    *,
    evaluators: Sequence[Evaluator],
    eos: str = "published",
    device: str = "cpu",
    batch_size: int = BATCH_SIZE,
    save_samples: str | Path | None = None,
    callback: Callback | None = None,
) -> list[dict[str, Any]]:
    """Generate the samples of a cell once and measure them under each evaluator.

    Generative perplexity re-tokenises the text and scores samples one by one, so that it does
    not depend on a batch size and comes with a standard error. Entropy is the mean per-sequence
    unigram entropy in nats on the model's own tokens. Network calls are counted by a hook on the
    network; the sampler's own count is stored beside them.

    Args:
        cell: what to generate.
        evaluators: the judging models.
        eos: which tokens count, "published" or "strict".
        device: of the generator: cpu, cuda or cuda:N.
        batch_size: sequences generated together; changes the speed and nothing else.
        save_samples: path of a samples.jsonl to write.
        callback: called after every sampler step, for progress bars.

    Returns:
        For each evaluator the fields of the cell, the numbers, and what they depend on.

    Raises:
        UserError: if a model cannot be loaded or the cell cannot be generated.
    """
    revision = weights_revision(cell.checkpoint, revision=cell.revision)
    model, tokenizer = _open(cell.checkpoint, cell.revision, revision, device, cell.network_dtype)
    tokens, cost = _generate(model, cell, batch_size=batch_size, callback=callback)
    texts = decode(tokenizer, tokens)
    if save_samples is not None:
        header = {
            **asdict(cell),
            **SAMPLERS[cell.sampler],
            "revision": revision,
            "nfe": cost["network_calls"],
            "tokens_per_call": cost["tokens_per_call"],
            "seconds": cost["seconds"],
        }
        keep_samples(save_samples, tokens, texts, header=header)
    return [
        {
            **asdict(cell),
            **SAMPLERS[cell.sampler],  # order or tail, as samples.jsonl and model cards name them
            "checkpoint_revision": revision,
            **cost,
            **score(tokens, texts, judge, device=device, eos=eos),
            "machine": machine(device),
        }
        for judge in evaluators
    ]


def _generate(
    model: DiffusionLM, cell: Cell, *, batch_size: int, callback: Callback | None
) -> tuple[Tensor, dict[str, Any]]:
    """Tokens ``[N, L]`` of a cell and what they cost, batch by batch."""
    settings: dict[str, Any] = {
        "temperature": cell.temperature,
        "top_p": cell.top_p,
        "sampling_dtype": cell.sampling_dtype,
        **SAMPLERS[cell.sampler],
    }
    check_request(
        model,
        num_samples=cell.num_samples,
        length=cell.length,
        steps=cell.steps,
        batch_size=batch_size,
        **settings,
    )
    parts: list[Tensor] = []
    calls = sampler_calls = 0
    started = time.perf_counter()
    with count_calls(model) as counted:
        for first in range(0, cell.num_samples, batch_size):
            size = min(batch_size, cell.num_samples - first)
            before = counted.calls
            out = generate(
                model,
                size,
                cell.length,
                cell.steps,
                seed=cell.seed,
                batch_size=size,
                first_index=first,
                callback=callback,
                **settings,
            )
            parts.append(out.tokens)
            calls = max(calls, counted.calls - before)
            sampler_calls = max(sampler_calls, out.nfe)
    return torch.cat(parts), {
        "network_calls": calls,  # of a batch, the largest
        "network_calls_mean": counted.rows / cell.num_samples,  # of a sample
        "sampler_calls": sampler_calls,
        "tokens_per_call": cell.length / calls,
        "seconds": time.perf_counter() - started,
        "batch_size": batch_size,
    }


def machine(device: str) -> dict[str, Any]:
    """What speed, and the last digits of fp32 sums, depend on."""
    name = torch.cuda.get_device_name(device) if device.startswith("cuda") else platform.machine()
    return {
        "device": device,
        "hardware": name,
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "python": platform.python_version(),
    }


def measure_reference(
    corpus: str,
    split: str,
    *,
    tokenizer: str,
    evaluator: str | Evaluator,
    length: int,
    rows: int | None = None,
    device: str = "cpu",
    eos: str = "published",
) -> dict[str, Any]:
    """Held-out text under the same evaluator: what a perfect generator would score.

    Args:
        corpus: as for :class:`idlm.data.PackedDataModule`.
        split: "train" or "validation".
        tokenizer: checkpoint whose tokens the entropy is about.
        evaluator: the judging model.
        length: tokens per row.
        rows: how many, evenly spaced over the split; None for all.
        device: of the evaluator.
        eos: which tokens count, "published" or "strict".

    Raises:
        UserError: if the corpus cannot be had or the split fills no row.
    """
    from idlm.data import PackedDataModule

    data = PackedDataModule(corpus, tokenizer=str(fetch(tokenizer)), length=length)
    packed = data.rows(split)
    wanted = len(packed) if rows is None else min(rows, len(packed))
    chosen = packed[[i * len(packed) // wanted for i in range(wanted)]]
    tokens = torch.tensor(chosen.astype("int64"))
    judge = evaluator if isinstance(evaluator, Evaluator) else open_evaluator(evaluator, device)
    return {
        "corpus": corpus,
        "split": split,
        "content": data.metadata[split]["content"],
        "num_samples": len(tokens),
        "length": length,
        **score(tokens, decode(load_tokenizer(tokenizer), tokens), judge, device=device, eos=eos),
        "machine": machine(device),
    }
