"""The uniform sampler follows its exact law: K = 3 tokens, float64 trees of states, chi-square.

The laws are written from Bayes' rule alone, in plain Python; nothing of ``idlm.sampling`` is used.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable
from itertools import pairwise, product
from typing import Any

import pytest
import torch
from torch import Tensor

import idlm
from idlm.errors import UserError
from idlm.models import DiffusionLM
from idlm.processes import Uniform
from idlm.sampling import StepState, uniform
from idlm.sampling.sharded import Processes, _merged, generate_sharded
from idlm.sampling.uniform import Mixture
from tests.sampling.exact import Law, State, agrees, alpha, count, reshaped
from tests.sampling.helpers import count_calls, loud, observed, once_per_state

Make = Callable[..., DiffusionLM]
Predict = Callable[[State, float], list[list[float]]]
K, LENGTH, N, SEED = 3, 3, 40_000, 23
TAILS = ("ancestral", "greedy")
OPEN = -1
GIVEN: dict[str, tuple[State, dict[str, Any]]] = {
    "free": ((OPEN,) * LENGTH, {}),
    "prompted": ((1, OPEN, OPEN), {"prompt": [1]}),
    "infilled": ((OPEN, 0, OPEN), {"infill": ([7, 0, 7], [True, False, True])}),
}
SHARP = {"temperature": 0.6}
NUCLEUS = {"temperature": 1.5, "top_p": 0.7}


# The law


def reverse(p: list[float], z: int, s: float, t: float) -> list[float]:
    """P(z_s | z_t) by Bayes if the clean token has the law p: prior at s times likelihood of z."""
    kept = alpha(t) / alpha(s)
    joint = [
        (alpha(s) * p[v] + (1.0 - alpha(s)) / K) * ((v == z) * kept + (1.0 - kept) / K)
        for v in range(K)
    ]
    return [x / sum(joint) for x in joint]


def walk(
    predict: Predict,
    start: State,
    steps: int,
    *,
    tail: str = "ancestral",
    temperature: float = 1.0,
    top_p: float = 1.0,
) -> list[Law]:
    """The law of the states after every step from ``start``, whose open places hold OPEN."""
    end = 1e-5 if tail == "greedy" else 0.0
    grid = [1.0 + (end - 1.0) * i / steps for i in range(steps + 1)]
    free = [range(K) if token == OPEN else [token] for token in start]
    now = {state: float(K) ** -start.count(OPEN) for state in product(*free)}
    laws: list[Law] = []
    for i in range(steps + (tail == "greedy")):
        after: Law = defaultdict(float)
        for state, chance in now.items():
            options = []
            for place, row in enumerate(predict(state, grid[i])):
                if start[place] != OPEN:
                    options.append([(state[place], 1.0)])
                elif i == steps:
                    options.append([(row.index(max(row)), 1.0)])
                else:
                    p = reshaped(row, temperature, top_p)
                    options.append(list(enumerate(reverse(p, state[place], grid[i + 1], grid[i]))))
            for draw in product(*options):
                weight = math.prod(x for _, x in draw)
                if weight:
                    after[tuple(token for token, _ in draw)] += chance * weight
        now = dict(after)
        laws.append(now)
    return laws


def of_model(model: DiffusionLM) -> Predict:
    """p_theta of a network, each state and time once."""
    known: dict[tuple[State, float], list[list[float]]] = {}

    @torch.no_grad()
    def predict(state: State, t: float) -> list[list[float]]:
        if (state, t) not in known:
            sigma = torch.tensor([-math.log(alpha(t))], dtype=torch.float64)
            logits = model(torch.tensor([state]), timesteps=sigma).logits[0]
            known[state, t] = torch.softmax(logits, -1).tolist()
        return known[state, t]

    return predict


def tiny(make: Make, *, context: int = LENGTH, **changes: Any) -> DiffusionLM:
    """A float64 network that is undecided on average and depends on state and time."""
    settings = {"process": "uniform", "time_conditioning": True, **changes}
    # seed 26: of the first 60 the one whose likeliest tokens differ most from state to state
    model = make(seed=26, vocab_size=K, model_length=context, **settings).double()
    states = torch.tensor(list(product(range(K), repeat=context)))
    with torch.no_grad():
        mean = model(states, timesteps=torch.ones(len(states))).logits.mean((0, 1))
        model.backbone.output_layer.linear.bias -= mean
    once_per_state(model, states=K)
    return model


def observe(model: DiffusionLM, steps: int, **request: Any) -> list[dict[State, int]]:
    length = None if "infill" in request else LENGTH
    return observed(model, N, length, steps, seed=SEED, **request)


@pytest.mark.parametrize("given", GIVEN)
@pytest.mark.parametrize("tail", TAILS)
@pytest.mark.parametrize(
    ("steps", "settings"), [(1, {}), (2, SHARP), (3, {}), (4, NUCLEUS)], ids=str
)
def test_the_distribution_over_states_equals_exact_enumeration(
    make: Make, given: str, tail: str, steps: int, settings: dict[str, float]
) -> None:
    model = tiny(make)
    start, request = GIVEN[given]
    exact = walk(of_model(model), start, steps, tail=tail, **settings)
    seen = observe(model, steps, tail=tail, **request, **settings)
    assert len(seen) == steps + (tail == "greedy")
    for step, (counts, law) in enumerate(zip(seen, exact, strict=True)):
        assert agrees(counts, law), f"after step {step}"


def test_windows_follow_their_exact_law_and_share_no_noise(make: Make) -> None:
    model = tiny(make, context=2)
    predict = of_model(model)
    for tail in TAILS:
        law: Law = {}
        for text, chance in walk(predict, (OPEN, OPEN), 2, tail=tail)[-1].items():
            for part, weight in walk(predict, (text[1], OPEN), 2, tail=tail)[-1].items():
                law[text[:1] + part] = law.get(text[:1] + part, 0.0) + chance * weight
        out = idlm.generate(model, N, 3, 2, seed=SEED, stride=1, tail=tail, batch_size=N)
        assert agrees(count(out.tokens), law)


def test_no_tail_and_no_settings_pass_for_others(make: Make) -> None:
    model = tiny(make)
    predict, free = of_model(model), GIVEN["free"][0]
    cases: list[dict[str, Any]] = [{}, {"tail": "greedy"}, SHARP, NUCLEUS]
    for case in cases:
        final = observe(model, 3, **case)[-1]
        passing = [other for other in cases if agrees(final, walk(predict, free, 3, **other)[-1])]
        assert passing == [case]


# Wrong samplers, found out by the same test


def mixture_of_posteriors(patch: pytest.MonkeyPatch) -> None:
    """Draws a clean token from the prediction and plugs that in: Bayes is missing in between."""

    def redraw(
        model: DiffusionLM, features: Tensor, z: Tensor, noise: Tensor, parts: Mixture, _: Any
    ) -> tuple[Tensor, None]:
        p = torch.softmax(model.head(features), -1)
        clean = uniform.draw(p.log(), noise[1])
        hot = torch.nn.functional.one_hot(clean, K).double()
        return uniform.draw(parts.table(hot, z).log(), noise[0]), None

    patch.setattr(uniform, "_redraw", redraw)
    patch.setattr(Mixture, "most", 1.0)


def keep_the_network_out_of_staying(patch: pytest.MonkeyPatch) -> None:
    """A token stays as if the network gave it no chance."""
    parts = Uniform.parts
    patch.setattr(Uniform, "parts", lambda *alphas: (*parts(*alphas)[:3], 0.0))


def draw_the_part_by_the_tokens_noise(patch: pytest.MonkeyPatch) -> None:
    """One number for the part and for the token in it: low ids where p_theta is drawn."""
    plain = uniform.random.uniform

    def same(*shape: int, stream: int, **keys: Any) -> Tensor:
        swapped = uniform.Stream.REVEAL if stream == uniform.Stream.TOKEN else stream
        return plain(*shape, stream=swapped, **keys)

    patch.setattr(uniform.random, "uniform", same)


def skip_the_nucleus(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(uniform, "nucleus", lambda log_p, top_p: log_p)


def start_from_one_token(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Uniform, "prior", lambda self, shape, like, noise: torch.zeros_like(like))


@pytest.mark.parametrize(
    ("spoil", "settings"),
    [
        (mixture_of_posteriors, {}),
        (keep_the_network_out_of_staying, {}),
        (draw_the_part_by_the_tokens_noise, {}),
        (start_from_one_token, {}),
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
    exact = walk(of_model(model), GIVEN["free"][0], 3, **settings)
    assert all(map(agrees, observe(model, 3, **settings), exact))
    spoil(monkeypatch)
    assert not all(map(agrees, observe(model, 3, **settings), exact))


# The mixture


@pytest.mark.parametrize("times", [(0.0, 1.0), (0.4, 0.5), (0.0, 1e-5), (0.999, 1.0), (0.0, 0.25)])
def test_the_mixture_is_the_plug_in_posterior(times: tuple[float, float]) -> None:
    s, t = (torch.tensor([time], dtype=torch.float64) for time in times)
    process = Uniform(5)
    p = torch.rand(4, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    p = torch.cat([p / p.sum(-1, keepdim=True), torch.eye(5, dtype=torch.float64)])
    z = torch.arange(9) % 5
    alphas = [float(process.schedule.alpha(time)) for time in (s, t)]
    parts = Mixture(*process.parts(*alphas))
    exact = process.posterior(p[None], z[None], s, t)[0]
    assert torch.allclose(parts.table(p, z), exact, atol=1e-12, rtol=0)  # float64, 5 terms
    # the coin that picks a part has the same law: a fine grid of coins, each part by its share
    coins = (torch.arange(100_000, dtype=torch.float64) + 0.5) / 100_000
    for row, here in zip(p, z.tolist(), strict=True):
        clean, noise = parts.choose(coins, row[here])
        assert not bool((clean & noise).any())
        assert bool((coins[clean | noise] < parts.most).all())  # the head was run there
        law = clean.double().mean() * row + noise.double().mean() / 5
        law[here] += (~clean & ~noise).double().mean()
        whole = parts.table(row[None], torch.tensor([here]))[0]
        assert torch.allclose(law, whole, atol=2e-5, rtol=0)  # two edges in a grid of 1e-5


def test_probabilities_are_the_posterior_and_do_not_change_the_draws(make: Make) -> None:
    model = tiny(make)
    states: list[StepState] = []
    request: dict[str, Any] = {"seed": 4, "tail": "greedy", "prompt": [1], **NUCLEUS}
    seen = idlm.generate(
        model, 50, 3, 6, callback=lambda s: states.append(s), probabilities=True, **request
    )
    assert torch.equal(seen.tokens, idlm.generate(model, 50, 3, 6, **request).tokens)
    predict = of_model(model)
    grid = [1.0 + (1e-5 - 1.0) * i / 6 for i in range(7)]
    for before, state in pairwise(states):
        assert state.probabilities is not None
        assert state.revealed.tolist() == [[False, True, True]] * 50
        rows = iter(state.probabilities.tolist())
        for z in map(tuple, before.tokens.tolist()):
            for place in (1, 2):
                t = grid[state.step]
                p = reshaped(predict(z, t)[place], *NUCLEUS.values())
                if state.step < 6:
                    p = reverse(p, z[place], grid[state.step + 1], t)
                assert next(rows) == pytest.approx(p, abs=1e-7)  # sigma is float32
        assert next(rows, None) is None


# A network whose prediction is exact

DATA = {(0, 0): 0.45, (1, 1): 0.3, (2, 2): 0.2, (0, 2): 0.05}


def leave_one_out(state: State, t: float) -> list[list[float]]:
    """P(x at a place | z_t at the other place) under DATA."""
    rows = []
    for place in (0, 1):
        row = [0.0] * K
        for x, chance in DATA.items():
            other = x[1 - place] == state[1 - place]
            row[x[place]] += chance * (alpha(t) * other + (1.0 - alpha(t)) / K)
        rows.append([value / sum(row) for value in row])
    return rows


def posterior_mean(state: State, t: float) -> list[list[float]]:
    """P(x at a place | z_t at both)."""
    rows = leave_one_out(state, t)
    for row, z in zip(rows, state, strict=True):
        row[:] = [p * (alpha(t) * (v == z) + (1.0 - alpha(t)) / K) for v, p in enumerate(row)]
        row[:] = [p / sum(row) for p in row]
    return rows


def distance(law: Law) -> float:
    """Total variation to DATA."""
    states = product(range(K), repeat=2)
    return sum(abs(law.get(state, 0.0) - DATA.get(state, 0.0)) for state in states) / 2


@pytest.mark.parametrize("tail", TAILS)
def test_an_exact_network_gives_the_data_as_the_steps_grow(tail: str) -> None:
    far = [
        distance(walk(leave_one_out, (OPEN, OPEN), n, tail=tail)[-1]) for n in (1, 4, 16, 64, 256)
    ]
    assert far == sorted(far, reverse=True)
    assert far[0] > 0.3  # one step draws both places independently, or takes the likeliest
    if tail == "greedy":
        # the likeliest token at both places at once turns the rare (0, 2) into (2, 0)
        assert far[-1] == pytest.approx(DATA[0, 2], abs=0.005)
    else:
        assert far[-1] < 0.005
        assert far[-1] < 0.3 * far[-2]  # and it keeps falling: the error is of order 1/N
        assert distance(walk(posterior_mean, (OPEN, OPEN), 256)[-1]) > 0.05


def test_the_sampler_follows_the_exact_network(make: Make) -> None:
    model = tiny(make, context=2)
    model.config.model_length = 2

    def features(tokens: Tensor, sigma: Tensor, latent: Any) -> Tensor:
        t = float((1.0 - torch.exp(-sigma[0].double())) / 0.999)
        table = {z: leave_one_out(z, t) for z in product(range(K), repeat=2)}
        return torch.tensor([table[tuple(row)] for row in tokens.tolist()]).double().log()

    model.features, model.head = features, lambda logits: logits
    out = idlm.generate(model, 10_000, 2, 16, seed=SEED, batch_size=10_000)
    assert agrees(count(out.tokens), walk(leave_one_out, (OPEN, OPEN), 16)[-1])


# What it costs, and what is kept


@pytest.mark.parametrize(("tail", "calls_"), [("ancestral", 5), ("greedy", 6)])
def test_a_step_is_one_call_and_the_greedy_tail_one_more(
    make: Make, tail: str, calls_: int
) -> None:
    model = make(process="uniform", time_conditioning=True)
    calls, states = count_calls(model), []
    out = idlm.generate(model, 8, 16, 5, seed=0, tail=tail, callback=states.append)
    assert calls == [8] * calls_
    assert out.nfe == calls_ == len(states) == states[-1].nfe == states[0].steps
    assert out.tokens_per_call == 16 / calls_


def test_the_head_runs_only_where_the_network_decides(make: Make) -> None:
    model = make(process="uniform", time_conditioning=True)
    head, sizes = model.head, []
    model.head = lambda features: (sizes.append(len(features)), head(features))[1]
    idlm.generate(model, 64, 16, 16, seed=0)
    assert max(sizes) <= 64 * 16
    assert sizes[-1] == 64 * 16  # alpha_s = 1: what stays depends on p_theta alone
    assert min(sizes) < 0.3 * 64 * 16


def test_a_row_in_which_all_stays_is_left_out_and_a_step_of_such_costs_nothing(make: Make) -> None:
    model = make(process="uniform", time_conditioning=True)
    calls = count_calls(model)
    infill = [[1, None, 3], [None, 2, 1]]
    out = idlm.generate(model, infill=infill, steps=50, seed=0)
    assert out.nfe == len(calls) < 50
    assert {1, 2} == set(calls)


def test_chunks_of_positions_change_nothing(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    model = make(process="uniform", time_conditioning=True).double()
    for tail in TAILS:
        whole = idlm.generate(model, 4, 16, 5, seed=0, tail=tail, top_p=0.9)
        with monkeypatch.context() as patch:
            patch.setattr(uniform, "ENTRIES", 3 * 13)
            parts = idlm.generate(model, 4, 16, 5, seed=0, tail=tail, top_p=0.9)
        assert torch.equal(whole.tokens, parts.tokens)


@pytest.mark.parametrize("tail", TAILS)
def test_no_two_draws_share_their_noise(
    make: Make, monkeypatch: pytest.MonkeyPatch, tail: str
) -> None:
    plain, used = uniform.random.uniform, []

    def noted(*shape: int, stream: int, step: int, **keys: Any) -> Tensor:
        used.append((stream, step))
        return plain(*shape, stream=stream, step=step, **keys)

    monkeypatch.setattr(uniform.random, "uniform", noted)
    model = make(process="uniform", time_conditioning=True)
    idlm.generate(model, 1, 40, 4, seed=0, stride=8, tail=tail)  # four windows
    assert len(set(used)) == len(used) >= 4 * (1 + 2 * 4)


@pytest.mark.parametrize("tail", TAILS)
@pytest.mark.parametrize(
    "request_",
    [
        {"prompt": [[1, 2, 3], [4], [5, 6, 7, 8, 9, 10, 12], [0, 0]]},
        {"infill": [[1, None, 2, None], [None] * 16, [12, 4, None], [None, 1, 1, None]]},
    ],
    ids=["prompt", "infill"],
)
def test_a_batch_equals_one_by_one_with_what_is_given_kept(
    make: Make, request_: dict[str, Any], tail: str
) -> None:
    model = loud(make(process="uniform", time_conditioning=True)).double()
    states: list[StepState] = []
    settings: dict[str, Any] = {"steps": 5, "seed": 3, "tail": tail}
    whole = idlm.generate(model, **request_, **settings, callback=states.append)
    assert torch.equal(
        whole.tokens, idlm.generate(model, **request_, **settings, batch_size=1).tokens
    )
    ((name, rows),) = request_.items()
    for number, row in enumerate(rows):
        alone = idlm.generate(model, **{name: row}, first_index=number, **settings)
        length = int(whole.lengths[number])
        assert torch.equal(whole.tokens[number, :length], alone.tokens[0])
        assert bool((whole.tokens[number, length:] == 13).all())  # V: no token stands there
    for state in states:
        for number, tokens in zip(state.sample.tolist(), state.tokens.tolist(), strict=True):
            pairs = list(zip(rows[number], tokens, strict=False))
            assert all(given in (None, token) for given, token in pairs)
            assert max(tokens) < 13


def test_an_infill_has_many_forms_and_one_meaning(make: Make) -> None:
    model = make(process="uniform", time_conditioning=True)
    expected = idlm.generate(model, 2, steps=4, infill=[1, None, 2, None], seed=0)
    row, write = [1, 99, 2, -4], [False, True, False, True]
    for form in ([[1, None, 2, None]] * 2, (row, write), ([row] * 2, torch.tensor([write] * 2))):
        out = idlm.generate(model, 2, steps=4, infill=form, seed=0)
        assert torch.equal(out.tokens, expected.tokens)
    masked = make()
    none = idlm.generate(masked, 2, steps=4, infill=[1, None, 2, None], seed=0)
    assert torch.equal(
        none.tokens, idlm.generate(masked, 2, steps=4, infill=[1, 12, 2, 12], seed=0).tokens
    )


def test_seeds_windows_stops_and_processes_work_as_for_masks(
    make: Make, capsys: pytest.CaptureFixture[str]
) -> None:
    model = make(process="uniform", time_conditioning=True).double()
    settings: dict[str, Any] = {"seed": 1, "stride": 6, "tail": "greedy"}
    seen = idlm.generate(model, 6, 40, 3, **settings).tokens
    settings["stop"] = [int(seen[0, 20]), int(seen[1, 30])]
    states: list[StepState] = []
    out = idlm.generate(model, 6, 40, 3, progress=True, callback=states.append, **settings)
    ended = out.lengths < 40
    assert bool(ended.any())
    assert not torch.equal(seen, out.tokens)
    last = out.tokens.gather(1, (out.lengths - 1)[:, None])
    assert bool(torch.isin(last[ended], torch.tensor(settings["stop"])).all())
    assert bool((states[0].tokens[:, 16:] == 13).all())  # where no window has begun
    assert "/20" in capsys.readouterr().err  # five windows of three steps and a tail
    later = idlm.generate(model, 2, 40, 3, first_index=4, **settings)
    assert torch.equal(later.tokens, out.tokens[4:])
    one = Processes(0, 1, torch.device("cpu"))
    sharded = generate_sharded(one, model, 6, 40, 3, **settings)
    assert torch.equal(sharded.tokens, out.tokens)
    shares = [
        idlm.generate(model, infill=rows, steps=2, seed=0, first_index=first)
        for first, rows in ((0, [[1, None]]), (1, [[1, None, 3]]))
    ]
    both = idlm.generate(model, infill=[[1, None], [1, None, 3]], steps=2, seed=0)
    assert torch.equal(_merged(shares, 13).tokens, both.tokens)


@pytest.mark.parametrize(
    ("process", "request_", "sentence"),
    [
        ("uniform", {"order": "confidence"}, "order is 'confidence', but the uniform process redr"),
        ("uniform", {"tail": "none"}, "tail is 'none'; choose one of ancestral, greedy"),
        ("absorbing", {"tail": "greedy"}, "tail is 'greedy', which is for the uniform process"),
        ("uniform", {"infill": [1, 2]}, r"nothing to write; .* by None in token ids, or by True"),
        ("uniform", {"infill": [1, 13]}, "token id 13; the model's tokens are 0 to 12"),
        ("uniform", {"infill": ([13, 1], [False, True])}, "token id 13; the model's tokens are 0"),
        ("uniform", {"infill": [1.5, None]}, "infill holds float64 such as 1.5; token ids are who"),
        ("uniform", {"infill": [[1], [None]]}, "infill 0 has nothing to write"),
        ("uniform", {"prompt": [1, None]}, "prompt is .*; token ids are whole numbers"),
        ("absorbing", {"prompt": [1, None]}, "prompt is .*; token ids are whole numbers"),
    ],
)
def test_what_the_process_cannot_follow_is_refused(
    make: Make, process: str, request_: dict[str, Any], sentence: str
) -> None:
    model = make(process=process)
    calls = count_calls(model)
    with pytest.raises(UserError, match=sentence) as caught:
        idlm.generate(model, **request_)
    assert calls == []
    assert "\n" not in str(caught.value)
