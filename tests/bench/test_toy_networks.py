"""The bench's small networks keep what its methods rely on, and its fast noise is keyed."""

from __future__ import annotations

import pytest
import torch

import idlm
from idlm.bench.toy_networks import FastDraw, TinyLM, TinyRecognition, tiny
from idlm.objectives.base import Draw
from idlm.random import Stream


def awake(process: str = "absorbing", *, length: int = 2, scale: float = 3.0) -> TinyLM:
    """A generator with a random head, so that its predictions differ."""
    torch.manual_seed(0)
    teacher = tiny(4, length, process)
    torch.nn.init.normal_(teacher.backbone.output_layer.linear.weight)
    student = teacher.with_latent(latent_global=3, latent_position=0, latent_init=scale)
    assert isinstance(student, TinyLM)
    return student.eval()


@pytest.mark.parametrize("process", ["absorbing", "uniform"])
def test_a_silent_latent_leaves_the_teachers_predictions(process: str) -> None:
    teacher = tiny(4, 3, process)
    torch.nn.init.normal_(teacher.backbone.output_layer.linear.weight)
    student = teacher.with_latent(latent_global=3, latent_position=2)
    z, sigma = torch.randint(0, 4, (6, 3)), torch.full((6,), 0.7)
    torch.testing.assert_close(student(z, sigma).logits, teacher(z, sigma).logits)


def test_the_latent_is_silent_where_one_masked_position_is_left() -> None:
    student = awake()
    masked, one_left = torch.tensor([[4, 4]]), torch.tensor([[2, 4]])
    sigma = torch.zeros(1)

    def predictions(z: torch.Tensor) -> list[torch.Tensor]:
        draws = (student.sample_latent(torch.arange(1), 2, seed=s, step=0) for s in (1, 2))
        return [student.head(student.features(z, sigma, latent)) for latent in draws]

    first, second = predictions(masked)
    assert not torch.allclose(first, second)
    first, second = predictions(one_left)
    torch.testing.assert_close(first, second, rtol=0, atol=0)


def test_a_relaxed_state_on_a_corner_is_the_hard_state() -> None:
    student = awake("uniform")
    z, sigma = torch.tensor([[0, 3], [2, 2]]), torch.full((2,), 0.5)
    latent = student.sample_latent(torch.arange(2), 2, seed=0, step=0)
    scores = 1e4 * torch.nn.functional.one_hot(z, 4).float()
    soft = student.features(scores, sigma, latent)
    torch.testing.assert_close(soft, student.features(z, sigma, latent), rtol=0, atol=1e-5)


def test_a_uniform_network_sees_the_time_and_a_masked_one_does_not() -> None:
    z = torch.tensor([[0, 3]])
    early, late = torch.full((1,), 0.1), torch.full((1,), 3.0)
    for process, sees in (("uniform", True), ("absorbing", False)):
        torch.manual_seed(0)
        model = tiny(4, 2, process)
        same = torch.allclose(model.features(z, early), model.features(z, late))
        assert same is not sees


@pytest.mark.parametrize("process", ["absorbing", "uniform"])
def test_the_toolkits_sampler_takes_a_tiny_network(process: str) -> None:
    student = awake(process)
    runs = [idlm.generate(student, 50, 2, 2, seed=3, batch_size=20).tokens for _ in range(2)]
    assert runs[0].shape == (50, 2)
    assert (runs[0] == runs[1]).all()
    assert set(runs[0].unique().tolist()) <= {0, 1, 2, 3}
    other = idlm.generate(student, 50, 2, 2, seed=4, batch_size=20).tokens
    assert (runs[0] != other).any()
    # batches have latents of their own
    latents = [student.sample_latent(torch.arange(3) + n, 2, seed=0, step=0) for n in (0, 3)]
    assert (latents[0].vector != latents[1].vector).all()


def test_the_fast_noise_is_a_function_of_seed_and_step() -> None:
    index = torch.arange(8)

    def numbers(seed: int, step: int) -> torch.Tensor:
        return FastDraw(index, 8, seed, step).uniform(3, stream=Stream.TIME)

    assert torch.equal(numbers(1, 2), numbers(1, 2))
    assert not torch.equal(numbers(1, 2), numbers(1, 3))
    assert not torch.equal(numbers(1, 2), numbers(2, 2))
    draw = FastDraw(index, 8, 1, 2)
    assert not torch.equal(draw.uniform(3, stream=Stream.TIME), draw.uniform(3, stream=Stream.TIME))
    branch = FastDraw(index, 8, 1, 2).branch(1)
    assert not torch.equal(branch.uniform(3, stream=Stream.TIME), numbers(1, 2))


@pytest.mark.parametrize("permuted", [False, True])
def test_the_fast_noise_has_a_time_in_every_stratum(permuted: bool) -> None:
    index = torch.arange(16)
    times = FastDraw(index, 16, 0, 0).times(Stream.TIME, permuted=permuted)
    exact = Draw(index, 16, 0, 0).times(Stream.TIME)
    strata = ((times.double() - 1e-3) / (1 - 1e-3) * 16).long()
    assert sorted(strata.tolist()) == list(range(16))
    assert (strata.tolist() == list(range(16))) is not permuted
    assert times.dtype == exact.dtype


def test_the_recognition_is_the_prior_where_nothing_is_masked() -> None:
    student = awake(length=2)
    recognition = TinyRecognition(student.config)
    x0 = torch.tensor([[1, 2], [1, 2], [1, 2]])
    masked = torch.tensor([[False, False], [True, False], [True, True]])
    posterior = recognition(x0, masked)
    assert posterior.mean.shape == (3, 3)
    assert (posterior.kl()[0] == 0).all()
    assert not torch.allclose(posterior.mean[1], posterior.mean[2])  # the mask is an input
