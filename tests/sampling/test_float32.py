"""The float32 research option: the published race, what it cuts off, and what it never changes."""

from __future__ import annotations

import math

import pytest
import torch

import idlm
from idlm.errors import UserError
from idlm.models import DiffusionLM
from idlm.sampling.float32 import race
from tests.sampling.helpers import count_calls, loud
from tests.tiny_models import LENGTH, make_models


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> DiffusionLM:
    return idlm.load(make_models(tmp_path_factory.mktemp("models")).teacher)


def test_the_race_is_the_published_formula_by_hand() -> None:
    # E = -log U but for 1e-10: 0.5/0.693 = 0.72 loses against 0.3/0.357 = 0.84
    weights, uniform = torch.tensor([[0.5, 0.3, 0.2]]), torch.tensor([[0.5, 0.7, 0.1]])
    assert race(weights, uniform).tolist() == [1]
    assert race(weights.double(), uniform.double()).tolist() == [1]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_edges_of_the_uniform_neither_overflow_nor_draw_a_zero_weight(dtype) -> None:
    uniform = torch.tensor([[0.0, 1.0 - 2.0**-24, 0.0]], dtype=dtype)
    assert race(torch.tensor([[0.0, 0.0, 1.0]], dtype=dtype), uniform).tolist() == [2]
    assert race(torch.tensor([[0.9, 0.1, 0.0]], dtype=dtype), uniform).tolist() == [1]


def test_a_race_over_plain_weights_follows_them_in_either_precision() -> None:
    p = torch.tensor([0.5, 0.25, 0.125, 0.1, 0.025])
    n = 40_000
    for dtype in (torch.float32, torch.float64):
        noise = torch.rand(n, 5, dtype=dtype, generator=torch.Generator().manual_seed(1))
        counts = torch.bincount(race(p.to(dtype).expand(n, 5), noise), minlength=5)
        assert float(((counts - n * p) ** 2 / (n * p)).sum()) < 18.5  # 4 degrees, level 1e-3


def test_every_position_is_written_and_given_tokens_stay(model: DiffusionLM) -> None:
    prompt = [5, 6, 7]
    made = idlm.generate(model, 3, steps=6, seed=1, prompt=prompt, sampling_dtype="float32")
    assert made.tokens.shape == (3, LENGTH)
    assert bool((made.tokens[:, :3] == torch.tensor(prompt)).all())
    assert not bool((made.tokens == model.process.mask_id).any())


def test_a_sample_does_not_depend_on_its_batch(model: DiffusionLM) -> None:
    whole = idlm.generate(model, 5, steps=4, seed=3, sampling_dtype="float32").tokens
    alone = idlm.generate(
        model, 1, steps=4, seed=3, sampling_dtype="float32", first_index=3, batch_size=1
    ).tokens
    assert torch.equal(whole[3:4], alone)


def test_the_network_is_asked_again_only_about_rows_that_changed(model: DiffusionLM) -> None:
    calls = count_calls(model)
    made = idlm.generate(model, 2, 4, steps=64, seed=0, sampling_dtype="float32")
    # at most one call before the first token of a row and one after each but the last
    assert made.nfe == len(calls) <= 8
    assert sum(calls) <= 8


def test_a_latent_is_drawn_anew_in_every_step(model: DiffusionLM) -> None:
    generator = loud(model)
    assert idlm.generate(generator, 1, 8, steps=40, sampling_dtype="float32", seed=0).nfe > 9


def test_few_steps_and_a_small_vocabulary_give_the_law_of_the_exact_sampler(
    model: DiffusionLM,
) -> None:
    n = 3000
    laws = []
    for dtype in ("float64", "float32"):
        made = idlm.generate(model, n, 1, steps=2, seed=9, sampling_dtype=dtype)
        laws.append(torch.bincount(made.tokens.flatten(), minlength=model.process.vocab_size))
    pooled = laws[0] + laws[1]
    often = pooled >= 20
    square = float(((laws[0] - laws[1]) ** 2)[often].div(pooled[often]).sum())
    degrees = int(often.sum())
    assert degrees >= 2
    assert square < degrees + 4 * math.sqrt(2 * degrees)


@pytest.mark.parametrize(
    ("request_", "sentence"),
    [
        ({"sampling_dtype": "float16"}, "sampling_dtype is 'float16'; choose one of float64, flo"),
        ({"sampling_dtype": "float32", "order": "margin"}, "order is 'margin', but a float32 race"),
        (
            {"sampling_dtype": "float32", "probabilities": True, "callback": print},
            "probabilities are of exact draws, and sampling_dtype is 'float32'",
        ),
    ],
)
def test_what_a_float32_race_cannot_do_is_refused(model, request_, sentence) -> None:
    with pytest.raises(UserError, match=sentence):
        idlm.generate(model, 1, 4, 2, **request_)


def test_the_uniform_process_has_no_float32_sampler() -> None:
    from idlm.processes import Uniform
    from idlm.sampling.registry import sampler_for

    with pytest.raises(UserError, match=r"which is for the absorbing process, but .* uniform"):
        sampler_for(Uniform(vocab_size=5), "float32")
