"""Each sampler's samples follow its exact law: chi-square on V = 3, L = 3 at level 1e-3."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

import idlm
from idlm.models import DiffusionLM
from idlm.sampling import StepState, ancestral
from tests.sampling.exact import LEVEL, MASK, Exact, State, agrees, chance_of_more, count, stopped
from tests.sampling.helpers import loud, observed, once_per_state

Make = Callable[..., DiffusionLM]
LENGTH, N, SEED = 3, 40_000, 17
FREE: State = (MASK,) * LENGTH
GIVEN = {
    "free": (FREE, {}),
    "prompted": ((1, MASK, MASK), {"prompt": [1]}),
    "infilled": ((MASK, 0, MASK), {"infill": [MASK, 0, MASK]}),
}
SHARP = {"temperature": 0.6}
NUCLEUS = {"temperature": 1.5, "top_p": 0.7}


def tiny(make: Make, *, context: int = LENGTH, **changes: Any) -> DiffusionLM:
    # seed 33: of the first 60 the one whose orders differ most
    model = make(seed=33, vocab_size=4, model_length=context, **changes).double()
    bias = model.backbone.output_layer.linear.bias
    with torch.no_grad():
        # undecided at the start, so that many final states are likely
        start = torch.full((1, context), MASK)
        bias -= 0.8 * model(start, timesteps=torch.ones(1)).logits[0].mean(0)
        bias[MASK] += 5.0  # a network that would love to answer with the mask
    once_per_state(model, states=MASK + 1)
    return model


def observe(model: DiffusionLM, steps: int, **request: Any) -> list[dict[State, int]]:
    length = None if "infill" in request else LENGTH
    return observed(model, N, length, steps, seed=SEED, **request)


@pytest.mark.parametrize("given", GIVEN)
@pytest.mark.parametrize(
    ("order", "steps", "conditioned", "settings"),
    [
        ("random", 1, False, {}),
        ("random", 2, True, {}),
        ("random", 4, False, NUCLEUS),
        ("random", 2, False, SHARP),
        ("confidence", 3, False, {}),
        ("confidence", 2, True, NUCLEUS),
        ("entropy", 3, False, SHARP),
        ("margin", 3, True, {}),
        ("margin", 2, False, NUCLEUS),
    ],
)
def test_the_distribution_over_states_equals_exact_enumeration(
    make: Make, given: str, order: str, steps: int, conditioned: bool, settings: dict[str, float]
) -> None:
    model = tiny(make, time_conditioning=conditioned)
    start, request = GIVEN[given]
    exact = Exact(model, steps, order=order, **settings).walk(start)
    seen = observe(model, steps, order=order, **request, **settings)
    for step, (counts, law) in enumerate(zip(seen, exact, strict=True)):
        assert agrees(counts, law), f"after step {step}"


@pytest.mark.parametrize("order", ["random", "confidence"])
@pytest.mark.parametrize(("start", "request_"), GIVEN.values(), ids=list(GIVEN))
@pytest.mark.parametrize("stride", [1, 2])
def test_windows_follow_their_exact_law_and_a_stop_rule_cuts_it(
    make: Make, order: str, start: State, request_: dict[str, Any], stride: int
) -> None:
    model = tiny(make, context=2)
    law = Exact(model, 2, order=order).windows(start, 2, stride)
    settings: dict[str, Any] = {"seed": SEED, "order": order, "stride": stride, "batch_size": N}
    length = None if "infill" in request_ else LENGTH
    out = idlm.generate(model, N, length, 2, **settings, **request_)
    assert agrees(count(out.tokens), law)
    if "infill" not in request_:
        out = idlm.generate(model, N, length, 2, stop=2, **settings, **request_)
        assert agrees(count(out.tokens), stopped(law, 2, start))
        assert not agrees(count(out.tokens), law)


@pytest.mark.parametrize("order", ["random", "confidence", "entropy", "margin"])
def test_no_order_passes_for_another(make: Make, order: str) -> None:
    model = tiny(make)
    final = observe(model, 3, order=order)[1]
    passing = [
        other
        for other in ("random", "confidence", "entropy", "margin")
        if agrees(final, Exact(model, 3, order=other).walk(FREE)[1])
    ]
    assert passing == [order]


def forget_the_tail(patch: pytest.MonkeyPatch) -> None:
    """Noise that never exceeds 0.97: the last tokens of the vocabulary are drawn too rarely."""
    draw = ancestral.draw
    patch.setattr(ancestral, "draw", lambda log_p, noise: draw(log_p, noise * 0.97))


def share_the_noise(patch: pytest.MonkeyPatch) -> None:
    """One number for all positions: each alone is right, together they are not independent."""
    uniform = ancestral.random.uniform

    def first(*shape: int, **keys: Any) -> Tensor:
        return uniform(*shape, **keys)[:, :1].expand(-1, *shape)

    patch.setattr(ancestral.random, "uniform", first)


def reveal_too_early(patch: pytest.MonkeyPatch) -> None:
    """The right tokens at the wrong time: the chance of step s instead of (s - t)/(1 - t)."""
    patch.setattr(
        ancestral.Absorbing,
        "reveal_probability",
        lambda self, s, t: self.schedule.alpha(s),
    )


def skip_the_nucleus(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(ancestral, "nucleus", lambda log_p, top_p: log_p)


@pytest.mark.parametrize(
    ("spoil", "settings"),
    [
        (forget_the_tail, {}),
        (share_the_noise, {}),
        (reveal_too_early, {}),
        (skip_the_nucleus, NUCLEUS),
    ],
)
def test_a_wrong_sampler_is_found_out_at_the_same_level(
    make: Make,
    monkeypatch: pytest.MonkeyPatch,
    spoil: Callable[[pytest.MonkeyPatch], None],
    settings: dict[str, float],
) -> None:
    model = tiny(make)
    exact = Exact(model, 3, **settings).walk(FREE)
    assert all(map(agrees, observe(model, 3, **settings), exact))
    spoil(monkeypatch)
    assert not all(map(agrees, observe(model, 3, **settings), exact))


def test_the_enumerated_denoiser_depends_on_its_context(make: Make) -> None:
    """Otherwise the tests above would pass for a sampler that shows the network a wrong state."""
    model = tiny(make)
    exact = Exact(model, 1)
    first = [exact.predict((MASK, a, b), 1.0)[0][0] for a in range(4) for b in range(4)]
    assert max(first) - min(first) > 0.2
    one, four = exact.walk(FREE)[-1], Exact(model, 4).walk(FREE)[-1]
    assert max(abs(one[state] - four[state]) for state in one) > 0.01
    assert sum(chance > 0.01 for chance in four.values()) >= 15  # of 27: many cells to compare


def test_the_level_of_chi_square_is_the_tables() -> None:
    for freedom, table in ((1, 10.828), (2, 13.816), (8, 26.124), (26, 54.052)):
        assert chance_of_more(table, freedom) == pytest.approx(LEVEL, rel=1e-3)


def test_a_generator_keeps_what_is_given_and_repeats_itself(make: Make) -> None:
    model = loud(tiny(make))
    states: list[StepState] = []
    for _ in range(2):
        idlm.generate(model, 50, 3, 3, prompt=[1], seed=2, callback=states.append)
    assert all(bool((state.tokens[:, 0] == 1).all()) for state in states)
    for first, second in zip(states[:3], states[3:], strict=True):
        assert torch.equal(first.tokens, second.tokens)
    assert not torch.equal(idlm.generate(model, 50, 3, 3, seed=3).tokens, states[2].tokens)
