"""The sampler's distribution equals the published ancestral kernel, state by state."""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import product

import pytest
import torch
from torch import Tensor

import idlm
from idlm.models import DiffusionLM
from idlm.processes import Absorbing
from idlm.sampling import StepState

Make = Callable[..., DiffusionLM]
LENGTH, MASK = 3, 2
STATES = list(product(range(3), repeat=LENGTH))  # two tokens and the mask


def chi_square_limit(freedom: int) -> float:
    """The level 1e-4 of chi-square (Wilson and Hilferty; within 1 per cent from 1 degree up)."""
    return freedom * (1 - 2 / (9 * freedom) + 3.719 * math.sqrt(2 / (9 * freedom))) ** 3


def alpha(t: float) -> float:
    return 1.0 - 0.999 * t


@torch.no_grad()
def enumerate_kernel(
    model: DiffusionLM, steps: int, temperature: float = 1.0, top_p: float = 1.0
) -> list[Tensor]:
    """Probability of each of the 27 states after each step of the published update.

    A masked position stays masked with (1 - alpha_s)/(1 - alpha_t) and otherwise takes a token
    from p_theta, independently per position; visible positions stay (methods A.7).
    """
    states = torch.tensor(STATES)
    now = torch.zeros(27, dtype=torch.float64)
    now[STATES.index((MASK,) * LENGTH)] = 1.0
    after = []
    for i in range(steps):
        t, s = 1.0 - i / steps, 1.0 - (i + 1) / steps
        sigma = torch.full((27,), -math.log(alpha(t)), dtype=torch.float64)
        logits = model(states, timesteps=sigma).logits
        p = torch.softmax(logits[..., :MASK] / temperature, -1)
        if top_p < 1.0:  # two tokens: the better one alone, once it reaches top_p
            best = p.amax(-1, keepdim=True)
            p = torch.where(best >= top_p, (p == best).double(), p)
        stay = (1.0 - alpha(s)) / (1.0 - alpha(t))
        following = torch.zeros_like(now)
        for a, b in product(range(27), range(27)):
            chance = float(now[a])
            for position, (old, new) in enumerate(zip(STATES[a], STATES[b], strict=True)):
                if old != MASK:
                    chance *= float(old == new)
                elif new == MASK:
                    chance *= stay
                else:
                    chance *= (1.0 - stay) * float(p[a, position, new])
            following[b] += chance
        now = following
        after.append(now)
    return after


def observe(model: DiffusionLM, steps: int, n: int, **settings: float) -> list[Tensor]:
    """How often each of the 27 states was seen after each step, and at the end."""
    counts = [torch.zeros(27, dtype=torch.float64) for _ in range(steps)]
    digits = torch.tensor([9, 3, 1])

    def count(state: StepState) -> None:
        counts[state.step] += torch.bincount((state.tokens * digits).sum(-1), minlength=27)

    out = idlm.generate(model, n, LENGTH, steps, seed=11, callback=count, **settings)
    final = torch.bincount((out.tokens * digits).sum(-1), minlength=27)
    assert torch.equal(final.double(), counts[-1])
    return counts


def tiny(make: Make, **changes: object) -> DiffusionLM:
    model = make(vocab_size=3, model_length=LENGTH, **changes).double()
    bias = model.backbone.output_layer.linear.bias
    with torch.no_grad():
        # undecided at the start, so that many final states are likely
        start = torch.full((1, LENGTH), MASK)
        bias -= model(start, timesteps=torch.ones(1)).logits[0].mean(0)
        bias[MASK] += 5.0  # a network that would love to answer with the mask
    return model


@pytest.mark.parametrize(
    ("steps", "conditioned", "settings"),
    [
        (1, False, {}),
        (2, True, {}),
        (4, False, {}),
        (2, False, {"temperature": 0.6}),
        (2, False, {"temperature": 1.5, "top_p": 0.7}),
    ],
)
def test_the_distribution_over_states_equals_exact_enumeration(
    make: Make, steps: int, conditioned: bool, settings: dict[str, float]
) -> None:
    model = tiny(make, time_conditioning=conditioned)
    n = 12_000
    for step, (expected, seen) in enumerate(
        zip(
            enumerate_kernel(model, steps, **settings),
            observe(model, steps, n, **settings),
            strict=True,
        )
    ):
        assert float(expected.sum()) == pytest.approx(1.0, abs=1e-12)
        assert not bool(seen[expected == 0].any()), f"impossible states after step {step}"
        often = expected * n >= 5  # the rest forms one cell, as the test of chi-square asks
        cells, counts = [*(expected[often] * n)], [*seen[often]]
        rest = expected[~often].sum() * n
        if float(rest) >= 5:
            cells, counts = [*cells, rest], [*counts, seen[~often].sum()]
        statistic = sum(float((c - e) ** 2 / e) for c, e in zip(counts, cells, strict=True))
        assert statistic < chi_square_limit(len(cells) - 1), f"after step {step}"


def test_the_enumerated_denoiser_depends_on_its_context(make: Make) -> None:
    """Otherwise the test above would pass for a sampler that shows the network a wrong state."""
    model = tiny(make)
    states = torch.tensor(STATES)
    with torch.no_grad():
        p = model.process.log_probs(model(states).logits, states).exp()[:, 0, 0]
    masked_first = states[:, 0] == MASK
    assert float(p[masked_first].max() - p[masked_first].min()) > 0.2
    one, four = enumerate_kernel(model, 1)[-1], enumerate_kernel(model, 4)[-1]
    assert float((one - four).abs().max()) > 0.01
    assert int((four > 0.01).sum()) >= 5  # of eight: several cells to compare


def test_each_step_shows_the_network_its_own_time(make: Make) -> None:
    model = make(time_conditioning=True)
    seen: list[Tensor] = []
    model.backbone.register_forward_pre_hook(lambda _, args: seen.append(args[1]))
    idlm.generate(model, 2, 16, 4, seed=0)
    assert [len(sigma) for sigma in seen] == [2] * 4
    expected = [-math.log(alpha(t)) for t in (1.0, 0.75, 0.5, 0.25)]
    assert [float(sigma[0]) for sigma in seen] == pytest.approx(expected, rel=1e-6)  # fp32


def test_each_call_and_each_sample_gets_fresh_noise_by_its_number(make: Make) -> None:
    model = make().with_latent(latent_global=2, latent_position=3)
    seen = []
    model.backbone.register_forward_pre_hook(lambda _, args: seen.append(args[2]))
    idlm.generate(model, 2, 16, 3, seed=9, first_index=5)
    assert len(seen) == 3
    for step, latent in enumerate(seen):
        expected = model.sample_latent(torch.tensor([5, 6]), 16, seed=9, step=step)
        assert torch.equal(latent.vector, expected.vector)
        assert torch.equal(latent.position, expected.position)
    assert torch.cat([latent.vector for latent in seen]).unique().numel() == 3 * 2 * 2


def test_steps_reveal_positions_for_good_and_the_callback_sees_which(make: Make) -> None:
    model = make()
    mask = model.process.mask_id
    states: list[StepState] = []
    idlm.generate(model, 8, 16, 5, seed=2, callback=states.append)
    before = torch.full((8, 16), mask)
    for number, state in enumerate(states):
        assert (state.step, state.steps) == (number, 5)
        assert torch.equal(state.revealed, (before == mask) & (state.tokens != mask))
        assert torch.equal(state.tokens[before != mask], before[before != mask])
        before = state.tokens
    assert [state.nfe for state in states] == [1, 2, 3, 4, 5]
    assert not bool((before == mask).any())


def test_the_number_of_tokens_per_step_follows_the_schedule(make: Make) -> None:
    n, steps = 200, 4
    model = make(schedule="cosine", model_length=64)
    shown = torch.zeros(steps)

    def count(state: StepState) -> None:
        shown[state.step] += state.revealed.sum()

    idlm.generate(model, n, 64, steps, seed=0, callback=count)
    process = model.process
    assert isinstance(process, Absorbing)
    ends = process.schedule.alpha(torch.linspace(1, 0, steps + 1, dtype=torch.float64))
    share = ends.diff() / (1 - ends[0])
    bound = 4 * torch.sqrt(share * (1 - share) / (n * 64))  # four standard deviations
    assert bool(((shown.double() / (n * 64) - share).abs() < bound).all())
