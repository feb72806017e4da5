"""Entropies and divergences against sums over three tokens."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from idlm.objectives.divergences import divergence, entropy, kl, log_mean_exp

P, Q = (0.1, 0.2, 0.7), (0.25, 0.25, 0.5)


def logs(*rows: tuple[float, ...]) -> Tensor:
    return torch.tensor(rows, dtype=torch.float64).log()


def by_hand(p: tuple[float, ...], q: tuple[float, ...]) -> float:
    return sum(a * math.log(a / b) for a, b in zip(p, q, strict=True))


def test_the_entropy_is_in_nats_and_carries_no_gradient() -> None:
    found = entropy(logs(P, Q).requires_grad_())
    expected = [-sum(a * math.log(a) for a in row) for row in (P, Q)]
    torch.testing.assert_close(found, torch.tensor(expected).double())  # fp64
    assert not found.requires_grad


def test_each_divergence_is_its_sum() -> None:
    student, teacher = logs(P), logs(Q)
    gaps = [a - b for a, b in zip(P, Q, strict=True)]
    expected = {
        "kl-bwd": by_hand(P, Q),
        "kl-fwd": by_hand(Q, P),
        "mse": sum(gap**2 for gap in gaps),
        "tvd": sum(abs(gap) for gap in gaps) / 2,
    }
    for kind, value in expected.items():
        assert float(divergence(kind, student, teacher)) == pytest.approx(value, rel=1e-12), kind


def test_a_divergence_that_there_is_not_is_refused() -> None:
    with pytest.raises(ValueError, match="kind is 'tv'; choose one of kl-bwd, kl-fwd, mse, tvd"):
        divergence("tv", logs(P), logs(Q))


def test_a_mean_of_log_probabilities_gives_the_mean_of_the_divergences() -> None:
    others = logs(Q, (0.6, 0.3, 0.1))
    mean = float(kl(logs(P), others).mean())
    assert float(kl(logs(P), others.mean(0, keepdim=True))) == pytest.approx(mean, rel=1e-12)


def test_a_probability_that_underflows_adds_nothing() -> None:
    """Log-probabilities are finite, but in fp32 exp(-200) is 0."""
    log_p = torch.log_softmax(torch.tensor([[0.0, -200.0]]), -1)
    log_q = torch.tensor([[0.5, 0.5]]).log()
    assert float(kl(log_p, log_q)) == pytest.approx(math.log(2))
    assert float(entropy(log_p)) == 0.0


def test_the_log_of_a_mean_is_taken_over_the_dimension_that_is_named() -> None:
    values = logs(P, Q)
    for dim in (0, 1):
        torch.testing.assert_close(log_mean_exp(values, dim).exp(), values.exp().mean(dim))  # fp64
