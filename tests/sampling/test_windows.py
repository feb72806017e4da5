"""Semi-autoregressive windows and the stop rule."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

import idlm
from idlm.models import DiffusionLM
from idlm.sampling import ORDERS, StepState
from idlm.sampling.windows import window_bounds
from tests.sampling.helpers import count_calls, loud

Make = Callable[..., DiffusionLM]
MASK, CONTEXT = 12, 16
PROMPTS = [[1], [2] * 5, [3] * 20, [4] * 37]


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("length", [7, 16])
def test_a_single_window_is_plain_generation(make: Make, order: str, length: int) -> None:
    model = loud(make())
    settings: dict[str, Any] = {"seed": 3, "order": order, "prompt": [[1], [2, 3]]}
    plain = idlm.generate(model, 2, length, 4, **settings)
    for stride in (16, 5, 1):
        windowed = idlm.generate(model, 2, length, 4, stride=stride, **settings)
        assert torch.equal(windowed.tokens, plain.tokens)
        assert windowed.nfe == plain.nfe


@pytest.mark.parametrize(
    ("length", "stride", "bounds"),
    [
        (1, 4, [(0, 1)]),
        (16, 4, [(0, 16)]),
        (17, 4, [(0, 16), (4, 17)]),
        (20, 4, [(0, 16), (4, 20)]),
        (21, 4, [(0, 16), (4, 20), (8, 21)]),
        (48, 16, [(0, 16), (16, 32), (32, 48)]),
        (18, 1, [(0, 16), (1, 17), (2, 18)]),
    ],
)
def test_windows_cover_any_length_once(
    length: int, stride: int, bounds: list[tuple[int, int]]
) -> None:
    assert window_bounds(length, CONTEXT, stride) == bounds


@pytest.mark.parametrize(("length", "stride"), [(40, 16), (41, 7), (33, 1), (48, 8)])
def test_every_window_sees_the_text_so_far_and_never_changes_it(
    make: Make, length: int, stride: int
) -> None:
    model = loud(make())
    inputs: list[Tensor] = []
    states: list[StepState] = []
    model.backbone.register_forward_pre_hook(lambda _, args: inputs.append(args[0]))
    out = idlm.generate(
        model, 1, length, 3, stride=stride, seed=1, callback=states.append, order="confidence"
    )
    assert out.tokens.shape == (1, length)
    assert not bool((out.tokens == MASK).any())
    windows = sorted({state.window for state in states})
    assert len(windows) == len(window_bounds(length, CONTEXT, stride)) > 1
    for number, (start, end) in enumerate(window_bounds(length, CONTEXT, stride)):
        known = start + CONTEXT - stride if number else 0
        mine = [state for state in states if state.window == number]
        assert [state.step for state in mine] == [0, 1, 2]
        for state in mine:
            assert state.tokens.shape == (1, length)
            assert torch.equal(state.tokens[:, :known], out.tokens[:, :known])
            assert bool((state.tokens[:, end:] == MASK).all())
            assert not bool(state.revealed[:, :known].any())
            seen = inputs.pop(0) if bool(state.revealed.any()) else None
            if seen is not None:
                assert seen.shape == (1, end - start)
                assert torch.equal(seen[:, : known - start], out.tokens[:, start:known])
        assert bool((mine[-1].tokens[:, :end] != MASK).all())
    assert inputs == []


def test_the_calls_of_all_windows_are_counted_on_the_network(make: Make) -> None:
    model = make()
    calls = count_calls(model)
    states: list[StepState] = []
    out = idlm.generate(model, 2, 40, 4, stride=8, seed=0, callback=states.append)
    assert len(calls) == out.nfe == states[-1].nfe == 16  # four windows of four steps
    assert out.tokens_per_call == 40 / 16
    assert [state.nfe for state in states] == sorted(state.nfe for state in states)


def test_windows_draw_noise_of_their_own(make: Make) -> None:
    model = loud(make())
    seen: list[Tensor] = []
    model.backbone.register_forward_pre_hook(lambda _, args: seen.append(args[2].vector))
    idlm.generate(model, 1, 48, 3, stride=16, seed=9, first_index=4)
    expected = [model.sample_latent(torch.tensor([4]), 16, seed=9, step=i) for i in range(9)]
    assert len(seen) == 9
    assert all(torch.equal(a, b.vector) for a, b in zip(seen, expected, strict=True))


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("stop", [None, [7], [0, 5, 9]])
def test_unequal_prompts_in_windows_equal_one_by_one(
    make: Make, order: str, stop: list[int] | None
) -> None:
    model = loud(make())
    if order != "random":
        model = model.double()  # ranks compare positions: the last digits of fp32 may decide
    settings: dict[str, Any] = {
        "steps": 3,
        "stride": 6,
        "seed": 5,
        "order": order,
        "stop": stop,
        "length": 45,
    }
    whole = idlm.generate(model, prompt=PROMPTS, **settings)
    for number, prompt in enumerate(PROMPTS):
        alone = idlm.generate(model, prompt=prompt, first_index=number, **settings)
        assert torch.equal(whole.tokens[number], alone.tokens[0])
        assert int(whole.lengths[number]) == int(alone.lengths[0])
        assert whole.tokens[number, : len(prompt)].tolist() == prompt


def test_a_prompt_longer_than_the_context_is_clamped_and_continued(make: Make) -> None:
    model = make()
    calls = count_calls(model)
    prompt = [1, 2, 3, 4, 5] * 6
    out = idlm.generate(model, 1, 36, 4, prompt=prompt, stride=8, seed=0)
    assert out.tokens[0, :30].tolist() == prompt
    assert not bool((out.tokens == MASK).any())
    assert len(calls) <= 6  # windows inside the prompt cost nothing
    assert out.tokens_per_call == 6 / out.nfe


def test_an_infill_longer_than_the_context_is_written_in_windows(make: Make) -> None:
    model = make()
    row = torch.randint(0, 12, (40,))
    row[[3, 15, 16, 30, 39]] = MASK
    out = idlm.generate(model, infill=row, steps=2, stride=8, seed=0)
    assert torch.equal(out.tokens[0][row != MASK], row[row != MASK])
    assert not bool((out.tokens == MASK).any())


def test_a_sample_ends_at_the_first_stop_token_it_wrote(make: Make) -> None:
    model = make()
    settings: dict[str, Any] = {"stride": 8, "seed": 2, "prompt": [7, 1], "temperature": 9.0}
    free = idlm.generate(model, 12, 64, 4, **settings).tokens
    out = idlm.generate(model, 12, 64, 4, stop=[7, 9], **settings)
    for row, cut, length in zip(free.tolist(), out.tokens.tolist(), out.lengths, strict=True):
        ends = [i for i, token in enumerate(row) if token in (7, 9) and i >= 2]
        end = ends[0] + 1 if ends else 64
        assert int(length) == end
        assert cut[:end] == row[:end]
        assert set(cut[end:]) <= {row[end - 1]}
    assert 7 in out.tokens[:, 0]  # given, so it ends nothing
    assert out.lengths.unique().numel() > 3


def test_a_finished_sample_costs_no_more_calls(make: Make) -> None:
    model = make()
    calls = count_calls(model)
    settings: dict[str, Any] = {"stride": 16, "seed": 2, "temperature": 9.0}
    out = idlm.generate(model, 6, 64, 4, stop=5, **settings)
    windows = [-(-length // 16) for length in out.lengths.tolist()]
    assert len(set(windows)) > 1
    assert sum(calls) == sum(4 * w for w in windows)
    assert out.nfe == len(calls) == 4 * max(windows)
    assert out.tokens_per_call == int(out.lengths.max()) / out.nfe


def test_without_windows_the_stop_rule_cuts_as_well(make: Make) -> None:
    model = make()
    free = idlm.generate(model, 8, 16, 4, seed=0).tokens
    out = idlm.generate(model, 8, 16, 4, seed=0, stop=torch.tensor([3, 4]))
    for row, cut, length in zip(free, out.tokens, out.lengths, strict=True):
        ends = torch.isin(row, torch.tensor([3, 4])).nonzero()
        end = int(ends[0]) + 1 if len(ends) else 16
        assert int(length) == end
        assert torch.equal(cut[:end], row[:end])
        assert bool((cut[end:] == cut[end - 1]).all())


def test_eos_is_the_tokenizers(make: Make) -> None:
    class Tokenizer:
        eos_token_id = 3

    model = make()
    expected = idlm.generate(model, 8, 16, 4, seed=0, stop=3)
    out = idlm.generate(model, 8, 16, 4, seed=0, stop="eos", tokenizer=Tokenizer())
    assert torch.equal(out.tokens, expected.tokens)
    assert int(out.lengths.min()) < 16


def test_a_progress_bar_ends_full_although_samples_ended_early(
    make: Make, capsys: pytest.CaptureFixture[str]
) -> None:
    idlm.generate(
        make(), 4, 64, 2, stride=8, seed=0, stop=list(range(12)), progress=True, batch_size=3
    )
    assert "28/28" in capsys.readouterr().err  # two batches of seven windows of two steps
