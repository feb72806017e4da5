"""``idlm.generate``: its cost counted on the network, its seeds and its output."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

import idlm
from idlm.models import DiffusionLM
from tests.sampling.helpers import count_calls, loud

Make = Callable[..., DiffusionLM]


def test_1024_tokens_take_16_network_calls(make: Make) -> None:
    model = make(model_length=1024)
    calls = count_calls(model)
    out = idlm.generate(model, 1, 1024, 16, seed=0)
    assert out.tokens.shape == (1, 1024)
    assert len(calls) == out.nfe == 16
    assert out.tokens_per_call == 64.0


def test_the_calls_of_several_batches_are_not_added_up(make: Make) -> None:
    model = make()
    calls = count_calls(model)
    out = idlm.generate(model, 6, 16, 4, seed=0, batch_size=2)
    assert 4 < len(calls) <= 12
    assert out.nfe == 4  # what one sample costs, not what the set costs


@pytest.mark.parametrize("steps", [1, 7, 200])
def test_calls_never_exceed_steps_nor_tokens(make: Make, steps: int) -> None:
    model = make()
    calls = count_calls(model)
    out = idlm.generate(model, 1, 16, steps, seed=3)
    assert len(calls) == out.nfe <= min(steps, 16)
    assert out.tokens_per_call == 16 / out.nfe


def test_a_row_without_a_new_token_is_not_computed(make: Make) -> None:
    model = make()
    calls = count_calls(model)
    idlm.generate(model, 4, 16, 200, seed=3)
    assert sum(calls) <= 4 * 16  # every computed row reveals at least one of its 16 tokens


def test_a_sample_depends_on_seed_and_number_not_on_its_batch(make: Make) -> None:
    model = loud(make())
    whole = idlm.generate(model, 7, 16, 5, seed=4).tokens
    for batch_size in (1, 3):
        assert torch.equal(
            idlm.generate(model, 7, 16, 5, seed=4, batch_size=batch_size).tokens, whole
        )
    tail = idlm.generate(model, 3, 16, 5, seed=4, first_index=4).tokens
    assert torch.equal(tail, whole[4:])
    assert whole.unique(dim=0).shape[0] == 7
    assert not torch.equal(idlm.generate(model, 7, 16, 5, seed=5).tokens, whole)


def test_the_output_holds_clean_tokens_on_the_cpu(make: Make) -> None:
    out = idlm.generate(make(), 5, steps=2, seed=0)
    assert out.tokens.shape == (5, 16)  # the model's context by default
    assert out.tokens.dtype == torch.int64
    assert out.tokens.device.type == "cpu"
    assert not out.tokens.is_inference()  # it can enter a computation with gradients
    assert int(out.tokens.min()) >= 0
    assert int(out.tokens.max()) < 12
    assert out.seconds > 0
    assert out.seed == 0
    assert out.lengths.tolist() == [16] * 5


@pytest.mark.parametrize("temperature", [1e-2, 1e-6, 1e-12])
def test_a_vanishing_temperature_picks_the_most_probable_token(
    make: Make, temperature: float
) -> None:
    model = make()
    with torch.no_grad():  # a mask that the network prefers to every token must stay impossible
        model.backbone.output_layer.linear.bias[12] += 50.0
    out = idlm.generate(model, 20, 16, 1, seed=0, temperature=temperature)
    with torch.no_grad():
        best = model(torch.full((1, 16), 12)).logits[..., :12].argmax(-1)
    assert torch.equal(out.tokens, best.expand(20, 16))


def test_a_small_nucleus_picks_the_most_probable_token(make: Make) -> None:
    model = make()
    out = idlm.generate(model, 20, 16, 1, seed=0, top_p=1e-6)
    with torch.no_grad():
        best = model(torch.full((1, 16), 12)).logits[..., :12].argmax(-1)
    assert torch.equal(out.tokens, best.expand(20, 16))


def test_dropout_is_off_while_generating_and_the_mode_comes_back(make: Make) -> None:
    model = make()
    expected = idlm.generate(model, 4, 16, 3, seed=0).tokens
    model.train()
    assert torch.equal(idlm.generate(model, 4, 16, 3, seed=0).tokens, expected)
    assert model.training
    with pytest.raises(ZeroDivisionError):
        idlm.generate(model, 4, 16, 3, seed=0, callback=lambda _: 1 / 0)
    assert model.training


def test_without_a_seed_samples_differ_and_can_be_made_again(make: Make) -> None:
    model = make()
    first, second = idlm.generate(model, 2, 16, 3), idlm.generate(model, 2, 16, 3)
    assert first.seed != second.seed
    assert not torch.equal(first.tokens, second.tokens)
    assert torch.equal(idlm.generate(model, 2, 16, 3, seed=first.seed).tokens, first.tokens)


def test_generating_leaves_the_callers_generator_alone(make: Make) -> None:
    model = make()
    state = torch.get_rng_state()
    idlm.generate(model, 2, 16, 3)
    assert torch.equal(torch.get_rng_state(), state)


def test_a_progress_bar_appears_only_when_asked_for(
    make: Make, capsys: pytest.CaptureFixture[str]
) -> None:
    model = make()
    plain = idlm.generate(model, 2, 16, 3, seed=0)
    assert capsys.readouterr() == ("", "")
    shown = idlm.generate(model, 2, 16, 3, seed=0, progress=True, batch_size=1)
    out, err = capsys.readouterr()
    assert out == ""
    assert "6/6" in err  # two batches of three steps
    assert torch.equal(shown.tokens, plain.tokens)
