"""Prompts and infills: clamped exactly, in any form, and as if each row were alone."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import idlm
from idlm.models import DiffusionLM, load_tokenizer
from idlm.sampling import ORDERS, StepState
from tests.sampling.helpers import count_calls, loud
from tests.tiny_models import make_models

Make = Callable[..., DiffusionLM]
MASK = 12
PROMPTS = [[1, 2, 3], [4], [5, 6, 7, 8, 9, 10, 11], [0, 0]]
INFILLS = [
    [1, MASK, 2, MASK, MASK],
    [MASK] * 16,
    [3, 4, 5, MASK, 6, 7, 8, 9, 10, MASK],
    [MASK, 1, 1, 1, MASK],
]


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize(
    "request_", [{"prompt": PROMPTS}, {"infill": INFILLS[:1] + INFILLS[3:]}], ids=["prompt", "fill"]
)
def test_given_tokens_stay_through_every_step(
    make: Make, request_: dict[str, Any], order: str
) -> None:
    states: list[StepState] = []
    out = idlm.generate(
        make(), steps=6, seed=1, order=order, temperature=2.0, callback=states.append, **request_
    )
    for tokens in [*(state.tokens for state in states), out.tokens]:
        for row, given in zip(tokens.tolist(), *request_.values(), strict=True):
            kept = [(a, b) for a, b in zip(row, given, strict=False) if b != MASK]
            assert kept
            assert all(a == b for a, b in kept)
    assert not bool((out.tokens == MASK).any())
    assert not any(bool(state.revealed[state.tokens == MASK].any()) for state in states)


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("request_", [{"prompt": PROMPTS}, {"infill": INFILLS}])
def test_a_batch_of_unequal_rows_equals_one_by_one(
    make: Make, request_: dict[str, Any], order: str
) -> None:
    model = loud(make())
    if order != "random":
        model = model.double()  # ranks compare positions: the last digits of fp32 may decide
    settings: dict[str, Any] = {"steps": 5, "seed": 3, "order": order}
    whole = idlm.generate(model, **request_, **settings)
    ((name, rows),) = request_.items()
    for number, row in enumerate(rows):
        alone = idlm.generate(model, **{name: row}, first_index=number, **settings)
        length = int(whole.lengths[number])
        assert torch.equal(whole.tokens[number, :length], alone.tokens[0])
        assert alone.lengths.tolist() == [length]


def test_rows_of_unequal_length_enter_the_network_unpadded(make: Make) -> None:
    model = make()
    shapes: set[tuple[int, ...]] = set()
    model.backbone.register_forward_pre_hook(lambda _, args: shapes.add(tuple(args[0].shape)))
    out = idlm.generate(model, infill=INFILLS, steps=1, seed=0)
    assert shapes == {(2, 5), (1, 10), (1, 16)}
    assert out.lengths.tolist() == [5, 16, 10, 5]
    inside = torch.arange(16) < out.lengths[:, None]
    assert torch.equal(out.tokens == MASK, ~inside)  # the mask id pads, and stands nowhere else


def test_a_prompt_of_ids_has_many_forms_and_one_meaning(make: Make) -> None:
    model = make()
    expected = idlm.generate(model, 3, 8, 4, prompt=[1, 2], seed=0).tokens
    forms: list[Any] = [
        (1, 2),
        torch.tensor([1, 2]),
        torch.tensor([1, 2], dtype=torch.int16),
        np.array([1, 2], dtype=np.uint16),
        [torch.tensor(1), np.int64(2)],
        [[1, 2]] * 3,
        [torch.tensor([1, 2])] * 3,
        torch.tensor([[1, 2]] * 3),
        np.array([[1, 2]] * 3),
    ]
    for form in forms:
        out = idlm.generate(model, 3, 8, 4, prompt=form, seed=0)
        assert torch.equal(out.tokens, expected), repr(form)


def test_an_infill_of_ids_has_many_forms_and_one_meaning(make: Make) -> None:
    model = make()
    row, write = [1, MASK, 2, MASK], [False, True, False, True]
    expected = idlm.generate(model, 2, steps=4, infill=row, seed=0)
    assert expected.tokens.shape == (2, 4)
    forms: list[Any] = [
        torch.tensor(row),
        [row, row],
        torch.tensor([row, row]),
        (row, write),
        ([1, -5, 2, 99], write),  # what stands where it is written does not matter
        (torch.tensor(row), torch.tensor(write)),
        (torch.tensor([row, row]), np.array([write, write])),
        ([row, row], [write, write]),
    ]
    for form in forms:
        out = idlm.generate(model, 2, steps=4, infill=form, seed=0)
        assert torch.equal(out.tokens, expected.tokens), repr(form)


def test_an_infill_whose_slots_are_at_the_end_is_a_prompt(make: Make) -> None:
    model = make()
    prompted = idlm.generate(model, 2, 8, 4, prompt=[1, 2, 3], seed=0)
    infilled = idlm.generate(model, 2, steps=4, infill=[1, 2, 3] + [MASK] * 5, seed=0)
    assert torch.equal(prompted.tokens, infilled.tokens)
    assert prompted.tokens_per_call == infilled.tokens_per_call == 5 / prompted.nfe


def test_an_infill_of_masks_alone_is_plain_generation(make: Make) -> None:
    model = make()
    plain = idlm.generate(model, 3, 16, 4, seed=0)
    assert torch.equal(
        idlm.generate(model, 3, steps=4, infill=[MASK] * 16, seed=0).tokens, plain.tokens
    )


def test_the_number_of_samples_follows_the_rows(make: Make) -> None:
    model = make()
    assert idlm.generate(model, prompt=PROMPTS, seed=0).tokens.shape == (4, 16)
    assert idlm.generate(model, 4, prompt=PROMPTS, seed=0).tokens.shape == (4, 16)
    assert idlm.generate(model, prompt=[[1]], seed=0).tokens.shape == (1, 16)
    assert idlm.generate(model, 2, prompt=[1], seed=0).tokens.shape == (2, 16)


def test_one_slot_costs_one_call_and_the_given_rest_nothing(make: Make) -> None:
    model = make()
    calls = count_calls(model)
    out = idlm.generate(model, infill=[[1, MASK, 3], [MASK, 2, 1]], steps=50, seed=0)
    assert sum(calls) == 2
    assert out.nfe == len(calls) <= 2
    assert out.tokens_per_call == 1 / out.nfe


def test_a_single_row_serves_all_samples_in_whatever_it_is_wrapped(make: Make) -> None:
    model = make()
    row = [1, MASK, 2, MASK]
    for given in ({"prompt": [1, 2]}, {"infill": row}):
        ((name, bare),) = given.items()
        expected = idlm.generate(model, 3, steps=4, seed=0, **{name: bare})
        for wrapped in ([bare], torch.tensor([bare]), np.array([bare])):
            out = idlm.generate(model, 3, steps=4, seed=0, **{name: wrapped})
            assert torch.equal(out.tokens, expected.tokens)


def test_what_is_given_changes_what_is_written(make: Make) -> None:
    model = make()
    one, other = (
        idlm.generate(model, 20, 8, 4, prompt=[token], seed=0).tokens[:, 1:] for token in (1, 2)
    )
    assert not torch.equal(one, other)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_models(tmp_path_factory.mktemp("models")).teacher


def test_a_text_prompt_uses_the_checkpoints_own_tokenizer(folder: Path) -> None:
    model, tokenizer = idlm.load(folder), load_tokenizer(folder)
    text = "return the value"
    ids = tokenizer.encode(text, add_special_tokens=False)
    out = idlm.generate(model, 2, 32, 4, prompt=text, seed=0)
    assert out.tokens[:, : len(ids)].tolist() == [ids, ids]
    assert torch.equal(out.tokens, idlm.generate(model, 2, 32, 4, prompt=ids, seed=0).tokens)
    two = idlm.generate(model, length=32, steps=4, prompt=[text, "of an"], seed=0)
    assert torch.equal(two.tokens[0], out.tokens[0])


def test_the_tokenizer_of_a_text_is_of_the_revision_that_was_loaded(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of SDTT's repository every round is a branch of its own."""
    asked: list[str | None] = []

    def load_and_note(name: str, *, revision: str | None = None) -> Any:
        asked.append(revision)
        return load_tokenizer(folder)

    monkeypatch.setattr("idlm.models.loading.load_tokenizer", load_and_note)
    monkeypatch.setattr("idlm.models.loading.fetch", lambda *_, **__: folder)  # the hub's answer
    for revision in (None, "round-3"):
        model = idlm.load("owner/name", revision=revision)
        idlm.generate(model, length=32, steps=2, prompt="return", seed=0)
    assert asked == [None, "round-3"]


def test_slots_in_a_text_are_as_long_as_they_say(folder: Path) -> None:
    model, tokenizer = idlm.load(folder), load_tokenizer(folder)
    mask = model.process.mask_id
    first, last = (tokenizer.encode(text, add_special_tokens=False) for text in ("return", " key"))
    out = idlm.generate(model, infill="return[MASK][MASK:3] key[MASK:2]", steps=4, seed=0)
    row = [*first, mask, mask, mask, mask, *last, mask, mask]
    assert torch.equal(out.tokens, idlm.generate(model, infill=row, steps=4, seed=0).tokens)
    only = idlm.generate(model, infill=["[MASK:4]", "return[MASK]"], steps=4, seed=0)
    assert only.lengths.tolist() == [4, len(first) + 1]


def test_a_tokenizer_can_be_given(make: Make, folder: Path) -> None:
    model = make(vocab_size=400)  # never saved, so it has none of its own
    tokenizer = load_tokenizer(folder)
    ids = tokenizer.encode("return", add_special_tokens=False)
    out = idlm.generate(model, prompt="return", tokenizer=tokenizer, seed=0)
    assert out.tokens[0, : len(ids)].tolist() == ids
