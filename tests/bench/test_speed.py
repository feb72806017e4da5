"""``idlm bench speed``: what it measures is what it says, and the plain sampler is a sampler."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from idlm.bench import speed_cli, speed_run
from idlm.bench.speed_fit import FitCase, fits, largest
from idlm.bench.speed_growth import GrowthCase, exponent, growth_record
from idlm.bench.speed_measure import Setting, median_ratio, peak, take_turns
from idlm.bench.speed_plain import plain_sample
from idlm.bench.speed_plan import plan
from idlm.bench.speed_report import markdown
from idlm.bench.speed_run import LossCase, Network, SamplerCase, startup
from idlm.cli.bench import run
from idlm.errors import UserError
from idlm.objectives import chunks

CPU = Setting("cpu")
TINY = Network(1, 16, vocab=32)
linux_only = pytest.mark.skipif(
    not os.access("/proc/self/clear_refs", os.W_OK), reason="memory is read from /proc"
)


@pytest.fixture
def here(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Cases run in this process, and are listed."""
    seen: list[Any] = []

    def at_once(work: Callable[..., Any], *arguments: Any) -> Any:
        seen.append(arguments)
        return work(*arguments)

    monkeypatch.setattr(speed_cli, "_in_a_process", at_once)
    return seen


def test_all_cases_are_written_and_shown(
    here: list[Any],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    out = tmp_path / "speed.json"
    # one process has one peak
    peaks = {8: 15_500_000, 16: 23_500_000}
    monkeypatch.setattr(speed_cli, "_training_bytes", lambda loss, _: peaks[loss.batch])
    run(["speed", "--quick", "--device", "cpu", "--threads", "1", "--json", str(out)])
    records = json.loads(out.read_text())
    kinds = [record["case"] for record in records]
    assert {kind: kinds.count(kind) for kind in kinds} == {
        "sampler": 1,
        "losses": 2,
        "fit": 1,
        "growth": 7,
        "startup": 8,
    }
    sampler, loss = records[kinds.index("sampler")], records[kinds.index("losses")]
    assert sampler["over_backbone"] > 0
    assert sampler["plain_over_lean"] == sampler["plain_seconds"] / sampler["lean_seconds"]
    assert loss["lean_seconds"] > 0
    fit = records[kinds.index("fit")]
    assert fit["bytes_per_sequence"] == 1e6
    assert fit["largest_batch"] == {"24": 22_792, "80": 75_992}
    assert {"device_name", "torch", "threads", "dtype", "repeats", "quick"} <= set(loss)
    text, printed = out.with_suffix(".md").read_text(), capsys.readouterr().out
    for title in ("ours / backbone", "plain / ours", "against", "exit code"):
        assert title in text
        assert title.split()[0] in printed


def test_a_case_replaces_its_own_records_alone(here: list[Any], tmp_path: Path) -> None:
    out = tmp_path / "speed.json"
    asked = ["speed", "--quick", "--device", "cpu", "--json", str(out), "--case"]
    run([*asked, "sampler", "--threads", "1"])
    run([*asked, "startup"])
    first = json.loads(out.read_text())
    run([*asked, "sampler", "--threads", "1"])
    again = json.loads(out.read_text())
    assert [r["case"] for r in again] == [r["case"] for r in first]
    assert again[0] != first[0]  # measured anew
    assert again[1:] == first[1:]
    run([*asked, "sampler", "--threads", "2"])
    assert len(json.loads(out.read_text())) == len(first) + 1


def test_a_case_is_measured_in_a_process_of_its_own() -> None:
    assert speed_cli._in_a_process(_name_of_the_process) != _name_of_the_process()


def _name_of_the_process() -> int:
    return os.getpid()


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (("--threads", "0"), "--threads is 0; it must be at least 1"),
        (("--case", "sampling"), "invalid choice: 'sampling'"),
        (("--device", "tpu"), "invalid choice: 'tpu'"),
    ],
)
def test_options_that_do_not_fit_are_refused(
    arguments: tuple[str, ...], sentence: str, tmp_path: Path
) -> None:
    with pytest.raises(UserError, match=sentence):
        run(["speed", "--quick", *arguments, "--json", str(tmp_path / "o.json")])
    assert not list(tmp_path.iterdir())


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_gpu_that_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="there is no GPU"):
        run(["speed", "--quick", "--device", "cuda", "--json", str(tmp_path / "o.json")])


def test_another_files_content_is_left_alone(tmp_path: Path) -> None:
    out = tmp_path / "notes.json"
    out.write_text('[{"method": "idlm"}]')
    with pytest.raises(UserError, match="is no list of the speed bench's records"):
        run(["speed", "--quick", "--case", "startup", "--json", str(out)])
    assert out.read_text() == '[{"method": "idlm"}]'


def test_the_backbone_is_called_as_often_as_the_sampler_calls_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The bound is that of the very calls: batch, length and number."""
    calls: list[tuple[int, ...]] = []
    real = speed_run.DiffusionLM.features

    def counted(self: Any, tokens: Tensor, *args: Any, **options: Any) -> Tensor:
        calls.append(tuple(tokens.shape))
        return real(self, tokens, *args, **options)

    monkeypatch.setattr(speed_run.DiffusionLM, "features", counted)
    case = SamplerCase(TINY, batch=3, length=16, steps=2, repeats=1, plain_repeats=1)
    case.run(CPU)
    assert calls == [(3, 16)] * (1 + 2 + 2 + 2 + 2)  # warm-up, backbone, ours, plain


def test_works_take_turns() -> None:
    done: list[str] = []
    works = [(lambda: done.append("a"), 3), (lambda: done.append("b"), 1)]
    seconds = take_turns(works, CPU)  # type: ignore[arg-type]
    assert done == ["a", "b", "a", "a"]
    assert [len(found) for found in seconds] == [3, 1]


def test_exponents_and_ratios() -> None:
    assert exponent([2, 4, 8], [12.0, 48.0, 192.0]) == pytest.approx(2.0)
    assert median_ratio([2.0, 9.0, 4.0], [1.0, 3.0, 4.0]) == 2.0


@pytest.mark.parametrize("size", ["vocab", "length", "batch"])
def test_growth_changes_one_size(size: str) -> None:
    case = GrowthCase(LossCase(TINY, batch=2, length=8), size, (1, 3))
    (first, small), (second, large) = case.grown()
    assert second == 3 * first
    sizes = [(c.network.vocab, c.length, c.batch) for c in (small, large)]
    changed = [a != b for a, b in zip(*sizes, strict=True)]
    assert changed == [name == size for name in ("vocab", "length", "batch")]
    found = [{"case": "losses", "vocab_size": 1, "lean_seconds": 2.0 * n**2} for n in (1, 3)]
    record = growth_record(case, found)
    assert record["sizes"] == [first, second]
    assert record["lean_seconds_exponent"] == pytest.approx(2.0)
    assert "lean_bytes" not in record  # not measured here


_MEGABYTES = 64


def _peak_of_three_tables() -> int | None:
    def work() -> None:
        for _ in range(3):
            torch.ones(_MEGABYTES * 2**18).sum()

    return peak(work, CPU)


@linux_only
def test_the_peak_is_what_the_work_needs_at_once() -> None:
    """In a process that holds no freed memory that the work could take."""
    found = speed_cli._in_a_process(_peak_of_three_tables)
    if found is None:
        pytest.skip("the peak cannot be reset here")
    assert 0.9 * _MEGABYTES < found / 2**20 < 1.5 * _MEGABYTES


def test_the_largest_batch_lies_on_the_line_through_two_peaks() -> None:
    # 1 GB that is always there and 0.5 GB for each sequence; a twentieth stays free
    assert largest((4, 8), (3 * 10**9, 5 * 10**9), 24) == 43
    assert largest((4, 8), (3 * 10**9, 5 * 10**9), 1) == 0
    with pytest.raises(ValueError, match="measure larger batches"):
        largest((4, 8), (5, 5), 24)


def test_peaks_that_give_no_line_are_left_out_aloud(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], here: list[Any]
) -> None:
    case = FitCase(LossCase(TINY, batch=2, length=8))
    for peaks, sentence in ((7, "measure larger batches"), (None, "does not tell the peak")):
        monkeypatch.setattr(speed_cli, "_training_bytes", lambda *_, peaks=peaks: peaks)
        assert speed_cli._fitted(case, CPU) is None
        assert sentence in capsys.readouterr().err


@linux_only
def test_the_peak_of_a_training_holds_its_optimisers_and_average() -> None:
    """Weights of the teacher, and for student and fake model weights, gradient and two moments."""
    case = LossCase(Network(1, 512, vocab=20_000), batch=1, length=4)
    found = speed_cli._in_a_process(speed_cli._training_bytes, case, CPU)
    weights = 4 * 2 * 512 * 20_000  # embedding and head in fp32, most of each network
    # one gradient at a time; the student's average
    assert found > (1 + 2 * 3 + 1) * weights


@pytest.mark.skipif(not torch.cuda.is_available(), reason="the limit is of CUDA's allocator")
def test_a_batch_fits_or_does_not() -> None:
    case = LossCase(Network(1, 512, vocab=20_000), batch=1, length=4)
    assert speed_cli._in_a_process(fits, case, Setting("cuda"), 8)
    too_many = replace(case, batch=100_000)
    assert not speed_cli._in_a_process(fits, too_many, Setting("cuda"), 1)


@pytest.mark.parametrize("name", speed_run.OBJECTIVES)
def test_every_objective_of_the_bench_runs_lean_and_plain(name: str) -> None:
    case = LossCase(TINY, name, batch=2, length=8, repeats=1)
    found = case.run(CPU)
    assert found["plain_over_lean"] == found["plain_seconds"] / found["lean_seconds"]
    assert found["objective"] == name


@linux_only
def test_the_memory_of_the_lean_losses_is_below_the_plain_ones() -> None:
    """In several chunks, and each in a process that has held nothing before."""
    case = LossCase(Network(1, 16, vocab=30_000), batch=8, length=256)
    lean, plain = (
        speed_cli._in_a_process(speed_cli._memory, case, CPU, which) for which in (False, True)
    )
    assert 1.5 * chunks.NUMBERS < 8 * 256 / 2 * 30_000
    assert 0 < lean < 0.5 * plain


def test_startup_says_what_came_back() -> None:
    found = startup(["generat"], 1)
    assert (found["command"], found["exit_code"]) == ("idlm generat", 2)
    assert found["seconds"] > 0


def test_the_plans_name_the_sizes_of_the_goals() -> None:
    cpu = plan("cpu", 2, quick=False)
    cases = {(c.network.name, c.batch, c.length, c.steps) for c, _ in cpu.sampler}
    assert {(n, b, 1024, 16) for n, b in product(("12x768", "8x256"), (1, 8))} <= cases
    assert {(c.network.name, c.batch, c.length) for c, _ in cpu.losses} == {("8x256", 4, 256)}
    cuda = plan("cuda", 2, quick=False)
    assert {c.batch for c, s in cuda.sampler if s.dtype == "bfloat16"} == {1, 8, 64}
    assert Network(12, 768).build(1024).num_parameters() == pytest.approx(169e6, rel=0.01)


def test_a_table_of_nothing_is_its_note() -> None:
    assert markdown([]).startswith("Medians")


def test_the_plain_sampler_has_the_law_of_a_factorised_model() -> None:
    """V = 3, L = 2, two steps: frequencies against enumeration."""
    model = Network(1, 16, vocab=3).build(2).double()
    for weight in model.parameters():
        nn.init.normal_(weight, std=1.0)
    n = 40_000
    found = plain_sample(model, n, 2, 2, seed=1)
    counts = torch.bincount(found[:, 0] * 3 + found[:, 1], minlength=9).double()
    expected = n * _law(model)
    live = expected > 0
    assert counts[~live].sum() == 0
    chi2 = float(((counts - expected)[live] ** 2 / expected[live]).sum())
    assert chi2 < 16.3  # three degrees of freedom, one in a thousand; no sample has the mask


def _law(model: Any) -> Tensor:
    """p(tokens) after two steps from t = 1 with alpha 1/2 between, ``[9]``."""
    process = model.process
    sigma = process.schedule.sigma(torch.tensor([1.0, 0.5], dtype=torch.float64)).float()

    def predict(state: list[int], time: int) -> Tensor:
        tokens = torch.tensor([state])
        with torch.no_grad():
            logits = model.head(model.features(tokens, sigma[time : time + 1]))
        return process.log_probs(logits, tokens).exp()[0]

    grid = torch.tensor([0.5, 1.0], dtype=torch.float64)
    shown = float(process.reveal_probability(grid[0], grid[1]))
    first, law = predict([2, 2], 0), torch.zeros(3, 3, dtype=torch.float64)
    for a, b in product(range(3), repeat=2):
        chance = 1.0
        for position, token in enumerate((a, b)):
            chance *= 1 - shown if token == 2 else shown * float(first[position, token])
        second = predict([a, b], 1)
        law += chance * second[0][:, None] * second[1]
    return law.flatten()
