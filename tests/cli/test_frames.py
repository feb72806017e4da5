"""A sample as it is written: every frame is what the sampler has, and nobody need wait."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import pytest

import idlm
from idlm.cli.frames import GIVEN, MASKED, NEW, SHADE, Frame, frames
from idlm.errors import UserError
from idlm.models import DiffusionLM, decode, load_tokenizer
from tests.tiny_models import LENGTH, make_models, random_denoiser

REQUEST: dict[str, Any] = {"length": LENGTH, "steps": 8, "seed": 3}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_models(tmp_path_factory.mktemp("models")).student


@pytest.fixture(scope="module")
def model(folder: Path) -> DiffusionLM:
    return idlm.load(folder, device="cpu")


@pytest.fixture(scope="module")
def tokenizer(folder: Path) -> Any:
    return load_tokenizer(folder)


def text(frame: Frame) -> str:
    return "".join(words for words, _ in frame.spans)


def masked(frame: Frame) -> int:
    return sum(len(words) for words, kind in frame.spans if kind == MASKED)


def test_the_last_frame_is_the_sample_that_generate_makes(
    model: DiffusionLM, tokenizer: Any
) -> None:
    *_, last = frames(model, tokenizer, **REQUEST)
    out = idlm.generate(model, **REQUEST)
    assert text(last) == decode(tokenizer, out.tokens)[0]
    assert (last.calls, last.written) == (out.nfe, LENGTH)


def test_masks_become_text_and_only_what_is_new_is_marked(
    model: DiffusionLM, tokenizer: Any
) -> None:
    found = list(frames(model, tokenizer, **REQUEST))
    assert len(found) == REQUEST["steps"]
    left = [masked(frame) for frame in found]
    assert left == sorted(left, reverse=True)
    assert left[0] > left[-1] == 0
    for frame, before in zip(found[1:], found, strict=False):
        assert frame.written - before.written == masked(before) - masked(frame)
        new = [words for words, kind in frame.spans if kind == NEW]
        assert bool(new) == (frame.written > before.written)
    assert all(frame.entropy is None for frame in found if masked(frame))
    assert found[-1].entropy is not None
    assert found[-1].entropy > 0.0
    assert all(words == SHADE * len(words) for words, kind in found[0].spans if kind == MASKED)


def test_a_prompt_is_given_and_not_counted(model: DiffusionLM, tokenizer: Any) -> None:
    prompt = "return the value"
    size = len(tokenizer(prompt).input_ids)
    for frame in frames(model, tokenizer, prompt=prompt, **REQUEST):
        assert frame.spans[0] == (prompt, GIVEN)
        assert frame.written + masked(frame) == LENGTH - size


def test_a_process_without_a_mask_marks_what_changed(tokenizer: Any) -> None:
    model = random_denoiser(
        vocab_size=len(tokenizer), model_length=LENGTH, process="uniform", time_conditioning=True
    )
    found = list(frames(model, tokenizer, **REQUEST))
    assert {kind for frame in found for _, kind in frame.spans} <= {NEW, None}
    assert all(frame.written == LENGTH for frame in found)


def test_closing_the_iterator_stops_the_sampler(model: DiffusionLM, tokenizer: Any) -> None:
    looking = frames(model, tokenizer, length=LENGTH, steps=10_000, seed=0)
    next(looking)
    before = threading.active_count()
    looking.close()
    assert threading.active_count() == before - 1


def test_a_request_that_cannot_be_met_reaches_who_asked(model: DiffusionLM, tokenizer: Any) -> None:
    with pytest.raises(UserError, match="length is 33"):
        list(frames(model, tokenizer, length=LENGTH + 1, steps=4, seed=0))
