"""The causal language model that judges: loading it, naming it, choosing what it scores."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch

from idlm.errors import UserError, reason
from idlm.paths import BUNDLED_EVALUATOR, resolve

_TOKENIZER = ("tokenizer.json", "vocab.json", "vocab.txt", "tokenizer.model", "spiece.model")
DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}


@dataclass
class Evaluator:
    """A causal language model with what must be said about it beside a number.

    It is no ``nn.Module``, so that a metric holding one does not put gigabytes into
    ``state_dict`` and does not move them about.
    """

    model: Any
    name: str
    tokenizer: Any = None
    revision: str | None = None
    folder: Path | None = None

    @property
    def device(self) -> torch.device:
        """Where the inputs go: the device of the first parameter."""
        return next(self.model.parameters()).device

    @property
    def dtype(self) -> str:
        """The dtype of the weights, such as "float32"."""
        return str(next(self.model.parameters()).dtype).removeprefix("torch.")

    @property
    def context(self) -> int:
        """How many tokens one forward pass takes."""
        config = self.model.config
        for key in ("n_positions", "max_position_embeddings", "n_ctx", "max_seq_len"):
            if isinstance(getattr(config, key, None), int):
                return int(getattr(config, key))
        return 1024

    @property
    def eos_ids(self) -> tuple[int, ...]:
        """End-of-text ids: the tokenizer's if there is one, else those of the model's config."""
        own = getattr(self.tokenizer, "eos_token_id", None)
        found = own if own is not None else getattr(self.model.config, "eos_token_id", None)
        if found is None:
            return ()
        return tuple(found) if isinstance(found, (list, tuple)) else (int(found),)

    def identity(self) -> dict[str, Any]:
        """Name, revision (hub commit, or a hash of the weights of a local folder) and dtype."""
        if self.revision is None and self.folder is not None:
            self.revision = _fingerprint(self.folder)
        return {
            "evaluator": self.name,
            "evaluator_revision": self.revision,
            "evaluator_dtype": self.dtype,
        }

    @contextmanager
    def judging(self) -> Iterator[torch.nn.Module]:
        """The model in eval mode; the mode it came in is restored, it may be in training."""
        training = self.model.training
        self.model.eval()
        try:
            yield self.model
        finally:
            self.model.train(training)


def load_evaluator(
    evaluator: Any,
    *,
    revision: str | None = None,
    device: str | torch.device | None = None,
    device_map: str | None = None,
    dtype: str = "float32",
) -> Evaluator:
    """Load a causal language model by path, bundled name or hub id, or wrap one in memory.

    Remote code is never run. A model given in memory keeps its dtype, and its device unless
    ``device`` says otherwise.

    Args:
        evaluator: path, hub id, model, ``(model, tokenizer)``, or an ``Evaluator``.
        revision: hub revision.
        device: where to put it; by default the GPU if there is one, else the CPU.
        device_map: for models larger than one device, such as "auto" (uses accelerate).
        dtype: of the weights, "float32" unless memory forbids it.

    Raises:
        UserError: if it cannot be found, reached or loaded.
    """
    if isinstance(evaluator, Evaluator):
        return evaluator
    if isinstance(evaluator, (str, Path)):
        return _from_pretrained(str(evaluator), revision, device, device_map, dtype)
    model, tokenizer = evaluator if isinstance(evaluator, tuple) else (evaluator, None)
    if not isinstance(model, torch.nn.Module) or not hasattr(model, "config"):
        raise UserError(
            f"evaluator is a {type(model).__name__}: give a path, a Hugging Face id, a "
            "transformers causal language model, or a (model, tokenizer) pair"
        )
    name = getattr(model.config, "_name_or_path", "") or f"{type(model).__name__} in memory"
    if device is not None:
        model.to(device)
    return Evaluator(model, name, tokenizer, getattr(model.config, "_commit_hash", None))


def _from_pretrained(
    name: str,
    revision: str | None,
    device: str | torch.device | None,
    device_map: str | None,
    dtype: str,
) -> Evaluator:
    from safetensors import SafetensorError
    from transformers import AutoModelForCausalLM
    from transformers.utils import logging as transformers_logging

    if dtype not in DTYPES:
        raise UserError(f"dtype={dtype!r} is unknown: use one of {', '.join(DTYPES)}")
    source, commit = _locate(name, revision)
    options: dict[str, Any] = {"dtype": DTYPES[dtype], "trust_remote_code": False}
    if device_map is not None:
        options["device_map"] = device_map
    if revision is not None and commit is not None:
        options["revision"] = revision
    bars = transformers_logging.is_progress_bar_enabled()
    transformers_logging.disable_progress_bar()  # "Loading weights", over in a second
    try:
        loaded: Any = AutoModelForCausalLM.from_pretrained(
            source, output_loading_info=True, **options
        )
        model, loading = loaded
    except (
        *(OSError, ValueError, KeyError, TypeError, AttributeError, RuntimeError, ImportError),
        *(SafetensorError, UnpicklingError),
    ) as error:
        raise UserError(
            f"evaluator {name!r} could not be loaded as a causal language model ({reason(error)}): "
            "give a folder or Hugging Face id of one that transformers knows, such as gpt2-large"
        ) from error
    finally:
        if bars:
            transformers_logging.enable_progress_bar()
    if loading["missing_keys"]:
        raise UserError(
            f"evaluator {name!r} lacks {len(loading['missing_keys'])} of the weights of a "
            f"{type(model).__name__} (first: {sorted(loading['missing_keys'])[0]}), which would "
            "be random: give a folder or Hugging Face id of a causal language model"
        )
    if device_map is None:
        _to_device(model, device)
    return Evaluator(model.eval(), name, revision=commit, folder=None if commit else Path(source))


def _to_device(model: torch.nn.Module, device: str | torch.device | None) -> None:
    try:
        model.to(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    except (RuntimeError, AssertionError) as error:
        raise UserError(
            f"the evaluator could not be moved to device={str(device)!r} ({reason(error)}): "
            "use cpu, or cuda where torch.cuda.is_available(); device_map=auto spreads a large "
            "model"
        ) from error


def _locate(name: str, revision: str | None) -> tuple[str, str | None]:
    """The folder and None, or the hub id and its commit; one sentence when there is neither."""
    folder = Path(resolve(name)).expanduser()
    if folder.is_dir():
        return str(folder), None
    if folder.exists() or name.startswith((".", "/", "~")) or name.count("/") > 1:
        raise UserError(
            f"evaluator {name!r} is not a folder: give one with config.json, model.safetensors "
            "and tokenizer.json, or a Hugging Face id such as gpt2-large"
        )
    from huggingface_hub import snapshot_download

    # One small file first: without network this fails at once, from_pretrained retries for long.
    try:
        snapshot = snapshot_download(name, revision=revision, allow_patterns=["config.json"])
    except Exception as error:  # hub, http and offline errors share no base class
        raise UserError(
            f"evaluator {name!r} could not be fetched from the Hugging Face hub "
            f"({reason(error)}) and is no local folder: check the name and the network, "
            "or give the path of a folder with config.json, model.safetensors and tokenizer.json, "
            f"or {BUNDLED_EVALUATOR!r}, which is bundled and judges Python's documentation"
        ) from error
    return name, Path(snapshot).name


def need_tokenizer(evaluator: Evaluator) -> Any:
    """The evaluator's own tokenizer, loaded on first use.

    Raises:
        UserError: if it has none, or none with an eos token (which also pads).
    """
    if evaluator.tokenizer is None:
        if evaluator.folder is None and evaluator.revision is None:
            raise UserError(
                f"evaluator {evaluator.name!r} came without a tokenizer: give (model, tokenizer), "
                "or retokenize=False to score token batches of its own vocabulary"
            )
        evaluator.tokenizer = open_tokenizer(
            str(evaluator.folder or evaluator.name),
            revision=None if evaluator.folder else evaluator.revision,
        )
    if evaluator.tokenizer.eos_token_id is None:
        raise UserError(
            f"the tokenizer of evaluator {evaluator.name!r} has no eos token, which pads the "
            "batches: set one in its tokenizer_config.json"
        )
    return evaluator.tokenizer


def open_tokenizer(name: str, *, revision: str | None = None) -> Any:
    """Open a tokenizer by path, bundled name or hub id.

    Raises:
        UserError: if it is not there.
    """
    from transformers import AutoTokenizer

    folder = Path(resolve(name))
    if folder.is_dir() and not any((folder / file).exists() for file in _TOKENIZER):
        # transformers would make up an empty one from the kind of model
        raise UserError(
            f"no tokenizer could be opened at {name!r}: there is none of {', '.join(_TOKENIZER)}; "
            "give a folder with tokenizer.json, or a Hugging Face id that can be reached from here"
        )
    try:
        return AutoTokenizer.from_pretrained(
            resolve(name), revision=revision or "main", trust_remote_code=False
        )
    except (OSError, ValueError, KeyError, ImportError) as error:
        raise UserError(
            f"no tokenizer could be opened at {name!r} ({reason(error)}): give a folder "
            "with tokenizer.json, or a Hugging Face id that can be reached from here"
        ) from error


def _fingerprint(folder: Path) -> str | None:
    """The first 12 hex digits of the sha256 of the weight files, as "sha256:..."."""
    files = sorted(folder.glob("*.safetensors")) or sorted(folder.glob("*.bin"))
    if not files:
        return None
    digest = hashlib.sha256()
    for file in files:
        with open(file, "rb") as stream:
            while piece := stream.read(1 << 22):
                digest.update(piece)
    return f"sha256:{digest.hexdigest()[:12]}"
