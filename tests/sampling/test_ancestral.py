"""The ancestral sampler step by step: times, noise, calls, states; its law has its own file."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

import idlm
from idlm.errors import UserError
from idlm.models import DiffusionLM
from idlm.processes import Absorbing
from idlm.sampling import ORDERS, StepState, ancestral, compile_for_sampling
from idlm.sampling.categorical import nucleus
from tests.sampling.helpers import count_calls

Make = Callable[..., DiffusionLM]


def alpha(t: float) -> float:
    return 1.0 - 0.999 * t


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


@pytest.mark.parametrize("order", ORDERS)
def test_the_head_runs_where_tokens_are_revealed_and_on_nothing_given(
    make: Make, order: str
) -> None:
    model = make()
    rows: list[int] = []
    head = model.backbone.output_layer.linear
    head.register_forward_hook(lambda _, args, out: rows.append(out.numel() // 13))
    idlm.generate(model, 3, 16, 4, seed=0, prompt=[1, 2, 3, 4], order=order)
    drawn = 3 * 12  # each open position once
    ranked = 0 if order == "random" else 3 * (12 + 9 + 6 + 3)  # every masked one in each step
    assert sum(rows) == drawn + ranked


def test_the_last_block_works_for_the_revealed_positions_alone(make: Make) -> None:
    model = make(n_blocks=2).double().with_latent(latent_global=2, latent_position=2)
    widths: dict[str, list[int]] = {"first": [], "last": []}
    blocks = model.backbone.blocks
    for name, block in zip(widths, (blocks[0], blocks[-1]), strict=True):
        block.mlp.register_forward_hook(
            lambda _, args, out, seen=widths[name]: seen.append(out.shape[1])
        )
    revealed: list[int] = []
    settings: dict[str, Any] = {"steps": 5, "seed": 0}
    lean = idlm.generate(
        model, 3, 16, callback=lambda s: revealed.append(int(s.revealed.sum(1).max())), **settings
    )
    assert widths["first"] == [16] * 5
    assert widths["last"] == revealed  # as many as the row with the most
    assert max(revealed) < 16
    model.compile_backbone(backend="eager", dynamic=False)  # one shape for all steps
    assert torch.equal(idlm.generate(model, 3, 16, **settings).tokens, lean.tokens)


@pytest.mark.parametrize("order", ORDERS)
def test_a_head_in_small_pieces_gives_the_same_tokens(
    make: Make, monkeypatch: pytest.MonkeyPatch, order: str
) -> None:
    model = make().double()  # pieces of other sizes may round otherwise
    settings: dict[str, Any] = {"seed": 0, "order": order, "top_p": 0.9, "probabilities": True}
    seen: list[StepState] = []
    whole = idlm.generate(model, 3, 16, 3, callback=seen.append, **settings).tokens
    largest: list[int] = []
    head = model.backbone.output_layer.linear
    head.register_forward_hook(lambda _, args, out: largest.append(out.numel()))
    monkeypatch.setattr(ancestral, "ENTRIES", 40)
    pieces = idlm.generate(model, 3, 16, 3, callback=seen.append, **settings).tokens
    assert max(largest) <= 40
    assert torch.equal(pieces, whole)
    for one, other in zip(seen[:3], seen[3:], strict=True):
        assert one.probabilities is not None
        torch.testing.assert_close(one.probabilities, other.probabilities, atol=1e-12, rtol=0)


def test_the_callback_gets_the_distributions_that_tokens_were_drawn_from(make: Make) -> None:
    model = make().double()
    mask = model.process.mask_id
    states: list[StepState] = []
    settings: dict[str, Any] = {"temperature": 0.7, "top_p": 0.8}
    idlm.generate(model, 2, 16, 30, seed=1, callback=states.append, probabilities=True, **settings)
    before = torch.full((2, 16), mask)
    assert any(not bool(state.revealed.any()) for state in states)
    for state in states:
        assert state.probabilities is not None
        assert state.probabilities.shape == (int(state.revealed.sum()), 13)
        assert state.probabilities.dtype == torch.float64
        with torch.no_grad():
            log_p = model.process.log_probs(model(before).logits, before)[state.revealed]
        log_p[:, mask] = -torch.inf
        expected = nucleus(torch.log_softmax(log_p / 0.7, -1), 0.8).exp()
        torch.testing.assert_close(state.probabilities, expected, atol=1e-9, rtol=0)
        drawn = state.tokens[state.revealed]
        assert bool((state.probabilities.gather(1, drawn[:, None]) > 0).all())
        before = state.tokens


def test_without_being_asked_the_callback_gets_no_probabilities(make: Make) -> None:
    states: list[StepState] = []
    idlm.generate(make(), 2, 16, 3, seed=0, callback=states.append)
    assert [state.probabilities for state in states] == [None] * 3


def test_what_a_callback_keeps_is_its_own_and_can_enter_a_gradient(make: Make) -> None:
    model = make()
    states: list[StepState] = []

    def spoil(state: StepState) -> None:
        states.append(state)
        for tensor in (state.tokens, state.revealed, state.sample):
            tensor.zero_()

    plain = idlm.generate(model, 3, 16, 5, seed=0, first_index=4)
    spoiled = idlm.generate(model, 3, 16, 5, seed=0, first_index=4, callback=spoil)
    assert torch.equal(spoiled.tokens, plain.tokens)
    model(states[0].tokens).logits.sum().backward()


def test_the_callback_knows_which_samples_it_sees(make: Make) -> None:
    states: list[StepState] = []
    out = idlm.generate(
        make(), 5, 16, 2, seed=0, batch_size=3, first_index=7, callback=states.append
    )
    assert [state.sample.tolist() for state in states] == [[7, 8, 9]] * 2 + [[10, 11]] * 2
    assert torch.equal(torch.cat([states[1].tokens, states[3].tokens]), out.tokens)


@pytest.mark.parametrize("order", ORDERS)
def test_a_compiled_network_gives_the_same_samples_and_takes_every_row_in_each_call(
    make: Make, order: str
) -> None:
    model = make().with_latent(latent_global=2, latent_position=2)
    settings: dict[str, Any] = {"steps": 24, "seed": 3, "order": order}
    plain = idlm.generate(model, 4, 16, **settings)
    calls = count_calls(model)
    idlm.generate(model, 4, 16, **settings)
    # more steps than tokens: in random order some rows sit out
    assert (min(calls) < 4) is (order == "random")
    model.compile_backbone(backend="eager", dynamic=False)
    assert model.compiled
    calls.clear()
    compiled = idlm.generate(model, 4, 16, **settings)
    assert torch.equal(compiled.tokens, plain.tokens)
    assert compiled.nfe == plain.nfe == len(calls)
    assert set(calls) == {4}


def test_compiling_for_samples_asks_for_a_graph_on_cuda_and_a_compiler_on_a_cpu(
    make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[dict[str, Any]] = []
    model = make()
    monkeypatch.setattr(model, "compile_backbone", lambda **options: asked.append(options))
    monkeypatch.setattr("shutil.which", lambda name: "/bin/" + name if name == "clang++" else None)
    monkeypatch.delenv("CXX", raising=False)
    compile_for_sampling(model)
    assert asked == [{"dynamic": False}]
    monkeypatch.setattr("shutil.which", lambda name: None)
    with pytest.raises(UserError, match=r"needs a C\+\+ compiler.* sample without compiling"):
        compile_for_sampling(model)
    monkeypatch.setattr(DiffusionLM, "device", torch.device("cuda", 0))
    compile_for_sampling(model)
    assert asked[1:] == [{"mode": "reduce-overhead", "dynamic": False}]


@pytest.mark.skipif(not torch.cuda.is_available(), reason="waits are of a GPU")
@pytest.mark.parametrize("compiled", [False, True])
def test_a_step_in_random_order_does_not_wait_for_the_gpu(make: Make, compiled: bool) -> None:
    model = make().with_latent(latent_global=2, latent_position=2).cuda()
    if compiled:
        compile_for_sampling(model)
    plain = idlm.generate(model, 4, 16, 8, seed=0).tokens

    def guard(state: StepState) -> None:
        # from the second step on: the first follows the one copy of the plan to the host
        torch.cuda.set_sync_debug_mode("error" if state.step < 7 else "default")

    try:
        guarded = idlm.generate(model, 4, 16, 8, seed=0, callback=guard).tokens
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert torch.equal(guarded, plain)


def test_the_plan_of_a_random_order_is_drawn_before_the_first_call(
    make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    """So that no step has to ask the device what it is to reveal."""
    events: list[str] = []
    uniform = ancestral.random.uniform

    def spied(*shape: int, stream: Any, **keys: Any) -> Tensor:
        events.append(f"{stream.name} {keys['step']}")
        return uniform(*shape, stream=stream, **keys)

    monkeypatch.setattr(ancestral.random, "uniform", spied)
    model = make()
    model.backbone.register_forward_pre_hook(lambda *_: events.append("call"))
    idlm.generate(model, 2, 16, 3, seed=0)
    assert events[:3] == ["REVEAL 0", "REVEAL 1", "REVEAL 2"]
    assert events[3:] == ["call", "TOKEN 0", "call", "TOKEN 1", "call", "TOKEN 2"]
