"""The Hugging Face wrapper: features and head, the latent, the choice of attention."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from idlm.errors import UserError
from idlm.models import DiffusionLM, Latent

Make = Callable[..., DiffusionLM]

BOTH = {"latent_global": 5, "latent_position": 3}
LATENTS = [
    BOTH,
    {"latent_global": 5, "latent_position": 0},
    {"latent_global": 0, "latent_position": 3},
]
every_latent = pytest.mark.parametrize("sizes", LATENTS, ids=["both", "global", "position"])


def awake(model: DiffusionLM, **sizes: int) -> DiffusionLM:
    """A generator whose latent weights have left zero."""
    generator = model.with_latent(**sizes)
    for name, weight in generator.named_parameters():
        if ".latent." in name:
            torch.nn.init.normal_(weight, std=0.3)
    return generator


def test_the_head_on_any_positions_equals_the_whole_model(make: Make, tokens: Tensor) -> None:
    model = make()
    logits = model(tokens).logits
    features = model.features(tokens)
    assert features.shape == (2, 12, 16)
    assert torch.equal(model.head(features), logits)
    masked = tokens == 12
    torch.testing.assert_close(model.head(features[masked]), logits[masked], atol=1e-6, rtol=0)
    assert model.head(features[0, 3]).shape == (13,)


@pytest.mark.parametrize("settings", [{}, {"time_conditioning": True}, BOTH])
def test_features_at_some_positions_equal_those_of_all_in_value_and_gradient(
    make: Make, tokens: Tensor, settings: dict[str, Any]
) -> None:
    """In any order and more than once; the last block's saving must not be seen."""
    model = make(**settings).double()
    for name, weight in model.named_parameters():
        if ".latent." in name:
            torch.nn.init.normal_(weight, std=0.3)
    at = torch.tensor([[3, 0, 11, 3], [7, 1, 2, 5]])
    sigma = torch.tensor([0.3, 2.0]).double()
    latent = model.sample_latent(torch.arange(2), 12, seed=0, step=0)
    weight = torch.randn(2, 4, 16, generator=torch.Generator().manual_seed(1)).double()
    whole = model.features(tokens, sigma, latent)[torch.arange(2)[:, None], at]
    expected = torch.autograd.grad((whole * weight).sum(), used(model))
    for checkpointing in (False, True):
        model.train().set_gradient_checkpointing(checkpointing)
        some = model.features(tokens, sigma, latent, at)
        assert some.shape == (2, 4, 16)
        torch.testing.assert_close(some, whole, atol=1e-12, rtol=0)
        found = torch.autograd.grad((some * weight).sum(), used(model))
        torch.testing.assert_close(found, expected, atol=1e-10, rtol=1e-10)


def used(model: DiffusionLM) -> list[torch.nn.Parameter]:
    """What features depend on: all but the vocabulary projection."""
    names = "output_layer.linear", "sigma_map" if not model.config.time_conditioning else "?"
    return [p for name, p in model.named_parameters() if not any(n in name for n in names)]


@pytest.mark.parametrize(
    "at", [torch.zeros(2), torch.zeros(3, 1).long(), torch.zeros(2).long()], ids=str
)
def test_positions_that_are_no_list_for_each_row_are_refused(
    make: Make, tokens: Tensor, at: Tensor
) -> None:
    with pytest.raises(UserError, match=r"for 2 sequences; pass int64 positions, one list"):
        make().features(tokens, at=at)


def test_unknown_arguments_are_refused_not_swallowed(make: Make, tokens: Tensor) -> None:
    with pytest.raises(UserError, match="the model got labels, which it does not take"):
        make()(tokens, labels=tokens)


@every_latent
def test_a_new_latent_reproduces_the_teacher_exactly_whatever_the_noise(
    make: Make, tokens: Tensor, sizes: dict[str, int]
) -> None:
    teacher = make()
    generator = teacher.with_latent(**sizes)
    assert generator.has_latent
    assert not teacher.has_latent
    expected = teacher(tokens).logits
    for seed in range(3):
        torch.manual_seed(seed)
        assert torch.equal(generator(tokens).logits, expected)
    loud = generator.sample_latent(torch.arange(2), 12, seed=0, step=0)
    loud = Latent(*(part if part is None else 1e3 * part for part in loud))
    assert torch.equal(generator(tokens, latent=loud).logits, expected)


@every_latent
def test_one_step_of_gradient_wakes_the_latent(
    make: Make, tokens: Tensor, sizes: dict[str, int]
) -> None:
    generator = make().with_latent(**sizes)
    silent = {
        name: p
        for name, p in generator.named_parameters()
        if ".latent." in name and not bool(p.any())
    }
    # each block, the output layer, and the map into the mask embedding
    assert len(silent) == 3 * bool(sizes["latent_global"]) + bool(sizes["latent_position"])
    generator(tokens).logits.square().sum().backward()
    for name, weight in silent.items():
        assert weight.grad is not None, name
        assert float(weight.grad.abs().max()) > 0, name
    with torch.no_grad():
        for weight in silent.values():
            weight -= 1e-2 * weight.grad  # type: ignore[operator]
    first, second = generator(tokens).logits, generator(tokens).logits
    assert not torch.equal(first, second)


@every_latent
def test_noise_is_fresh_at_every_call_unless_given(
    make: Make, tokens: Tensor, sizes: dict[str, int]
) -> None:
    generator = awake(make(), **sizes)
    first, second = generator(tokens).logits, generator(tokens).logits
    assert (first - second).abs().max().item() > 1e-2
    latent = generator.sample_latent(torch.tensor([4, 9]), 12, seed=1, step=2)
    again = generator.sample_latent(torch.tensor([4, 9]), 12, seed=1, step=2)
    assert torch.equal(
        generator(tokens, latent=latent).logits, generator(tokens, latent=again).logits
    )


def test_a_sampled_latent_depends_on_seed_step_and_sample_alone(make: Make) -> None:
    generator = make().with_latent(**BOTH)
    whole = generator.sample_latent(torch.arange(4), 12, seed=1, step=2)
    assert whole.vector.shape == (4, 5)
    assert whole.position.shape == (4, 12, 3)
    alone = generator.sample_latent(torch.tensor([2]), 12, seed=1, step=2)
    assert torch.equal(alone.vector, whole.vector[2:3])
    assert torch.equal(alone.position, whole.position[2:3])
    for other in ({"seed": 2, "step": 2}, {"seed": 1, "step": 3}):
        latent = generator.sample_latent(torch.arange(4), 12, **other)
        assert not bool((latent.vector == whole.vector).any())
        assert not bool((latent.position == whole.position).any())
    assert make().sample_latent(torch.arange(4), 12, seed=1, step=2) is None


def test_noise_per_position_enters_at_masked_positions_only(make: Make) -> None:
    generator = awake(make(), latent_global=0, latent_position=3)
    visible = torch.randint(0, 12, (1, 12))
    expected = generator(visible).logits
    assert torch.equal(generator(visible).logits, expected)
    # one masked position: only its own noise counts
    one = visible.clone()
    one[0, 5] = 12
    latent = generator.sample_latent(torch.tensor([0]), 12, seed=0, step=0)
    moved = latent.position.clone()
    moved[0, 4] += 1.0
    base = generator(one, latent=latent).logits
    assert torch.equal(generator(one, latent=Latent(None, moved)).logits, base)
    moved[0, 5] += 1.0
    assert not torch.equal(generator(one, latent=Latent(None, moved)).logits, base)


@pytest.mark.parametrize(
    ("sizes", "vector", "position", "told"),
    [
        ((5, 3), None, (2, 12, 3), r"latent.vector has shape None, .* takes \(2, 5\)"),
        ((5, 3), (2, 5), None, r"latent.position has shape None, .* takes \(2, 12, 3\)"),
        ((5, 0), (2, 5), (2, 12, 3), r"latent.position has shape .* takes None"),
        ((5, 0), (1, 5), None, r"latent.vector has shape \(1, 5\), .* takes \(2, 5\)"),
        ((0, 0), (2, 5), None, r"latent.vector has shape \(2, 5\), .* takes None"),
    ],
)
def test_a_latent_of_other_parts_or_sizes_is_refused(
    make: Make,
    tokens: Tensor,
    sizes: tuple[int, int],
    vector: tuple[int, ...] | None,
    position: tuple[int, ...] | None,
    told: str,
) -> None:
    generator = make().with_latent(latent_global=sizes[0], latent_position=sizes[1])
    parts = (None if shape is None else torch.zeros(shape) for shape in (vector, position))
    with pytest.raises(UserError, match=told):
        generator.features(tokens, latent=Latent(*parts))


def test_the_global_vector_reaches_every_position(make: Make, tokens: Tensor) -> None:
    generator = awake(make(), latent_global=5, latent_position=0)
    difference = (generator(tokens).logits - generator(tokens).logits).abs().amax(-1)
    assert bool((difference > 0).all())


def test_a_generator_made_from_a_generator_keeps_the_denoiser_alone(
    make: Make, tokens: Tensor
) -> None:
    teacher = make()
    plain = awake(teacher, **BOTH).with_latent(latent_global=0, latent_position=0)
    assert not plain.has_latent
    assert torch.equal(plain(tokens).logits, teacher(tokens).logits)


def test_a_generator_shares_no_weight_with_its_teacher(make: Make, tokens: Tensor) -> None:
    teacher = make().train()
    generator = teacher.with_latent(**BOTH)
    assert generator.training
    before = {k: v.clone() for k, v in teacher.state_dict().items()}
    with torch.no_grad():
        for weight in generator.parameters():
            weight.add_(1.0)
    assert all(torch.equal(v, before[k]) for k, v in teacher.state_dict().items())
    assert teacher.config.latent_global == 0


def test_the_latent_works_under_bf16_autocast(make: Make, tokens: Tensor) -> None:
    teacher = make()
    with torch.autocast("cpu", torch.bfloat16):
        expected = teacher(tokens).logits
        assert torch.equal(teacher.with_latent(**BOTH)(tokens).logits, expected)
        assert not torch.equal(awake(teacher, **BOTH)(tokens).logits, expected)


def test_flash_attention_is_refused_with_a_sentence_where_it_is_not_installed(
    make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("idlm.models.attention.flash_attn_installed", lambda: False)
    model = make()
    with pytest.raises(UserError, match=r"flash-attn is not installed; run `pip install idlm\[fl"):
        model.set_attention("flash")
    with pytest.raises(UserError, match="attention is 'fast'; choose one of auto, sdpa, flash"):
        model.set_attention("fast")


def test_flash_attention_on_the_cpu_is_refused_not_replaced(
    make: Make, tokens: Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("idlm.models.attention.flash_attn_installed", lambda: True)
    model = make()
    model.set_attention("flash")
    with pytest.raises(UserError, match="flash-attn needs CUDA and half precision"):
        model(tokens)
    model.set_attention("auto")
    on_auto = model(tokens).logits
    model.set_attention("sdpa")
    assert torch.equal(model(tokens).logits, on_auto)


@every_latent
def test_a_latent_that_is_woken_is_heard_at_once(
    make: Make, tokens: Tensor, sizes: dict[str, int]
) -> None:
    model = make()
    plain, far = model(tokens).logits, []
    for scale in (0.0, 0.1, 1.0):
        torch.manual_seed(1)
        heard = model.with_latent(**sizes, latent_init=scale)
        far.append(float((heard(tokens).logits - plain).abs().mean().detach()))
    assert 0.0 == far[0] < far[1] < far[2]


@pytest.mark.parametrize(
    ("sizes", "scale", "said"),
    [
        (BOTH, -1.0, "latent_init is -1.0; it is a scale"),
        (BOTH, float("inf"), "latent_init is inf; it is a scale"),
        ({"latent_global": 0, "latent_position": 0}, 1.0, "there is no latent"),
    ],
)
def test_a_first_scale_without_meaning_is_refused(
    make: Make, sizes: dict[str, int], scale: float, said: str
) -> None:
    with pytest.raises(UserError, match=said):
        make().with_latent(**sizes, latent_init=scale)
