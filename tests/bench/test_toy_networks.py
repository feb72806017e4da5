"""The bench's small networks keep what its methods rely on, and its fast noise is keyed."""

from __future__ import annotations

import copy
import math
from dataclasses import replace
from itertools import combinations

import pytest
import torch

import idlm
from idlm.bench.toy_networks import FastDraw, TinyDMMD, TinyIDLM, TinyLM, TinyRecognition, tiny
from idlm.models.dit import Latent
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


@pytest.mark.parametrize("kind", [TinyIDLM, TinyDMMD])
def test_a_fake_model_hears_what_it_is_told_at_a_last_masked_position_after_any_copy(
    kind: type[TinyIDLM] | type[TinyDMMD],
) -> None:
    teacher = tiny(4, 2, "absorbing")
    objective = kind(weighting="flat", fake_sees="input_masks")
    made = objective.make_auxiliary(teacher, teacher)
    assert isinstance(made, TinyLM)
    assert made.backbone.latent is not None
    made.backbone.latent.wake(3.0)
    torch.nn.init.normal_(made.backbone.output_layer.linear.weight)
    loaded = type(made)(made.config)
    loaded.load_state_dict(made.state_dict())
    state, sigma = torch.tensor([[2, 4]]), torch.zeros(1)
    told = [Latent(torch.full((1, made.config.latent_global), x), None) for x in (0.0, 1.0)]
    for fake in (made, copy.deepcopy(made), loaded):
        first, second = (fake.features(state, sigma, latent) for latent in told)
        assert not torch.allclose(first, second)


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


def test_some_positions_have_the_features_they_have_among_all() -> None:
    """What samplers ask for when only some positions are still masked."""
    student = awake(length=5)
    z, sigma = torch.randint(0, 5, (4, 5)), torch.full((4,), 0.7)
    latent = student.sample_latent(torch.arange(4), 5, seed=0, step=0)
    every = student.features(z, sigma, latent)
    at = torch.tensor([[0, 4], [2, 2], [1, 3], [4, 0]])
    found = student.features(z, sigma, latent, at)
    assert found.shape == (4, 2, every.shape[-1])
    for row, places in enumerate(at.tolist()):
        assert torch.equal(found[row], every[row, places])
    assert idlm.generate(student, 50, 5, 4, seed=3).tokens.shape == (50, 5)


KINDS = ("uniform", "normal", "latent", "times")


def numbers(draw: Draw, kind: str, stream: Stream = Stream.TOKEN) -> torch.Tensor:
    """Numbers of one kind, a row for each sample."""
    if kind == "latent":
        latent = draw.latent(awake(), 2)
        assert latent is not None
        assert latent.vector is not None
        return latent.vector
    if kind == "times":
        return draw.times(stream, permuted=True).unsqueeze(1)
    return getattr(draw, kind)(3, stream=stream)


def shared(one: torch.Tensor, other: torch.Tensor) -> int:
    """How many numbers occur in both."""
    return int(torch.isin(one, other).sum())


@pytest.mark.parametrize("kind", KINDS)
def test_the_fast_noise_is_a_function_of_its_names(kind: str) -> None:
    draw = FastDraw(torch.arange(8), 8, 1, 2)
    first = numbers(draw, kind)
    numbers(draw, "uniform", Stream.CORRUPT)
    # asked again, and by another draw of the same names
    assert torch.equal(numbers(draw, kind), first)
    assert torch.equal(numbers(replace(draw), kind), first)
    for other in (replace(draw, step=3), replace(draw, seed=2), draw.branch(1)):
        assert not shared(numbers(other, kind), first)
    if kind != "latent":
        assert not shared(numbers(draw, kind, Stream.RENOISE), first)


@pytest.mark.parametrize("kind", KINDS)
def test_parts_of_a_batch_share_no_fast_noise_with_each_other_or_the_whole(kind: str) -> None:
    whole = FastDraw(torch.arange(256, 512), 256, 0, 0)
    # the halves of instant moment matching, and parts as Di4C makes them
    halves = [whole.rows(whole.sample[i::2]) for i in (0, 1)]
    parts = [replace(whole, sample=s) for s in whole.sample.split([77, 179])]
    found = [numbers(draw, kind) for draw in (whole, *halves, *parts)]
    # normals and times are fp32: a few agree by chance
    assert all(shared(one, other) <= 2 for one, other in combinations(found, 2))
    both = torch.stack([part[:, 0] for part in found[1:3]])
    assert abs(float(torch.corrcoef(both)[0, 1])) < 0.35  # 4 sd of 128 pairs


def test_fast_noise_of_different_first_rows_is_uncorrelated() -> None:
    sample = torch.arange(1)
    draws = [FastDraw(sample + n, 256, 0, 0) for n in range(2000)]
    u = torch.cat([draw.uniform(stream=Stream.TIME) for draw in draws])
    assert len(u.unique()) == 2000
    assert float(u.mean()) == pytest.approx(0.5, abs=4 / math.sqrt(12 * 2000))  # 4 sd
    product = (u[1:] - 0.5) * (u[:-1] - 0.5)
    assert abs(float(product.mean())) < 4 / 12 / math.sqrt(2000)


@pytest.mark.parametrize("kind", KINDS)
def test_fast_noise_of_no_rows_is_empty(kind: str) -> None:
    draw = FastDraw(torch.arange(0), 8, 1, 2)
    assert len(numbers(draw, kind)) == 0


def test_micro_batches_of_fast_noise_share_their_permutation() -> None:
    parts = [FastDraw(s, 16, 0, 0) for s in torch.arange(16).split(8)]
    strata = torch.cat([part.strata(permuted=True)[0] for part in parts])
    assert sorted(strata.tolist()) == list(range(16))


@pytest.mark.parametrize("permuted", [False, True])
@pytest.mark.parametrize("part", [False, True])
def test_the_fast_noise_has_a_time_in_every_stratum(permuted: bool, part: bool) -> None:
    index = torch.arange(16)
    draw: Draw = FastDraw(index, 16, 0, 0)
    if part:
        draw = FastDraw(torch.arange(32), 32, 0, 0).rows(2 * index)
    times = draw.times(Stream.TIME, permuted=permuted)
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
