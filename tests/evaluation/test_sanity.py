"""The NELBO that shows whether a checkpoint is alive."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

from idlm.data import train_bpe
from idlm.errors import UserError
from idlm.evaluation.sanity import sanity_nelbo, text_rows
from idlm.models import load_tokenizer
from idlm.objectives.base import Draw
from idlm.objectives.mdlm import masked_nelbo
from tests.tiny_models import SENTENCES, Make


@pytest.fixture
def clean() -> Tensor:
    """Four rows of clean tokens; no mask, which is 12."""
    return torch.randint(0, 12, (4, 12), generator=torch.Generator().manual_seed(3))


def test_the_sanity_value_is_the_objectives_nelbo(make: Make, clean: Tensor) -> None:
    model = make().double()
    found = sanity_nelbo(model, clean, seed=5)
    with torch.no_grad():
        expected = masked_nelbo(model, clean, Draw(torch.arange(4), 4, 5, 0))
    assert found.nelbo == pytest.approx(float(expected.mean), rel=1e-6)  # its 1/t is fp32
    assert (found.rows, found.length) == (4, 12)


@pytest.mark.parametrize("process", ["absorbing", "uniform"])
def test_a_network_that_knows_nothing_is_no_better_than_uniform(
    make: Make, clean: Tensor, process: str
) -> None:
    model = make(process=process, time_conditioning=process == "uniform")
    for parameter in model.backbone.output_layer.linear.parameters():
        torch.nn.init.zeros_(parameter)
    found = sanity_nelbo(model, clean)
    assert found.nelbo == found.uniform
    assert not found.learned


def test_the_mean_of_the_uniform_value_is_the_log_of_the_clean_states(make: Make) -> None:
    tokens = torch.randint(0, 12, (256, 12))
    found = sanity_nelbo(make(), tokens)
    # E over t in (1e-3, 1) of (1 - alpha_t) / t is 1 - eps; 256 stratified rows
    assert found.uniform == pytest.approx((1 - 1e-3) * math.log(12), rel=0.1)


def test_a_network_that_knows_the_text_is_better_than_uniform(make: Make) -> None:
    model = make()
    with torch.no_grad():
        model.backbone.output_layer.linear.weight.zero_()
        model.backbone.output_layer.linear.bias.copy_(5.0 * torch.eye(13)[3])
    assert sanity_nelbo(model, torch.full((4, 12), 3)).learned
    assert not sanity_nelbo(model, torch.full((4, 12), 4)).learned


def test_a_generators_value_is_the_same_every_time(make: Make, clean: Tensor) -> None:
    model = make().with_latent(latent_global=4, latent_position=4)
    for name, weight in model.named_parameters():
        if ".latent." in name:
            torch.nn.init.normal_(weight)
    first = sanity_nelbo(model, clean)
    torch.manual_seed(123)
    assert sanity_nelbo(model, clean) == first
    assert sanity_nelbo(model, clean, seed=1) != first


def test_a_broken_network_has_not_learned(make: Make, clean: Tensor) -> None:
    model = make()
    torch.nn.init.constant_(model.backbone.output_layer.linear.bias, float("nan"))
    assert not sanity_nelbo(model, clean).learned


def test_a_token_that_the_network_does_not_know_is_named(make: Make) -> None:
    with pytest.raises(UserError, match="made token 13 and the network knows 13"):
        sanity_nelbo(make(), torch.full((1, 12), 13))


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Any:
    return load_tokenizer(train_bpe(SENTENCES, 300, tmp_path_factory.mktemp("bpe")))


def test_rows_are_the_first_tokens_and_no_more_text_is_read_than_needed(tokenizer: Any) -> None:
    read = 0

    def documents() -> Iterator[str]:
        nonlocal read
        while True:
            read += 1
            yield SENTENCES[0]

    rows = text_rows(documents(), tokenizer, rows=2, length=16)
    assert rows.shape == (2, 16)
    assert read < 100
    one = tokenizer(SENTENCES[0]).input_ids
    stream = [*one, tokenizer.eos_token_id] * 8
    assert rows.flatten().tolist() == stream[:32]


def test_a_short_text_is_one_short_row_and_no_text_is_refused(tokenizer: Any) -> None:
    length = len(tokenizer("return").input_ids) + 1
    assert text_rows(["return"], tokenizer, rows=4, length=64).shape == (1, length)
    with pytest.raises(UserError, match="there is no text to measure on"):
        text_rows([], tokenizer, rows=4, length=64)
