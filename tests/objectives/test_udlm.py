"""The uniform teacher's NELBO against the process's own integrand, and what it is least for."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from idlm.errors import UserError
from idlm.objectives import Draw, uniform_nelbo
from idlm.processes import Uniform
from idlm.random import Stream

K = 3


def test_the_nelbo_is_the_integrand_on_full_tables_in_value_and_gradient(
    uniform_table: Callable[..., Any],
) -> None:
    n = 40
    model, plain = uniform_table(K, 2), uniform_table(K, 2)
    tokens, draw = torch.randint(0, K, (n, 2)), Draw(torch.arange(n), n, 1, 2)
    loss = uniform_nelbo(model, tokens, draw)
    loss.total.backward()
    process, t = plain.process, draw.times(Stream.TIME)
    z = process.corrupt(tokens, t, draw.uniform(2, stream=Stream.CORRUPT))
    expected = process.nll_per_token(plain.table(z).log_softmax(-1), tokens, z, t).sum()
    expected.backward()
    torch.testing.assert_close(loss.total, expected)  # fp64
    torch.testing.assert_close(model.logits.grad, plain.logits.grad)
    assert loss.tokens == 2 * n
    (sigma,) = model.times
    torch.testing.assert_close(sigma, -torch.log(1 - 0.999 * t), rtol=1e-4, atol=1e-6)


def test_the_nelbo_is_least_where_each_token_is_predicted_from_the_other_positions() -> None:
    """Two correlated tokens, enumerated: P(x_l | z elsewhere) is stationary, E[x_l | z] is not.

    At every time: a position's own state enters the integrand by itself. This is what D-MMD has to
    undo, see `alternating_uniform.given_state`.
    """
    process = Uniform(K)
    data = torch.tensor([[0.3, 0.05, 0.05], [0.0, 0.3, 0.0], [0.1, 0.0, 0.2]]).double()
    tokens = torch.cartesian_prod(torch.arange(K), torch.arange(K))
    for time in (0.1, 0.5, 0.9):
        alpha = 1 - 0.999 * time
        seen = alpha * torch.eye(K).double() + (1 - alpha) / K  # q(z | x), symmetric
        others = seen @ data.T  # P(x_0 and z_1), row z_1
        others = others / others.sum(-1, keepdim=True)
        # the prediction at position 0 for each state (z_0, z_1), without and with its own state
        without = others[tokens[:, 1]]
        given = without * seen[tokens[:, 0]]
        given = given / given.sum(-1, keepdim=True)
        slopes = []
        for prediction in (without, given):
            logits = prediction.log().requires_grad_()
            x, z = (i.flatten() for i in torch.meshgrid(*[torch.arange(K * K)] * 2, indexing="ij"))
            chance = data[tuple(tokens[x].T)] * seen[tokens[x], tokens[z]].prod(-1)
            nll = process.nll_per_token(
                logits.log_softmax(-1)[z, None],
                tokens[x, :1],
                tokens[z, :1],
                torch.full((len(x),), time, dtype=torch.float64),
            )
            (chance * nll[:, 0]).sum().backward()
            slopes.append(float(logits.grad.abs().max()))
        assert slopes[0] < 1e-7  # the data is given in fp32
        assert slopes[1] > 1e-3


def test_the_absorbing_process_is_refused(table: Callable[..., Any]) -> None:
    with pytest.raises(UserError, match=r"the uniform NELBO is .* process is 'absorbing'; train"):
        uniform_nelbo(table(), torch.zeros(2, 1).long(), Draw(torch.arange(2), 2, 0, 0))


def test_the_right_prediction_has_the_entropy_of_the_data() -> None:
    """One token has no others, so its law is the prediction; the NELBO's integral over time."""
    process, data = Uniform(K), torch.tensor([0.7, 0.2, 0.1], dtype=torch.float64)
    u = 0.01 + 0.99 * (torch.arange(20_000).double() + 0.5) / 20_000
    t = u**4  # from 1e-8 on: the integrand grows like log(1 / t)
    alpha = process.schedule.alpha(t)[:, None, None]
    seen = alpha * torch.eye(K).double() + (1 - alpha) / K
    total = torch.zeros_like(t)
    for x in range(K):
        for z in range(K):
            cell = torch.full((len(t), 1), x), torch.full((len(t), 1), z)
            nll = process.nll_per_token(data.log().expand(len(t), 1, K), *cell, t)
            total += data[x] * seen[:, z, x] * nll[:, 0]
    integral = 0.99 * float((total * 4 * u**3).mean())
    # what is missing is the divergence of z_1 from the prior, with alpha_1 = 1e-3
    assert integral == pytest.approx(-float((data * data.log()).sum()), abs=1e-5)
