"""Named randomness of a micro-batch, and losses as sums."""

from __future__ import annotations

import pytest
import torch

from idlm.objectives import IDLM, AlternatingDistillation, Draw, LossSum
from idlm.random import Stream

N = 64


def batch(start: int = 0, stop: int = N, *, first: int = 0, seed: int = 0, step: int = 0) -> Draw:
    return Draw(first + torch.arange(start, stop), N, seed, step)


@pytest.mark.parametrize("permuted", [False, True])
@pytest.mark.parametrize("first", [0, 5 * N])
def test_a_global_batch_has_one_time_in_every_stratum(permuted: bool, first: int) -> None:
    times = batch(first=first).times(Stream.TIME, permuted=permuted)
    assert times.dtype == torch.float32
    stratum = ((times.double() - 1e-3) / (1 - 1e-3) * N).floor().long()
    assert torch.equal(stratum.sort().values, torch.arange(N))


@pytest.mark.parametrize("permuted", [False, True])
def test_micro_batches_hold_the_times_of_the_whole_batch(permuted: bool) -> None:
    whole = batch(step=3).times(Stream.TIME_2, permuted=permuted)
    parts = [
        batch(a, b, step=3).times(Stream.TIME_2, permuted=permuted)
        for a, b in ((0, 8), (8, 9), (9, N))
    ]
    assert torch.equal(torch.cat(parts), whole)


class Halved(Draw):
    """A draw of another kind, such as an experiment puts in the place of the usual one."""

    def uniform(self, *shape: int, stream: Stream) -> torch.Tensor:
        return 0.5 * super().uniform(*shape, stream=stream)


def test_rows_of_a_draw_keep_its_kind_its_names_and_their_own_numbers() -> None:
    whole = Halved(torch.arange(40, 56), N, 3, 5, training=False)
    rows = whole.rows(whole.sample[1::2])
    assert type(rows) is Halved
    assert (rows.batch_size, rows.seed, rows.step, rows.training) == (N, 3, 5, False)
    for name in (Stream.TOKEN, Stream.CORRUPT):
        ours, all_of_them = (d.uniform(4, stream=name) for d in (rows, whole))
        assert torch.equal(ours, all_of_them[1::2])


@pytest.mark.parametrize("permuted", [False, True])
def test_the_times_of_some_rows_cover_the_whole_range_by_themselves(permuted: bool) -> None:
    """Neighbours in a large batch: without strata of their own they would span 8 / 64 of it."""
    part = batch(40, 48).rows(torch.arange(41, 48, 2))
    times = part.times(Stream.TIME, permuted=permuted).double()
    stratum = ((times - 1e-3) / (1 - 1e-3) * 4).floor().long()
    assert torch.equal(stratum.sort().values, torch.arange(4))
    firsts = [batch(step=k).rows(torch.arange(4)) for k in range(20)]
    orders = {tuple(d.times(Stream.TIME, permuted=permuted).argsort().tolist()) for d in firsts}
    assert (len(orders) > 3) == permuted


def test_the_two_halves_of_a_batch_are_independent() -> None:
    """Of one update: no number in common, and no correlation of rows that stand at one place."""
    n = 4000
    whole = Draw(torch.arange(n), n, 1, 2)
    even, odd = (whole.rows(whole.sample[i::2]) for i in (0, 1))
    for stream in (Stream.TOKEN, Stream.CORRUPT, Stream.RENOISE):
        a, b = (d.uniform(4, stream=stream).flatten() for d in (even, odd))
        assert not bool(torch.isin(a, b).any())
        correlation = float(torch.corrcoef(torch.stack([a, b]))[0, 1])
        assert abs(correlation) < 4 / a.numel() ** 0.5  # four standard deviations
        c, d = (d.normal(4, stream=stream).flatten() for d in (even, odd))
        assert abs(float((c * d).mean())) < 4 / c.numel() ** 0.5
    # what is left of the times within their strata
    strata = torch.arange(n // 2) / (n // 2)
    u, v = (((d.times(Stream.TIME).double() - 1e-3) / 0.999) - strata for d in (even, odd))
    correlation = float(torch.corrcoef(torch.stack([u, v]))[0, 1])
    assert abs(correlation) < 4 / (n / 2) ** 0.5


def test_tied_times_share_their_stratum_and_independent_ones_do_not() -> None:
    """The published code ties its two times within 1/n; the paper draws them separately."""
    tied = [IDLM(time_draws="tied").times(batch(step=k)) for k in range(20)]
    free = [IDLM(time_draws="independent").times(batch(step=k)) for k in range(20)]
    gaps = torch.cat([(a - b).abs() for a, b in tied])
    assert float(gaps.max()) < 1 / N
    assert float(gaps.min()) > 0  # each still has an offset of its own inside the stratum
    far = torch.cat([(a - b).abs() for a, b in free])
    assert float(far.mean()) == pytest.approx(1 / 3, abs=0.03)  # of two independent uniforms
    first, second = (torch.cat(times) for times in zip(*free, strict=True))
    correlation = float(torch.corrcoef(torch.stack([first, second]))[0, 1])
    assert abs(correlation) < 4 / (20 * N) ** 0.5  # four standard deviations


def test_independent_times_are_stratified_each() -> None:
    for times in IDLM(time_draws="independent").times(batch()):
        stratum = ((times.double() - 1e-3) / (1 - 1e-3) * N).floor().long()
        assert torch.equal(stratum.sort().values, torch.arange(N))


@pytest.mark.parametrize("steps", [1, 4, 16])
def test_posterior_times_lie_within_one_sampling_step(steps: int) -> None:
    """s ~ U(0, 1), t = min(1, s + U(0, 1/k)) of the D-MMD paper."""
    objective = AlternatingDistillation(renoise="posterior", target_steps=steps)
    pairs = [objective.times(batch(step=k)) for k in range(20)]
    t, s = (torch.cat(times) for times in zip(*pairs, strict=True))
    assert bool((t >= s).all())
    assert float(t.max()) <= 1.0
    assert float((t - s).max()) <= 1 / steps + 1e-6  # rounded to fp32
    inside = s < 1 - 1 / steps
    if bool(inside.any()):
        assert float((t - s)[inside].mean()) == pytest.approx(0.5 / steps, rel=0.1)
        gap = (t - s)[inside]
        correlation = float(torch.corrcoef(torch.stack([s[inside], gap]))[0, 1])
        assert abs(correlation) < 4 / gap.numel() ** 0.5
    stratum = ((pairs[0][1].double() - 1e-3) / (1 - 1e-3) * N).floor().long()
    assert torch.equal(stratum.sort().values, torch.arange(N))


def test_streams_steps_and_seeds_name_different_numbers() -> None:
    base = batch().uniform(4, stream=Stream.CORRUPT)
    assert base.dtype == torch.float64
    for other in (
        batch().uniform(4, stream=Stream.RENOISE),
        batch(step=1).uniform(4, stream=Stream.CORRUPT),
        batch(seed=1).uniform(4, stream=Stream.CORRUPT),
        batch(first=N).uniform(4, stream=Stream.CORRUPT),
    ):
        assert not bool((other == base).any())


def test_the_mean_of_a_loss_is_per_token() -> None:
    assert float(LossSum(torch.tensor(6.0), 4).mean) == 1.5
