"""The tokenizer of a checkpoint, and the one rule about its mask."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from idlm.errors import UserError
from idlm.models.config import DiffusionConfig
from idlm.models.files import WEIGHTS, fetch, read_config, read_json
from idlm.models.published import layout_of

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedTokenizerBase

_PATTERNS = ("*.json", "*.txt", "*.model")
_OWN = ("tokenizer.json", "vocab.json", "vocab.txt", "tokenizer.model")
# all there is of a fast tokenizer, and what a training checkpoint may bring along
_FAST = ("tokenizer.json", "tokenizer_config.json")
_GPT2 = 50257


class NoTokenizerError(UserError):
    """A checkpoint comes without a tokenizer, and its vocabulary is not GPT-2's."""


def load_tokenizer(
    path_or_hub_id: str | Path, *, revision: str | None = None, local: bool = False
) -> PreTrainedTokenizerBase:
    """The checkpoint's own tokenizer, or GPT-2's for a published one that comes without.

    Args:
        path_or_hub_id: a folder or hub id with a tokenizer, with a checkpoint or without; the
            name of a bundled model; a Lightning ``.ckpt`` file, which holds the tokenizer of its
            training if ``idlm fit`` wrote it.
        revision: branch, tag or commit on the hub.
        local: use only what is on this machine, the cache of the hub included.

    Raises:
        NoTokenizerError: if there is none.
        UserError: if it cannot be read, has no fast version, or does not fit the network.
    """
    hub = {"local_files_only": True} if local else {}
    try:
        path = fetch(path_or_hub_id, *_PATTERNS, revision=revision, **hub)
    except UserError as error:
        raise UserError(f"no tokenizer could be loaded: {error}") from error
    if _layout(path) == "sdtt":
        # V is known from the weights alone
        path = fetch(path_or_hub_id, *WEIGHTS, revision=revision, **hub)
    config = read_config(path) if _layout(path) is not None else None
    if path.is_dir() and any((path / name).exists() for name in _OWN):
        tokenizer = _open(path, str(path_or_hub_id))
    elif path.is_file() and (files := _held(path)):
        tokenizer = _from_files(files, path)
    elif config is not None and _clean_states(config) in (_GPT2, _GPT2 + 1):
        tokenizer = _gpt2(_clean_states(config), hub)
    else:
        way_out = (
            "export it as a folder with one (idlm export --tokenizer)"
            if path.is_file()
            else "put the tokenizer's files beside its config.json"
        )
        raise NoTokenizerError(
            f"{path_or_hub_id} has no tokenizer.json and is not of GPT-2's vocabulary; {way_out}"
        )
    if config is not None:
        check_tokenizer(tokenizer, config, str(path_or_hub_id))
    return tokenizer


def mask_id(config: DiffusionConfig) -> int | None:
    """The id of the mask: the process decides it, no tokenizer does; ``None`` without a mask."""
    return config.make_process().mask_id


def check_tokenizer(tokenizer: Any, config: DiffusionConfig, source: str) -> None:
    """Refuse a tokenizer whose ids mean something else to the network.

    Tokens are the ids below the mask, which is the last state of the absorbing process. A
    tokenizer has no mask token, or has it there. It may have fewer tokens than the network.

    Raises:
        UserError: naming both ids, or both sizes.
    """
    mask = mask_id(config)
    theirs = tokenizer.mask_token_id
    if mask is not None and theirs not in (None, mask):
        raise UserError(
            f"the tokenizer of {source} has the mask token {tokenizer.mask_token!r} with id "
            f"{theirs}, but the network's mask is its last state, {mask}; use the tokenizer that "
            "the checkpoint was trained with"
        )
    room = config.vocab_size if mask is None or theirs == mask else mask
    if len(tokenizer) > room:
        raise UserError(
            f"the tokenizer of {source} has {len(tokenizer)} tokens, but the network knows "
            f"{room}{'' if mask is None else ' and the mask'}; use the tokenizer that the "
            "checkpoint was trained with"
        )


def decode(tokenizer: Any, tokens: Tensor) -> list[str]:
    """Text of token rows ``[N, L]``; a token that is still masked shows as ``[MASK]``."""
    return [decode_row(tokenizer, row) for row in tokens.tolist()]


def decode_row(tokenizer: Any, row: list[int]) -> str:
    """Text of token ids; one that is still masked shows as ``[MASK]``."""
    pieces: list[str] = []
    known: list[int] = []
    for token in row:
        if token < len(tokenizer):
            known.append(token)
            continue
        pieces += [tokenizer.decode(known), "[MASK]"]
        known = []
    return "".join([*pieces, tokenizer.decode(known)])


def _layout(path: Path) -> str | None:
    """The layout of the network beside a tokenizer, where one of our family is there."""
    if path.is_file():
        return "lightning"
    return layout_of(read_json(path)) if (path / "config.json").exists() else None


def _clean_states(config: DiffusionConfig) -> int:
    return config.vocab_size - (mask_id(config) is not None)


def _open(folder: Path, source: str) -> PreTrainedTokenizerBase:
    from transformers import AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
    except (OSError, ValueError, KeyError, TypeError) as error:
        reason = f"{type(error).__name__}: {str(error).strip()}".partition("\n")[0]
        raise UserError(
            f"the tokenizer in {source} cannot be opened ({reason[:160]}); download it again, or "
            "give a folder with a tokenizer.json"
        ) from error
    if not tokenizer.is_fast:
        raise UserError(
            f"the tokenizer {source!r} has no tokenizer.json; convert it with transformers "
            "(save_pretrained of the fast version) and give that folder"
        )
    return tokenizer


def tokenizer_files(tokenizer: Any) -> dict[str, str]:
    """A fast tokenizer as the text of its files, by their names."""
    with tempfile.TemporaryDirectory() as folder:
        tokenizer.save_pretrained(folder)
        files = {name: Path(folder, name) for name in _FAST}
        return {k: v.read_text(encoding="utf-8") for k, v in files.items() if v.is_file()}


def _held(checkpoint: Path) -> dict[str, str]:
    """The files of the tokenizer that a training put into its checkpoint; none of others."""
    from idlm.models.archive import Archive

    with Archive(checkpoint) as archive:
        held = archive.root.get("tokenizer") if isinstance(archive.root, dict) else None
    # the names are ours: one of the file's own might lead anywhere
    found = {name: held.get(name) for name in _FAST} if isinstance(held, dict) else {}
    return {name: text for name, text in found.items() if isinstance(text, str)}


def _from_files(files: Mapping[str, str], checkpoint: Path) -> PreTrainedTokenizerBase:
    with tempfile.TemporaryDirectory() as folder:
        for name, text in files.items():
            Path(folder, name).write_text(text, encoding="utf-8", errors="replace")
        tokenizer = _open(Path(folder), str(checkpoint))
    tokenizer.name_or_path = str(checkpoint)
    return tokenizer


def _gpt2(tokens: int, hub: Mapping[str, Any]) -> PreTrainedTokenizerBase:
    """GPT-2's, which the published checkpoints were trained with and do not ship."""
    files = ("tokenizer*.json", "vocab.json", "merges.txt")
    tokenizer = _open(fetch("gpt2", *files, **hub), "gpt2")
    if tokens > _GPT2:
        # Duo's data loader added it, so that it has a state of its own (methods B.6)
        tokenizer.add_special_tokens({"pad_token": "[PAD]"})
    return tokenizer
