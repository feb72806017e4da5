"""The recognition network: what it sees, where it starts, and its Gaussian."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from idlm.errors import UserError
from idlm.models import DiffusionConfig, DiffusionLM
from idlm.models.dit import Block, take_positions
from idlm.models.recognition import Posterior, Recognition

Make = Callable[..., DiffusionLM]


def generator(make: Make, **changes: Any) -> DiffusionLM:
    """A student in float64 with a latent vector of 3."""
    return make(**changes).with_latent(latent_global=3, latent_position=0).double()


def loud(recognition: Recognition) -> Recognition:
    """Every weight random, so that each of them matters."""
    torch.manual_seed(5)
    for weight in recognition.parameters():
        torch.nn.init.normal_(weight, std=0.3)
    return recognition.eval()


@pytest.fixture
def x0() -> Tensor:
    return torch.randint(0, 12, (4, 12), generator=torch.Generator().manual_seed(3))


@pytest.fixture
def masked() -> Tensor:
    """Rows with some, one, all and no position masked."""
    rows = torch.rand(4, 12, generator=torch.Generator().manual_seed(4)) < 0.5
    rows[1] = torch.arange(12) == 5
    rows[2], rows[3] = True, False
    return rows


def before_the_norm(network: Any, norm: torch.nn.Module, *inputs: Tensor) -> Tensor:
    """What the blocks give, ``[B, L, D]``."""
    seen: list[Tensor] = []
    hook = norm.register_forward_pre_hook(lambda _, args: seen.append(args[0].detach()))
    network(*inputs)
    hook.remove()
    return seen[0]


def test_a_block_takes_one_modulation_for_all_positions_or_each_ones_own() -> None:
    torch.manual_seed(0)
    sizes: Any = {"hidden_dim": 16, "cond_dim": 8, "n_blocks": 1, "n_heads": 2, "dropout": 0.0}
    config = DiffusionConfig(vocab_size=13, **sizes)
    block = Block(config).double()
    x, modulation = torch.randn(2, 5, 16).double(), torch.randn(2, 96).double()
    cos, sin = torch.randn(2, 5, 1, 8).double()
    out = block(x, modulation.unsqueeze(1).expand(2, 5, 96), cos, sin)
    same = {"atol": 1e-12, "rtol": 0}  # fp64
    torch.testing.assert_close(out, block(x, modulation, cos, sin), **same)
    own, at = torch.randn(2, 5, 96).double(), torch.tensor([[4, 0], [1, 1]])
    some = block(x, own, cos, sin, at)
    torch.testing.assert_close(some, take_positions(block(x, own, cos, sin), at), **same)


@pytest.mark.parametrize("conditioned", [False, True])
def test_its_blocks_start_as_the_students_on_clean_tokens(
    make: Make, x0: Tensor, masked: Tensor, conditioned: bool
) -> None:
    student = generator(make, time_conditioning=conditioned)
    recognition = Recognition.from_student(student)
    ours = before_the_norm(recognition, recognition.norm_final, x0, masked)
    norm = student.backbone.output_layer.norm_final
    theirs = before_the_norm(student, norm, x0, torch.zeros(4).double())
    assert ours.dtype == torch.float64
    assert theirs.std().item() > 0.5
    torch.testing.assert_close(ours, theirs, atol=1e-12, rtol=0)  # fp64
    assert torch.equal(recognition.norm_final.weight, norm.weight)


def test_it_is_a_network_of_its_own(make: Make) -> None:
    student = generator(make)
    recognition = Recognition.from_student(student)
    assert not {p.data_ptr() for p in student.parameters()} & {
        p.data_ptr() for p in recognition.parameters()
    }
    assert all(p.requires_grad for p in recognition.parameters())


def test_the_masks_adaln_acts_at_masked_positions_only(
    make: Make, x0: Tensor, masked: Tensor
) -> None:
    recognition = loud(Recognition.from_student(generator(make, n_blocks=1)))
    # without attention nothing passes from one position to another
    torch.nn.init.zeros_(recognition.blocks[0].attn_out.weight)
    first = before_the_norm(recognition, recognition.norm_final, x0, masked)
    with torch.no_grad():
        recognition.mask.add_(1.0)
    moved = before_the_norm(recognition, recognition.norm_final, x0, masked) - first
    assert torch.equal(moved[~masked], torch.zeros_like(moved[~masked]))
    assert bool((moved[masked].abs().amax(-1) > 1e-3).all())


def test_the_posterior_depends_on_the_mask_the_hidden_tokens_and_the_visible_ones(
    make: Make, x0: Tensor, masked: Tensor
) -> None:
    """Of x0 without the mask a latent would have to say everything: the posterior collapses."""
    recognition = loud(Recognition.from_student(generator(make)))
    rows = slice(0, 2)  # where some are masked and some are not
    mean = recognition(x0, masked).mean[rows].detach()

    def moved(tokens: Tensor, where: Tensor) -> float:
        change = recognition(tokens, where).mean[rows] - mean
        return change.detach().abs().amax(-1).min().item()

    assert moved(x0, masked.roll(1, 1)) > 1e-3
    assert moved(torch.where(masked, (x0 + 1) % 12, x0), masked) > 1e-3
    assert moved(torch.where(masked, x0, (x0 + 1) % 12), masked) > 1e-3


def test_where_nothing_is_masked_it_is_the_prior_exactly(
    make: Make, x0: Tensor, masked: Tensor
) -> None:
    recognition = loud(Recognition.from_student(generator(make)))
    posterior = recognition(x0, masked)
    assert torch.equal(posterior.mean[3], torch.zeros(3).double())
    assert torch.equal(posterior.log_std[3], torch.zeros(3).double())
    kl = posterior.kl().sum(-1)
    assert kl[3] == 0
    assert kl[:3].min().item() > 1e-3
    kl.sum().backward()
    assert all(bool(p.grad.isfinite().all()) for p in recognition.parameters())


def test_each_sequence_is_recognised_by_itself(make: Make, x0: Tensor, masked: Tensor) -> None:
    recognition = loud(Recognition.from_student(generator(make)))
    both, alone = recognition(x0, masked), recognition(x0[1:2], masked[1:2])
    for one, other in zip(both, alone, strict=True):
        assert one.shape == (4, 3)
        torch.testing.assert_close(one[1:2], other, atol=1e-12, rtol=0)  # fp64


@pytest.mark.parametrize("fresh", [False, True])
def test_a_new_one_tells_sequences_apart(make: Make, x0: Tensor, fresh: bool) -> None:
    """Where neither z nor the student says anything, neither would ever get a gradient."""
    student = generator(make)
    if fresh:
        student = DiffusionLM(student.config).double()
    posterior = Recognition.from_student(student)(x0, torch.ones_like(x0).bool())
    assert posterior.mean.std(0).min().item() > 0.03  # 1 / sqrt(12) of unit tokens, and less
    assert torch.equal(posterior.log_std, torch.zeros(4, 3).double())


def test_the_closed_kl_is_that_of_torch_and_of_a_monte_carlo_estimate() -> None:
    generator = torch.Generator().manual_seed(0)
    mean, log_std = torch.randn(2, 3, 4, generator=generator, dtype=torch.float64)
    posterior = Posterior(mean, 0.5 * log_std)
    normal = torch.distributions.Normal(mean, posterior.log_std.exp())
    prior = torch.distributions.Normal(torch.zeros_like(mean), torch.ones_like(mean))
    exact = torch.distributions.kl_divergence(normal, prior)
    torch.testing.assert_close(posterior.kl(), exact, atol=1e-12, rtol=0)  # fp64
    n = 100_000
    z = posterior.sample(torch.randn(3, n, 4, generator=generator, dtype=torch.float64))
    values = -posterior.log_weight(z)
    direct = (normal.log_prob(z[:, 7]) - prior.log_prob(z[:, 7])).sum(-1)
    torch.testing.assert_close(values[:, 7], direct, atol=1e-12, rtol=0)
    error = (values.mean(1) - exact.sum(-1)).abs()
    bound = 4 * values.std(1) / math.sqrt(n)  # four deviations
    assert bool((error < bound).all())
    assert float(bound.max()) < 0.05 * float(exact.sum(-1).min())  # it says something


def test_samples_have_the_posteriors_mean_and_deviation_and_carry_its_gradient() -> None:
    mean = torch.tensor([[1.0, -2.0]], requires_grad=True)
    log_std = torch.tensor([[0.0, -1.0]], requires_grad=True)
    noise = torch.tensor([[[0.5, 2.0], [-1.0, 0.0]]])
    z = Posterior(mean, log_std).sample(noise)
    expected = torch.tensor([[[1.5, -2.0 + 2 * math.exp(-1)], [0.0, -2.0]]])
    torch.testing.assert_close(z, expected)
    z[0, 0].sum().backward()
    assert torch.equal(mean.grad, torch.ones(1, 2))
    torch.testing.assert_close(log_std.grad, torch.tensor([[0.5, 2 * math.exp(-1)]]))


def test_checkpointing_gives_the_same_gradient_and_recomputes(
    make: Make, x0: Tensor, masked: Tensor
) -> None:
    recognition = loud(Recognition.from_student(generator(make))).train()
    calls: list[int] = []
    recognition.blocks[0].mlp.register_forward_hook(lambda *_: calls.append(1))
    grads = []
    for enabled in (False, True):
        recognition.set_gradient_checkpointing(enabled)
        recognition.zero_grad()
        calls.clear()
        recognition(x0, masked).kl().sum().backward()
        assert len(calls) == 1 + enabled
        grads.append([p.grad.clone() for p in recognition.parameters()])
    for plain, recomputed in zip(*grads, strict=True):
        torch.testing.assert_close(recomputed, plain, atol=1e-12, rtol=1e-10)  # fp64


def test_under_bf16_autocast_the_posterior_is_fp32(make: Make, x0: Tensor, masked: Tensor) -> None:
    recognition = loud(Recognition.from_student(generator(make))).float()
    exact = recognition(x0, masked)
    seen: list[torch.dtype] = []
    recognition.blocks[0].attn_qkv.register_forward_hook(lambda *a: seen.append(a[2].dtype))
    with torch.autocast("cpu", torch.bfloat16):
        posterior = recognition(x0, masked)
    assert seen == [torch.bfloat16]
    for half, full in zip(posterior, exact, strict=True):
        assert half.dtype == torch.float32
        # 8 bits through two blocks
        assert (half - full).abs().max().item() < 0.05 * full.abs().max().item()


def test_impossible_requests_are_refused(make: Make) -> None:
    with pytest.raises(UserError, match="latent_global is 0, so there is no latent vector"):
        Recognition.from_student(make())
    recognition = Recognition.from_student(generator(make))
    with pytest.raises(UserError, match="attention is 'fast'; choose one of auto, sdpa, flash"):
        recognition.set_attention("fast")
    recognition.set_attention("sdpa")
    assert [block.attention for block in recognition.blocks] == ["sdpa", "sdpa"]
