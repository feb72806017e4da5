"""The tokenizer of a checkpoint: its own or GPT-2's, and the mask in one place."""

from __future__ import annotations

import contextlib
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer, decoders, models
from transformers import GPT2Config, PreTrainedTokenizerFast

from idlm.errors import UserError
from idlm.models import DiffusionConfig, decode, load_tokenizer
from idlm.models.config import SIZES
from idlm.models.tokenizers import check_tokenizer, mask_id


def words(count: int, **special: str) -> PreTrainedTokenizerFast:
    """A tokenizer of so many words: a, b, <eos>, w3, w4, ..."""
    names = ["a", "b", "<eos>", *(f"w{i}" for i in range(3, count))]
    vocabulary = {name: i for i, name in enumerate(names)}
    core = Tokenizer(models.WordLevel(vocabulary, unk_token="<eos>"))
    core.decoder = decoders.Fuse()
    return PreTrainedTokenizerFast(tokenizer_object=core, eos_token="<eos>", **special)


def config(vocab_size: int, process: str = "absorbing") -> DiffusionConfig:
    timed = process == "uniform"
    return DiffusionConfig(
        vocab_size=vocab_size, hidden_dim=16, n_heads=2, process=process, time_conditioning=timed
    )


def checkpoint(folder: Path, sizes: DiffusionConfig, tokenizer: Any = None) -> Path:
    """A published checkpoint's config.json, with a tokenizer beside it or without."""
    folder.mkdir()
    raw = {name: getattr(sizes, name) for name in SIZES}
    kind = {"model_type": "DUO"} if sizes.process == "uniform" else {"model_type": "mdlm"}
    raw = {**raw, **kind, "time_conditioning": sizes.time_conditioning}
    (folder / "config.json").write_text(json.dumps(raw))
    if tokenizer is not None:
        tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture
def gpt2(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A stand-in of GPT-2's size under the name that the hub has for it."""
    folder = tmp_path / "gpt2"
    words(50257).save_pretrained(folder)
    fetch = load_tokenizer.__globals__["fetch"]

    def found(name: str | Path, *patterns: str, **options: Any) -> Path:
        return folder if name == "gpt2" else fetch(name, *patterns, **options)

    monkeypatch.setattr("idlm.models.tokenizers.fetch", found)
    return folder


def test_a_checkpoints_own_tokenizer_comes_first(tmp_path: Path, gpt2: Path) -> None:
    folder = checkpoint(tmp_path / "own", config(50258), words(7))
    assert len(load_tokenizer(folder)) == 7


@pytest.mark.parametrize(
    ("process", "vocab_size", "tokens"),
    [
        ("absorbing", 50258, 50257),  # MDLM: the mask is one behind
        ("absorbing", 50259, 50258),  # MDLM in Duo's repository, whose loader adds [PAD]
        ("uniform", 50257, 50257),
        ("uniform", 50258, 50258),  # Duo: [PAD] is a state, and there is no mask
    ],
)
def test_a_published_checkpoint_without_one_gets_gpt2s(
    tmp_path: Path, gpt2: Path, process: str, vocab_size: int, tokens: int
) -> None:
    folder = checkpoint(tmp_path / "published", config(vocab_size, process))
    tokenizer = load_tokenizer(folder)
    assert len(tokenizer) == tokens
    assert tokenizer.pad_token == ("[PAD]" if tokens == 50258 else None)
    assert mask_id(config(vocab_size, process)) == (tokens if process == "absorbing" else None)
    last = torch.tensor([[0, vocab_size - 1]])
    shown = {"absorbing": "a[MASK]", "uniform": tokenizer.decode([0, vocab_size - 1])}
    assert decode(tokenizer, last) == [shown[process]]


def test_a_vocabulary_of_another_kind_is_not_guessed(tmp_path: Path, gpt2: Path) -> None:
    for number, size in enumerate((13, 50257, 50260)):
        folder = checkpoint(tmp_path / str(number), config(size))
        with pytest.raises(UserError, match=r"has no tokenizer\.json and is not of GPT-2's voc"):
            load_tokenizer(folder)


def test_a_mask_token_with_another_id_than_the_networks_is_refused(tmp_path: Path) -> None:
    wrong = words(7, mask_token="w4")
    with pytest.raises(UserError, match=r"mask token 'w4' with id 4, but .* its last state, 7; us"):
        load_tokenizer(checkpoint(tmp_path / "wrong", config(8), wrong))
    with pytest.raises(UserError, match=r"with id 4, but .* its last state, 6"):
        load_tokenizer(checkpoint(tmp_path / "inside", config(7), wrong))
    right = words(7, mask_token="w6")
    assert load_tokenizer(checkpoint(tmp_path / "right", config(7), right)).mask_token_id == 6
    # a process without mask gives the token no meaning
    check_tokenizer(wrong, config(7, "uniform"), "duo")


def test_more_tokens_than_the_network_has_states_are_refused_fewer_are_not() -> None:
    with pytest.raises(UserError, match="of here has 7 tokens, but the network knows 6 and the m"):
        check_tokenizer(words(7), config(7), "here")
    with pytest.raises(UserError, match="of here has 7 tokens, but the network knows 6; use"):
        check_tokenizer(words(7), config(6, "uniform"), "here")
    check_tokenizer(words(7), config(8), "here")
    check_tokenizer(words(7), config(7, "uniform"), "here")
    check_tokenizer(words(7), config(13), "here")


def test_a_folder_of_another_model_gives_its_tokenizer(tmp_path: Path) -> None:
    GPT2Config(vocab_size=7).save_pretrained(tmp_path)
    words(7).save_pretrained(tmp_path)
    assert len(load_tokenizer(tmp_path)) == 7


def test_a_tokenizer_that_cannot_be_opened_is_named(tmp_path: Path) -> None:
    folder = checkpoint(tmp_path / "broken", config(8), words(7))
    (folder / "tokenizer.json").write_text("{")
    with pytest.raises(UserError, match=r"the tokenizer in .*broken cannot be opened \(.*again"):
        load_tokenizer(folder)


def test_no_code_of_a_tokenizer_is_run(tmp_path: Path) -> None:
    folder = checkpoint(tmp_path / "code", config(8), words(7))
    (folder / "evil.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\n")
    settings = json.loads((folder / "tokenizer_config.json").read_text())
    settings["auto_map"] = {"AutoTokenizer": ["evil.Evil", "evil.Evil"]}
    settings["tokenizer_class"] = "Evil"
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    with contextlib.suppress(UserError):  # refusing it is as good as opening what it wraps
        load_tokenizer(folder)
    assert not (tmp_path / "ran").exists()


def test_decoding_shows_masks_in_their_places() -> None:
    tokenizer = words(3)
    rows = torch.tensor([[0, 1, 0, 0], [3, 0, 3, 3], [1, 3, 2, 1]])
    assert decode(tokenizer, rows) == ["abaa", "[MASK]a[MASK][MASK]", "b[MASK]<eos>b"]


@pytest.mark.parametrize(
    ("name", "told"),
    [("/nowhere", "'/nowhere' is not a folder"), ("nobody/nothing", "could not reach .*'nobody")],
)
def test_a_tokenizer_that_is_nowhere_gets_one_sentence(name: str, told: str) -> None:
    with pytest.raises(UserError, match=f"no tokenizer could be loaded: .*{told}"):
        load_tokenizer(name)
