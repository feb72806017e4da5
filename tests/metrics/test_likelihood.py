"""The NELBO of rows against enumeration of every corrupted state, in float64."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from idlm.errors import UserError
from idlm.metrics import NelboPerplexity
from idlm.metrics.nelbo import diffusion_nats, reconstruction_nats
from idlm.models import DiffusionConfig, DiffusionLM
from idlm.objectives import Draw, masked_nelbo
from idlm.objectives.udlm import uniform_nelbo
from idlm.random import Stream

PROCESSES = ["absorbing", "uniform"]
STATES = 3
FIRST = 1e-3


def model_of(process: str, **changes: Any) -> DiffusionLM:
    """A random network of three clean states and two positions, in float64."""
    sizes: dict[str, Any] = {
        "process": process,
        "vocab_size": STATES + (process == "absorbing"),
        "model_length": 2,
        "hidden_dim": 4,
        "cond_dim": 4,
        "n_blocks": 1,
        "n_heads": 2,
        "dropout": 0.0,
        "time_conditioning": process == "uniform",
    }
    torch.manual_seed(3)
    model = DiffusionLM(DiffusionConfig(**{**sizes, **changes}))
    for weight in model.parameters():
        torch.nn.init.normal_(weight, std=0.7)
    return model.double().eval()


def expected(model: DiffusionLM, row: torch.Tensor, t: float, value: Callable[..., Any]) -> float:
    """Sum over all states z of q(z | x) times the value of a network call at z."""
    process = model.process
    states = torch.tensor(list(itertools.product(range(process.vocab_size), repeat=len(row))))
    times = torch.full((len(states),), t, dtype=torch.float64)
    alpha = float(process.schedule.alpha(times[0]))
    noise = torch.zeros(process.vocab_size, dtype=torch.float64)
    if process.name == "absorbing":
        noise[-1] = 1.0
    else:
        noise[:] = 1.0 / process.vocab_size
    chance = torch.ones(len(states), dtype=torch.float64)
    for position, token in enumerate(row.tolist()):
        state = states[:, position]
        chance *= alpha * (state == token) + (1 - alpha) * noise[state]
    with torch.no_grad():
        logits = model(states, timesteps=process.schedule.sigma(times.clamp(max=1.0))).logits
    log_probs = process.log_probs(logits, states)
    x0 = row.expand(len(states), -1)
    return float((chance.unsqueeze(-1) * value(process, log_probs, x0, states, times)).sum())


def integrand(process: Any, log_probs: Any, x0: Any, z: Any, t: Any) -> torch.Tensor:
    return process.nll_per_token(log_probs, x0, z, t)


def last_step(process: Any, log_probs: Any, x0: Any, z: Any, t: Any) -> torch.Tensor:
    posterior = process.posterior(log_probs.exp(), z, torch.zeros_like(t), t)
    return -posterior.gather(-1, x0.unsqueeze(-1)).squeeze(-1).clamp(min=1e-300).log()


def integral(model: DiffusionLM, row: torch.Tensor, low: float, high: float) -> float:
    """Gauss-Legendre over the time; the network is smooth in it up to a kink at 1."""
    total = 0.0
    for a, b in [(low, min(high, 0.1)), (0.1, min(high, 1.0)), (1.0, high)]:
        nodes, weights = np.polynomial.legendre.leggauss(24)
        if b > a:
            total += sum(
                0.5
                * (b - a)
                * w
                * expected(model, row, 0.5 * (b - a) * x + 0.5 * (a + b), integrand)
                for x, w in zip(nodes, weights, strict=True)
            )
    return total


def exact(model: DiffusionLM, row: torch.Tensor, interval: str) -> float:
    """Nats of the row that the metric estimates."""
    if interval == "published":
        return integral(model, row, FIRST, 1.0) / (1.0 - FIRST)
    end = float(model.process.schedule.inverse(torch.zeros((), dtype=torch.float64)))
    return integral(model, row, FIRST, end * (1 - 1e-9)) + expected(model, row, FIRST, last_step)


@pytest.mark.parametrize("interval", ["published", "whole"])
@pytest.mark.parametrize("process", PROCESSES)
def test_the_mean_over_draws_is_the_exact_nelbo_within_its_stated_error(
    process: str, interval: str
) -> None:
    model = model_of(process)
    rows = torch.tensor([[0, 1], [2, 2]])
    metric = NelboPerplexity(model, draws=16, interval=interval, batch_size=4096)
    metric.update(rows.repeat(2048, 1))
    found = metric.details()
    wanted = sum(exact(model, row, interval) for row in rows) / rows.numel()
    # 16 draws: a t-value with 15 degrees of freedom above 4.5 comes once in two thousand seeds
    assert abs(found["nats_per_token"] - wanted) < 4.5 * found["nats_per_token_stderr"]
    assert found["nats_per_token_stderr"] < 0.02 * wanted  # so that the line above says something
    assert found["perplexity"] == pytest.approx(math.exp(found["nats_per_token"]))
    assert found["perplexity_stderr"] == pytest.approx(
        found["perplexity"] * found["nats_per_token_stderr"]
    )
    assert float(metric.compute()) == pytest.approx(found["perplexity"])


@pytest.mark.parametrize("process", PROCESSES)
def test_the_stated_error_is_the_spread_of_the_value_over_seeds(process: str) -> None:
    model, rows = model_of(process), torch.tensor([[0, 1], [2, 2], [1, 0]]).repeat(4, 1)
    values, errors = [], []
    for seed in range(150):
        metric = NelboPerplexity(model, draws=4, strata=6, seed=seed, batch_size=12)
        metric.update(rows)
        found = metric.details()
        values.append(found["nats_per_token"])
        errors.append(found["nats_per_token_stderr"] ** 2)
    # a ratio of variances with 149 and 450 degrees of freedom, of values with heavy tails
    assert 0.6 < np.var(values, ddof=1) / np.mean(errors) < 1.6


def test_the_whole_interval_is_the_mean_over_orders_and_so_a_bound_of_the_likelihood() -> None:
    """Without time conditioning the masked NELBO is the mean over orders of -log p(x | order)."""
    model, row = model_of("absorbing"), torch.tensor([0, 1])
    mask = STATES

    def log_p(state: list[int], position: int) -> float:
        z = torch.tensor([state])
        with torch.no_grad():
            table = model.process.log_probs(model(z).logits, z)
        return float(table[0, position, row[position]])

    first, second = row.tolist()
    orders = [
        log_p([mask, mask], 0) + log_p([first, mask], 1),
        log_p([mask, mask], 1) + log_p([mask, second], 0),
    ]
    bound = exact(model, row, "whole")
    # the last step reveals what is left at t = 0.001 at once: 1e-6 of the time that is two tokens
    assert bound == pytest.approx(-sum(orders) / 2, abs=1e-5)
    likelihood = -math.log(sum(math.exp(value) for value in orders) / 2)
    assert bound > likelihood + 1e-4
    # what the published interval leaves out is a thousandth at either end
    assert 0 < bound - exact(model, row, "published") < 0.01 * bound


@pytest.mark.parametrize(
    ("process", "plain"), [("absorbing", masked_nelbo), ("uniform", uniform_nelbo)]
)
def test_rows_sum_to_the_training_loss_on_the_same_noise(process: str, plain: Any) -> None:
    model = model_of(process, model_length=16)
    tokens, draw = torch.randint(0, STATES, (5, 16)), Draw(torch.arange(5), 5, 1, 2)
    noise = draw.uniform(16, stream=Stream.CORRUPT)
    nats = diffusion_nats(model, tokens, draw.times(Stream.TIME), noise)
    with torch.no_grad():
        # the loss keeps times and weights in float32, cast before or after 1/t
        assert float(nats.sum()) == pytest.approx(float(plain(model, tokens, draw).total), rel=2e-6)


@pytest.mark.parametrize("process", PROCESSES)
def test_given_positions_stay_clean_and_do_not_count(process: str) -> None:
    model = model_of(process, model_length=4)
    tokens = torch.randint(0, STATES, (2, 4))
    noise, t = torch.zeros(2, 4, dtype=torch.float64), torch.tensor([0.5, 0.9]).double()
    scored = torch.tensor([[False, False, True, True], [False, True, True, False]])
    for value in (diffusion_nats, reconstruction_nats):
        found = value(model, tokens, t, noise, scored=scored)
        z = torch.where(scored, model.process.corrupt(tokens, t, noise), tokens)
        with torch.no_grad():
            logits = model(z, timesteps=model.process.schedule.sigma(t)).logits
        log_probs = model.process.log_probs(logits, z)
        term = integrand if value is diffusion_nats else last_step
        plain = term(model.process, log_probs, tokens, z, t)
        torch.testing.assert_close(found, (plain * scored).sum(-1), rtol=1e-10, atol=1e-12)
        assert bool((found > 0).all())


@pytest.mark.parametrize("process", PROCESSES)
def test_two_halves_merged_equal_one_and_batches_do_not_matter(process: str) -> None:
    model, rows = model_of(process), torch.randint(0, STATES, (22, 2))
    options: dict[str, Any] = {"draws": 3, "strata": 5, "interval": "whole"}
    whole = NelboPerplexity(model, batch_size=22, **options)
    whole.update(rows)
    halves = [NelboPerplexity(model, batch_size=4, **options) for _ in range(2)]
    for number, half in enumerate(halves):
        index = torch.arange(number, 22, 2)
        half.update(rows[index], index)
    torch.testing.assert_close(halves[0].nats + halves[1].nats, whole.nats, rtol=1e-12, atol=0)
    merged = halves[0]
    merged.merge_state(halves[1])
    assert merged.details() == pytest.approx(whole.details())
    assert whole.details()["tokens"] == 44
    # without numbers, rows are counted on from the last update
    pieces = NelboPerplexity(model, **options)
    for piece in rows.split(9):
        pieces.update(piece)
    assert pieces.details() == pytest.approx(whole.details())


def test_every_row_meets_all_times_and_neighbours_share_them_out() -> None:
    model = model_of("absorbing")
    metric = NelboPerplexity(model, draws=2, strata=4)
    times = torch.stack(
        [
            metric._times(model.process.schedule, torch.arange(8), {"seed": 0, "step": step})[0]
            for step in range(400)
        ]
    )
    strata = ((times - FIRST) / (1 - FIRST) * 4).floor()
    for block in (strata[:, :4], strata[:, 4:]):
        assert block.sort(-1).values.eq(torch.arange(4)).all()
    share = torch.stack([(strata == k).double().mean(0) for k in range(4)])
    # 400 draws of a quarter: five standard errors
    assert bool((share - 0.25).abs().max() < 5 * math.sqrt(0.25 * 0.75 / 400))


def test_a_row_that_is_not_finite_is_counted_and_is_not_left_out_of_the_value() -> None:
    model = model_of("absorbing")
    with torch.no_grad():
        model.backbone.vocab_embed.embedding[2] = math.nan  # a row that shows token 2 fails
    metric = NelboPerplexity(model, draws=8)
    metric.update(torch.tensor([[0, 1], [2, 2], [1, 1]]))
    found = metric.details()
    assert (found["rows"], found["failed_rows"], found["tokens"]) == (3, 1, 6)
    assert math.isnan(found["nats_per_token"])
    assert math.isnan(found["perplexity"])


def test_a_model_that_thinks_a_real_token_impossible_has_no_better_perplexity() -> None:
    model = model_of("absorbing")
    with torch.no_grad():
        model.backbone.output_layer.linear.bias[2] = -math.inf
    metric = NelboPerplexity(model, draws=8, interval="whole")
    metric.update(torch.tensor([[0, 1], [2, 2], [1, 1]]))
    found = metric.details()
    assert (found["failed_rows"], found["tokens"]) == (1, 6)
    assert not math.isfinite(found["perplexity"])


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"draws": 1}, "draws is 1; a standard error needs 2 or more"),
        ({"interval": "all"}, "interval is 'all'; choose one of published, whole"),
        ({"strata": 0}, "strata is 0; it must be 1 or more"),
    ],
)
def test_settings_that_give_no_number_are_refused(options: Any, sentence: str) -> None:
    with pytest.raises(UserError, match=sentence):
        NelboPerplexity(model_of("absorbing"), **options)


def test_the_mask_is_no_token_of_a_text() -> None:
    with pytest.raises(UserError, match="the token 3 and the network knows 0 to 2"):
        NelboPerplexity(model_of("absorbing")).update(torch.tensor([[0, 3]]))
