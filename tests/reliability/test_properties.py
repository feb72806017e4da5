"""Promises about any input at all, tried on inputs that hypothesis thinks of."""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, assume, example, given, settings
from hypothesis import strategies as st

from idlm.cli.generate_options import parse
from idlm.cli.given import read_given
from idlm.cli.main import printable
from idlm.data.corpora import LocalText
from idlm.data.packing import PackingReport, body_length, token_arrays, tokenize_and_pack
from idlm.errors import UserError
from idlm.models import DiffusionConfig, DiffusionLM, load_tokenizer
from idlm.samples import read_samples, write_samples
from idlm.sampling.requests import make_canvas

TOKENIZER = "python-docs-teacher"
VOCABULARY = 13
MASK = VOCABULARY - 1

# Examples are chosen by the test alone, so that a run never depends on an earlier one.
PLAIN = settings(
    max_examples=60,
    derandomize=True,
    database=None,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
FEW = settings(PLAIN, max_examples=25)

CHARACTERS = st.characters(exclude_categories=("Cs",))
TEXTS = st.text(CHARACTERS, max_size=40)
WORDS = st.text(CHARACTERS, min_size=1, max_size=20).filter(lambda word: word.strip())
TOKENS = st.lists(st.integers(0, (1 << 24) - 1), min_size=1, max_size=20)
NUMBERS = (st.integers() | st.floats()).map(str)
OPTIONS = [
    *("--checkpoint", "--revision", "--raw", "--tokenizer", "--device", "--dtype", "--prompt"),
    *("--prompt-file", "--infill", "--infill-file", "--num-samples", "--length", "--steps"),
    *("--seed", "--temperature", "--top-p", "--order", "--tail", "--stride", "--stop"),
    *("--batch-size", "--no-text", "--progress", "--no-progress", "--watch", "--watch-delay"),
    *("float32", "random", "greedy", "eos", "[MASK]", "--", "-", "=", "--steps=", "--x"),
]
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=6), inner, max_size=3)
    ),
    max_leaves=6,
)


@cache
def model(process: str = "absorbing") -> DiffusionLM:
    """A network of a few hundred weights, whose context is 16."""
    sizes: dict[str, Any] = {"hidden_dim": 8, "cond_dim": 4, "n_blocks": 1, "n_heads": 2}
    return DiffusionLM(DiffusionConfig(VOCABULARY, 16, process=process, **sizes)).eval()


@cache
def tokenizer() -> Any:
    return load_tokenizer(TOKENIZER)


def tried(work: Callable[[], Any]) -> tuple[Any, str]:
    """What comes of it, and the sentence if it is refused; anything else that happens is a bug."""
    try:
        return work(), ""
    except UserError as error:
        return None, str(error)


class Letters:
    """A tokenizer of the letters a to l."""

    eos_token_id = 0

    def encode(self, text: str, *, add_special_tokens: bool) -> list[int]:
        return [ord(letter) - ord("a") for letter in text]


# options of generate


@PLAIN
@given(st.lists(st.sampled_from(OPTIONS) | NUMBERS | st.text(max_size=12), max_size=7))
@example(["--steps", "9" * 5000])
@example(["--stop", "9" * 5000])
@example(["--prompt", "\ud800"])
@example(["--watch", "--watch-delay", "1e300"])
def test_any_words_are_parsed_or_refused_in_one_sentence(words: list[str]) -> None:
    found, sentence = tried(lambda: parse(words))
    if found is None:
        assert sentence
        assert printable(sentence).isprintable()
    else:
        assert found[0].num_samples >= 1


@PLAIN
@given(
    steps=st.integers(),
    samples=st.integers(1, 10**8),
    seed=st.none() | st.integers(),
    temperature=st.floats(allow_nan=False),
    stop=st.lists(st.integers(0, 10**18 - 1), min_size=1, max_size=4),
    order=st.sampled_from(["random", "confidence", "entropy", "margin"]),
)
def test_options_arrive_as_they_were_written(
    steps: int,
    samples: int,
    seed: int | None,
    temperature: float,
    stop: list[int],
    order: str,
) -> None:
    words = [f"--steps={steps}", f"--num-samples={samples}", f"--temperature={temperature!r}"]
    words += ["--order", order, "--stop", *map(str, stop)]
    words += [] if seed is None else [f"--seed={seed}"]
    args, _ = parse(words)
    assert (args.steps, args.num_samples, args.seed) == (steps, samples, seed)
    assert (args.temperature, args.order, args.stop) == (temperature, order, stop)


@PLAIN
@given(st.lists(WORDS, min_size=1, max_size=4))
def test_prompts_arrive_in_order_whatever_is_in_them(prompts: list[str]) -> None:
    _, found = parse([f"--prompt={prompt}" for prompt in prompts])
    assert (found.kind, list(found.pieces)) == ("prompt", prompts)


# files of prompts and samples


def read_prompts(path: Path) -> Any:
    """What ``--prompt-file`` makes of a file."""
    unset = {"prompt": None, "infill": None, "infill_file": None}
    return read_given(argparse.Namespace(prompt_file=str(path), **unset))


@PLAIN
@given(prompts=st.lists(WORDS, min_size=1, max_size=5), wrapped=st.booleans())
def test_prompts_of_a_file_come_back_as_they_were_written(
    prompts: list[str], wrapped: bool, tmp_path: Path
) -> None:
    rows = [json.dumps({"prompt": p} if wrapped else p, ensure_ascii=wrapped) for p in prompts]
    path = tmp_path / "p.jsonl"
    path.write_bytes("\n".join(rows).encode("utf-8"))
    assert list(read_prompts(path).pieces) == prompts


@PLAIN
@given(content=st.binary(max_size=200), suffix=st.sampled_from([".txt", ".jsonl"]))
@example(content=b"[" * 50_000, suffix=".jsonl")
@example(content=b"9" * 5000, suffix=".jsonl")
def test_any_bytes_as_prompts_are_read_or_refused(
    content: bytes, suffix: str, tmp_path: Path
) -> None:
    path = tmp_path / f"p{suffix}"
    path.write_bytes(content)
    found, sentence = tried(lambda: read_prompts(path))
    assert str(path) in sentence if found is None else found.pieces


@PLAIN
@given(rows=st.lists(st.tuples(TEXTS, TOKENS), min_size=1, max_size=4), steps=st.integers())
def test_samples_come_back_as_they_were_written(
    rows: list[tuple[str, list[int]]], steps: int, tmp_path: Path
) -> None:
    written = [{"text": text, "tokens": tokens} for text, tokens in rows]
    path = write_samples(tmp_path / "s.jsonl", {"steps": steps}, written)
    assert read_samples(path) == ({"steps": steps}, written)


@PLAIN
@given(st.lists(JSON.map(json.dumps) | st.text(max_size=20), max_size=4).map("\n".join))
@example('{"steps": 1}\n{"text": "\\ud800", "tokens": [1]}')
@example("[" * 50_000)
def test_any_lines_as_samples_are_read_or_refused(tmp_path_factory: Any, content: str) -> None:
    path = tmp_path_factory.getbasetemp() / "any.jsonl"
    path.write_bytes(content.encode("utf-8", "surrogatepass"))
    found, sentence = tried(lambda: read_samples(path))
    if found is None:
        assert str(path) in sentence
        return
    for row in found[1]:
        assert row["tokens"]
        assert row["text"] is None or row["text"].encode("utf-8") is not None


@PLAIN
@given(content=st.binary(max_size=200), suffix=st.sampled_from([".txt", ".jsonl"]))
@example(content=b'{"text": "\\udfff"}', suffix=".jsonl")
@example(content=b'{"text": "a", "n": ' + b"9" * 5000 + b"}", suffix=".jsonl")
@example(content=b"[" * 50_000, suffix=".jsonl")
def test_any_bytes_as_a_corpus_are_read_or_refused(
    content: bytes, suffix: str, tmp_path: Path
) -> None:
    path = tmp_path / f"corpus{suffix}"
    path.write_bytes(content)
    corpus = LocalText(path, validation=path)
    documents, sentence = tried(lambda: list(corpus.documents("train")))
    if documents is None:
        assert str(path) in sentence
    else:
        assert all(document.strip() for document in documents)


# packing


@FEW
@given(
    documents=st.lists(st.text(CHARACTERS, max_size=60), min_size=1, max_size=8),
    length=st.integers(3, 9),
    special_ends=st.booleans(),
)
def test_packing_keeps_every_token_once_and_in_order(
    documents: list[str], length: int, special_ends: bool
) -> None:
    stream = np.concatenate(list(token_arrays(documents, tokenizer(), report=PackingReport())))
    body = body_length(length, special_ends=special_ends)
    assume(len(stream) >= body)
    report = PackingReport()
    rows = tokenize_and_pack(
        documents, tokenizer(), length, special_ends=special_ends, report=report
    )
    inner = rows[:, 1:-1] if special_ends else rows
    kept = inner.reshape(-1)
    assert kept.tolist() == stream[: len(kept)].tolist()
    assert len(stream) - len(kept) == report.dropped_tokens < body
    assert (report.tokens, report.rows) == (len(stream), len(rows))
    assert int((stream == tokenizer().eos_token_id).sum()) >= len(documents)
    if special_ends:
        assert set(rows[:, 0].tolist()) == {tokenizer().bos_token_id}
        assert set(rows[:, -1].tolist()) == {tokenizer().eos_token_id}


# prompts and infills

PARTS = st.lists(
    st.text("abcdefghijkl", min_size=1, max_size=3) | st.integers(1, 4), min_size=1, max_size=5
)


@PLAIN
@given(parts=PARTS, process=st.sampled_from(["absorbing", "uniform"]))
def test_slots_of_a_text_are_written_and_nothing_else_is(
    parts: list[str | int], process: str
) -> None:
    assume(any(isinstance(part, int) for part in parts))
    text = "".join(f"[MASK:{part}]" if isinstance(part, int) else part for part in parts)
    expected: list[int | None] = []
    for part in parts:
        expected += [None] * part if isinstance(part, int) else [ord(c) - ord("a") for c in part]
    assume(len(expected) <= 16)
    canvas = make_canvas(model(process), 1, None, infill=text, tokenizer=Letters())
    assert canvas.write[0].tolist() == [token is None for token in expected]
    kept = canvas.tokens[0][~canvas.write[0]].tolist()
    assert kept == [token for token in expected if token is not None]
    assert int(canvas.lengths[0]) == len(expected)


@PLAIN
@given(slot=st.text(st.characters(exclude_characters="]", exclude_categories=("Cs",)), max_size=8))
@example(slot="9" * 5000)
@example(slot="٣")
@example(slot="²")
def test_a_slot_is_a_number_that_fits_or_refused(slot: str) -> None:
    text = f"a[MASK:{slot}]"
    canvas, sentence = tried(
        lambda: make_canvas(model(), 1, None, infill=text, tokenizer=Letters())
    )
    if canvas is None:
        assert 0 < len(sentence) < 400
    else:
        assert int(canvas.write.sum()) == int(slot)


@PLAIN
@given(
    rows=st.lists(
        st.lists(st.none() | st.integers(0, MASK - 1), min_size=1, max_size=16),
        min_size=1,
        max_size=4,
    ),
)
def test_none_among_token_ids_is_written_and_every_token_is_kept(
    rows: list[list[int | None]],
) -> None:
    assume(all(None in row for row in rows))
    canvas = make_canvas(model(), len(rows), None, infill=rows)
    for number, row in enumerate(rows):
        assert int(canvas.lengths[number]) == len(row)
        assert canvas.write[number, : len(row)].tolist() == [token is None for token in row]
        expected = [MASK if token is None else token for token in row]
        assert canvas.tokens[number, : len(row)].tolist() == expected
        assert not canvas.write[number, len(row) :].any()


@PLAIN
@given(
    tokens=st.lists(st.integers(0, MASK - 1), min_size=1, max_size=16),
    flags=st.lists(st.booleans(), min_size=1, max_size=16),
)
def test_a_mask_of_a_pair_says_where_to_write(tokens: list[int], flags: list[bool]) -> None:
    canvas, _ = tried(lambda: make_canvas(model(), 1, None, infill=(tokens, flags)))
    if canvas is None:
        assert len(tokens) != len(flags) or not any(flags)
    else:
        assert canvas.write[0].tolist() == flags
        clamped = [t for t, flag in zip(tokens, flags, strict=True) if not flag]
        assert canvas.tokens[0][~canvas.write[0]].tolist() == clamped


@PLAIN
@given(
    prompt=st.lists(st.integers(-(2**70), 2**70) | st.integers(0, MASK), max_size=20),
    length=st.integers(1, 16),
)
def test_a_prompt_stands_at_the_beginning_or_is_refused(prompt: list[int], length: int) -> None:
    fits = 0 < len(prompt) < length and all(0 <= token < MASK for token in prompt)
    if not fits:
        with pytest.raises(UserError):
            make_canvas(model(), 1, length, prompt=prompt)
        return
    canvas = make_canvas(model(), 1, length, prompt=prompt)
    assert canvas.tokens[0, : len(prompt)].tolist() == prompt
    assert canvas.write[0].tolist() == (torch.arange(length) >= len(prompt)).tolist()


# messages


@PLAIN
@given(st.text())
@example("\x1b]0;title\x07\r\n\u2028\x9b31m")
def test_nothing_in_a_message_can_steer_a_terminal(text: str) -> None:
    shown = printable(text)
    assert shown.isprintable()
    assert "\n" not in shown
