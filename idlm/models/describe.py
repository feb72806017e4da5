"""What a checkpoint is: its layout, process, sizes, files, and a NELBO that shows it is alive."""

from __future__ import annotations

import hashlib
import math
from collections import Counter
from collections.abc import Iterable
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import safe_open
from torch import Tensor

from idlm.data.packing import tokenize
from idlm.errors import UserError
from idlm.models.cards import AVERAGED, RAW, UNKNOWN, Card
from idlm.models.config import SIZES
from idlm.models.files import WEIGHTS, fetch, read_json
from idlm.models.modeling import DiffusionLM
from idlm.models.published import layout_of
from idlm.models.tokenizers import mask_id
from idlm.models.weights import weight_files
from idlm.objectives.base import Draw
from idlm.processes import Process
from idlm.random import Stream

_DTYPES = {"F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16"}
_POSITIONS = 128  # whose logits are held at a time
_DOCUMENTS = 32


def describe(model: DiffusionLM) -> dict[str, Any]:
    """Process, schedule, sizes and parameter counts of a network, ready for JSON."""
    config = model.config
    named = dict(model.named_parameters())
    return {
        "process": config.process,
        "mask_id": mask_id(config),
        "schedule": config.schedule,
        "schedule_eps": config.schedule_eps,
        "time_conditioning": config.time_conditioning,
        "parameters": sum(p.numel() for p in named.values()),
        "latent_parameters": sum(p.numel() for k, p in named.items() if ".latent." in k),
        **{name: getattr(config, name) for name in SIZES},
        "latent_global": config.latent_global,
        "latent_position": config.latent_position,
    }


def not_finite(model: DiffusionLM) -> list[str]:
    """Names of the parameters that hold a NaN or an infinity."""
    return [name for name, p in model.named_parameters() if not bool(torch.isfinite(p).all())]


def describe_files(
    checkpoint: str | Path, *, revision: str | None = None, raw: bool = False
) -> dict[str, Any]:
    """Layout, dtypes, size and hashes of a checkpoint's files, ready for JSON.

    Args:
        checkpoint: folder, bundled name, hub id, or path of a Lightning ``.ckpt``.
        revision: hub revision.
        raw: whether the raw weights of a ``.ckpt`` are meant.

    Raises:
        UserError: if the checkpoint cannot be found.
    """
    path = fetch(checkpoint, *WEIGHTS, revision=revision)
    if path.is_file():
        from idlm.models.lightning_ckpt import read_lightning

        _, weights = read_lightning(path, raw=raw)
        dtypes = Counter(str(value.dtype).removeprefix("torch.") for value in weights.values())
        return _files("lightning", RAW if raw else AVERAGED, dtypes, [path])
    layout = layout_of(read_json(path))
    paths = weight_files(path)
    dtypes = Counter()
    for shard in paths:
        with safe_open(shard, "pt") as file:
            found = [file.get_slice(name).get_dtype() for name in file.keys()]  # noqa: SIM118
        dtypes.update(_DTYPES.get(dtype, dtype) for dtype in found)
    return _files(layout or UNKNOWN, UNKNOWN, dtypes, paths)


def _files(layout: str, weights: str, dtypes: Counter[str], paths: list[Path]) -> dict[str, Any]:
    return {
        "layout": layout,
        "weights": weights,
        "dtype": dict(dtypes.most_common()),
        "bytes": sum(path.stat().st_size for path in paths),
        "sha256": {path.name: _sha256(path) for path in paths},
    }


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with open(path, "rb") as stream:
        while piece := stream.read(1 << 22):
            digest.update(piece)
    return digest.hexdigest()


def method_of(card: Card | None) -> str:
    """How the weights were made, as far as a card of this toolkit says it."""
    if card is None or not card.ours:
        return UNKNOWN
    paragraphs = [part for part in card.intro.split("\n\n") if not part.startswith(("#", "```"))]
    return " ".join(paragraphs[0].split()) if paragraphs else UNKNOWN


def kind_of_weights(card: Card | None) -> str:
    """Averaged or raw, as far as a card of this toolkit says it."""
    intro = card.intro if card is not None and card.ours else ""
    return next((kind for kind in (AVERAGED, RAW) if kind in intro), UNKNOWN)


class Sanity(NamedTuple):
    """The NELBO of one batch beside that of a network which knows nothing.

    Attributes:
        nelbo: nats per token.
        uniform: of uniform predictions on the same corrupted batch, so with the same noise.
        rows: sequences in the batch.
        length: tokens in each.
    """

    nelbo: float
    uniform: float
    rows: int
    length: int

    @property
    def learned(self) -> bool:
        """Whether the network is at least one percent better than uniform predictions."""
        return math.isfinite(self.nelbo) and self.nelbo < 0.99 * self.uniform


@torch.no_grad()
def sanity_nelbo(model: DiffusionLM, tokens: Tensor, *, seed: int = 0) -> Sanity:
    """One-batch estimate of the continuous-time NELBO (MDLM eq. 10 for the absorbing process).

    Times are stratified over the batch. A generator gets one epsilon per row, so its value is an
    average over components and lies above the NELBO of their mixture.

    Args:
        model: the network.
        tokens: clean text, int64 ``[N, L]`` on the model's device.
        seed: of times, corruption and epsilon.

    Raises:
        UserError: if a token is none that the network knows.
    """
    process, (rows, length) = model.process, tokens.shape
    if (largest := int(tokens.max())) >= model.config.vocab_size:
        raise UserError(
            f"the tokenizer made token {largest} and the network knows {model.config.vocab_size}; "
            "give the tokenizer that belongs to the checkpoint"
        )
    draw = Draw(torch.arange(rows, device=tokens.device), rows, seed, 0)
    t = draw.times(Stream.TIME)
    z_t = process.corrupt(tokens, t, draw.uniform(length, stream=Stream.CORRUPT))
    sigma = process.schedule.sigma(t)
    total = uniform = 0.0
    for i in range(rows):  # row by row and in pieces: never a full [N, L, V]
        latent = model.sample_latent(draw.sample[i : i + 1], length, seed=seed, step=0)
        hidden = model.features(z_t[i : i + 1], sigma[i : i + 1], latent)
        for start in range(0, length, _POSITIONS):
            piece = slice(start, start + _POSITIONS)
            state = z_t[i : i + 1, piece]
            logits = model.head(hidden[:, piece])
            given = tokens[i : i + 1, piece], state, t[i : i + 1]
            total += _nats(process, logits, *given)
            uniform += _nats(process, torch.zeros_like(logits), *given)
    return Sanity(total / tokens.numel(), uniform / tokens.numel(), rows, length)


def _nats(process: Process, logits: Tensor, x0: Tensor, z_t: Tensor, t: Tensor) -> float:
    """The NELBO integrand of some positions, summed in nats."""
    nll = process.nll_per_token(process.log_probs(logits, z_t), x0, z_t, t)
    return float(nll.double().sum())


def text_rows(documents: Iterable[str], tokenizer: Any, *, rows: int, length: int) -> Tensor:
    """The first tokens of a text as rows, read no further than needed.

    Args:
        documents: an eos goes after each.
        tokenizer: of the checkpoint.
        rows: at most so many.
        length: tokens per row; a text of fewer gives one shorter row.

    Returns:
        int64 ``[N, L]``.

    Raises:
        UserError: if there is no text.
    """
    stream = iter(documents)
    found: list[Tensor] = []
    while sum(len(part) for part in found) < rows * length and (
        texts := list(islice(stream, _DOCUMENTS))
    ):
        found.append(torch.from_numpy(tokenize(texts, tokenizer).astype("int64")))
    if not found:
        raise UserError("there is no text to measure on; give --text FILE with some words in it")
    tokens = torch.cat(found)[: rows * length]
    length = min(length, len(tokens))
    return tokens[: len(tokens) // length * length].view(-1, length)
