"""``idlm bench toys`` as a user meets it: records, resuming, refusals, table and figure."""

from __future__ import annotations

import itertools
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from matplotlib.text import Text

from idlm.bench import store, toy_cli, toy_figure, toy_methods, toy_run, toys
from idlm.bench.toy_figure import _PANEL, _TITLES, Counts, _bands, save_figure, shown
from idlm.bench.toy_methods import METHODS, TEACHER
from idlm.bench.toy_report import departures, markdown, summarise
from idlm.bench.toy_run import QUICK, Cell, Plan, Teachers, cells, run_cell, settings_record
from idlm.cli.bench import run
from idlm.errors import UserError
from idlm.objectives import DMMD

REQUIRED = {"dataset", "method", "latent", "steps", "seed", "tv", "js", "floor_tv", "samples"}
REQUIRED |= {"train_seconds", "updates", "floor_js", "plan", "settings"}


@pytest.fixture
def ran(monkeypatch: pytest.MonkeyPatch) -> list[Cell]:
    """Cells that were run; their samples are the truth's own, their training took no time."""
    found: list[Cell] = []

    def instead(toy: toys.Toy, *args: Any, **kwargs: Any) -> tuple[toys.Toy, float]:
        return toy, 0.0

    def truth(model: Any, toy: toys.Toy, *, count: int, steps: int, seed: int) -> torch.Tensor:
        return toy.sample(count, torch.Generator().manual_seed(seed + steps))

    real = toy_run.run_cell

    def counted(cell: Cell, plan: toy_run.Plan, teachers: Teachers) -> toy_run.Outcome:
        found.append(cell)
        return real(cell, plan, teachers)

    monkeypatch.setattr(toy_run, "train_teacher", instead)
    monkeypatch.setattr(toy_run, "distil", instead)
    monkeypatch.setattr(toy_run, "sample", truth)
    monkeypatch.setattr(toy_run, "run_cell", counted)
    return found


def bench(output: Path, *more: str) -> list[dict[str, Any]]:
    run(["toys", "--quick", "--jobs", "1", "--json", str(output), *more])
    return json.loads(output.read_text(encoding="utf-8"))


@pytest.mark.parametrize("method", [TEACHER, *METHODS])
def test_every_method_trains_and_samples(method: str) -> None:
    (first, *_) = cells(["circles"], [method], [0])
    records, counts = run_cell(first, QUICK, Teachers())
    assert [r["steps"] for r in records] == ([1, 2, 4, 16] if method == TEACHER else [1, 2, 4])
    assert all(r.keys() >= REQUIRED for r in records)
    assert all(0.0 <= r["tv"] <= 1.0 for r in records)
    assert int(counts.sum()) == QUICK.samples
    assert records[0]["tv"] == pytest.approx(
        0.5 * float((counts[:-1] / counts.sum() - toys.load("circles", bins=8).probs).abs().sum())
        + 0.5 * float(counts[-1] / counts.sum())
    )


def test_a_cell_with_one_seed_comes_out_the_same_twice() -> None:
    (cell,) = cells(["equal"], ["dmmd"], [1])
    first, second = (run_cell(cell, QUICK, Teachers())[0] for _ in range(2))
    assert [r["tv"] for r in first] == [r["tv"] for r in second]


def timeless(records: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [{k: v for k, v in record.items() if k != "train_seconds"} for record in records]


def test_several_processes_give_the_records_of_one() -> None:
    wanted = cells(["circles"], [TEACHER, "dmmd"], [0])[:2]  # masked and uniform
    wanted += cells(["circles"], ["sdtt"], [0])
    found = [dict(toy_run.run(wanted, QUICK, jobs)) for jobs in (1, 2)]
    assert set(found[0]) == set(found[1]) == set(wanted)
    for cell in wanted:
        (alone, first), (together, second) = (outcomes[cell] for outcomes in found)
        assert timeless(alone) == timeless(together)
        assert torch.equal(first, second)


@pytest.mark.parametrize("jobs", [1, 2])
def test_cells_that_are_done_are_not_lost_when_another_fails(jobs: int) -> None:
    good, other = (*cells(["circles"], ["sdtt"], [0]), *cells(["spirals"], ["sdtt"], [0]))
    wanted = [good, replace(good, method="vadd"), other]  # VADD cannot do without a latent
    found: list[tuple[Cell, Any]] = []
    with pytest.raises(UserError, match="latent_global 0"):
        found.extend(toy_run.run(wanted, QUICK, jobs))
    # what another process has begun is brought to its end
    assert {cell for cell, _ in found} == ({good, other} if jobs == 2 else {good})


def test_one_cell_writes_its_records(tmp_path: Path, ran: list[Cell]) -> None:
    output = tmp_path / "new" / "o.json"
    records = bench(
        output, "--dataset", "checkerboard", "--method", "idlm", "--latent", "5", "--seed", "3"
    )
    assert [(r["method"], r["latent"], r["seed"], r["steps"]) for r in records] == [
        ("idlm", 5, 3, steps) for steps in (1, 2, 4)
    ]
    assert all(r.keys() >= REQUIRED for r in records)
    # 2000 samples of the truth itself
    assert all(r["tv"] == pytest.approx(r["floor_tv"], rel=0.3) for r in records)
    assert all(r["js"] == pytest.approx(r["floor_js"], rel=0.5) for r in records)
    names = {"o.json", "o.counts.npz", "o.md", "o.png"}
    assert {path.name for path in output.parent.iterdir()} == names
    assert (output.parent / "o.png").read_bytes().startswith(b"\x89PNG")


def test_what_is_there_is_kept_and_not_run_again(tmp_path: Path, ran: list[Cell]) -> None:
    output = tmp_path / "o.json"
    first = bench(output, "--dataset", "circles", "--method", "dmmd")
    assert len(ran) == 1
    assert bench(output, "--dataset", "circles", "--method", "dmmd") == first
    assert len(ran) == 1
    both = bench(output, "--dataset", "circles", "--method", "idlm")
    assert len(ran) == 2
    assert len(both) == 6
    assert all(r in both for r in first)
    # another plan is another record
    bench(output, "--dataset", "circles", "--method", "idlm", "--samples", "100")
    assert len(ran) == 3


@pytest.mark.parametrize("what", ["method", "shared", "teacher", "objective"])
def test_a_retuned_cell_is_run_again_and_its_old_records_go(
    tmp_path: Path, ran: list[Cell], monkeypatch: pytest.MonkeyPatch, what: str
) -> None:
    output = tmp_path / "o.json"
    asked = ("--dataset", "circles", "--method", "dmmd")
    first = bench(output, *asked)
    other = bench(output, "--dataset", "circles", "--method", "sdtt")[-3:]
    dmmd = METHODS["dmmd"]
    match what:
        case "method":
            monkeypatch.setitem(METHODS, "dmmd", replace(dmmd, batch=dmmd.batch + 1))
        case "shared":
            monkeypatch.setitem(toy_methods.SETTINGS, "lr", 1e-7)
        case "teacher":
            monkeypatch.setitem(toy_run.TEACHER_UPDATES, "absorbing", 10_000)
        case "objective":
            monkeypatch.setitem(METHODS, "dmmd", replace(dmmd, make=lambda _: DMMD(anchor=0.5)))
    again = bench(output, *asked)
    assert [cell.method for cell in ran] == ["dmmd", "sdtt", "dmmd"]
    assert len(again) == 6
    assert again[-3:] == other
    assert all(a["settings"] != b["settings"] for a, b in zip(again[:3], first, strict=True))
    bench(output, *asked)
    assert len(ran) == 3


def test_settings_are_those_of_the_training() -> None:
    cell, method = Cell("circles", "idlm", "absorbing", 5, 0), METHODS["idlm"]
    found = settings_record(cell, QUICK)
    assert json.loads(json.dumps(found)) == found
    assert found["objective"]["name"] == "TinyIDLM"
    assert found["objective"]["pure_noise"] == method.make(1).pure_noise
    assert (found["updates"], found["latent_global"]) == (QUICK.student_updates("idlm", 5), 5)
    assert (found["batch"], found["latent_init"]) == (method.batch, method.latent_init)
    expected = {**toy_methods.SETTINGS, **method.settings}
    assert {key: found[key] for key in expected} == store.as_json(expected)
    assert found["teacher"]["updates"] == QUICK.teacher_updates("absorbing")
    (teacher, *_) = cells(["circles"], [TEACHER], [0])
    assert settings_record(teacher, QUICK) == found["teacher"]


def test_a_longer_run_is_slower_where_a_method_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(METHODS, "dmmd", replace(METHODS["dmmd"], slower=0.5))
    usual, longer, shorter = (
        settings_record(Cell("circles", "dmmd", "absorbing", 4, 0), Plan(longer=factor))
        for factor in (1.0, 4.0, 0.25)
    )
    for rate in ("lr", "fake_lr"):
        assert longer[rate] == 0.5 * usual[rate]
        assert shorter[rate] == usual[rate]  # a short run is a trial of the usual one
    same = {**METHODS["dmmd"].settings, **toy_methods.SETTINGS}.keys() - {"lr", "fake_lr"}
    assert all(longer[name] == usual[name] for name in same)
    vadd = Cell("circles", "vadd", "absorbing", 4, 0)
    assert settings_record(vadd, Plan(longer=4))["lr"] == settings_record(vadd, Plan())["lr"]


def test_a_student_is_trained_at_the_rates_of_its_record(monkeypatch: pytest.MonkeyPatch) -> None:
    from idlm.bench import toy_train
    from idlm.training.distil import DistillationModule

    made: list[dict[str, object]] = []
    build = DistillationModule.from_networks

    def spied(teacher: Any, *objective: Any, **settings: Any) -> Any:
        if teacher is not None:  # without one nothing is trained, only asked for its settings
            made.append(settings)
        return build(teacher, *objective, **settings)

    monkeypatch.setattr(toy_train.DistillationModule, "from_networks", spied)
    plan = replace(QUICK, longer=4.0)
    monkeypatch.setitem(METHODS, "idlm", replace(METHODS["idlm"], updates=1))
    cell = Cell("circles", "idlm", "absorbing", 4, 0)
    (record, *_), _ = toy_run.run_cell(cell, plan, toy_run.Teachers())
    (settings,) = made
    assert settings["lr"] == record["settings"]["lr"] == 0.5 * toy_methods.SETTINGS["lr"]
    assert settings["fake_lr"] == record["settings"]["fake_lr"]


def test_how_long_is_trained_is_what_was_asked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ran: list[Cell]
) -> None:
    asked: dict[str, int] = {}

    def counts(name: str) -> Any:
        def instead(toy: toys.Toy, *args: Any, updates: int, **kwargs: Any) -> Any:
            asked[name] = updates
            return toy, 0.0

        return instead

    for name in ("train_teacher", "distil"):
        monkeypatch.setattr(toy_run, name, counts(name))
    longer = ("--longer", "0.5", "--teacher-longer", "0.1")
    (record, *_) = bench(tmp_path / "o.json", "--dataset", "circles", "--method", "dmmd", *longer)
    assert asked == {
        "train_teacher": round(0.1 * toy_run.TEACHER_UPDATES["absorbing"]),
        "distil": round(0.5 * METHODS["dmmd"].updates),
    }
    assert record["updates"] == asked["distil"]
    assert (record["plan"]["longer"], record["plan"]["teacher_longer"]) == (0.5, 0.1)


def test_a_method_of_the_plane_leaves_out_the_data_set_that_nobody_named(
    tmp_path: Path, ran: list[Cell]
) -> None:
    bench(tmp_path / "o.json", "--method", "mm")
    assert [cell.dataset for cell in ran] == [name for name in toys.NAMES if name != "equal"]


def test_cells_whose_counts_are_gone_are_run_again(tmp_path: Path, ran: list[Cell]) -> None:
    output, counts = tmp_path / "o.json", tmp_path / "o.counts.npz"
    first = bench(output, "--dataset", "circles", "--method", "dmmd")
    counts.unlink()
    bench(output, "--dataset", "circles", "--method", "idlm")
    assert bench(output, "--dataset", "circles", "--method", "dmmd")[-3:] == first
    assert [cell.method for cell in ran] == ["dmmd", "idlm", "dmmd"]
    found = Counts(counts)
    assert all(found.get(cell, QUICK) is not None for cell in ran)


def test_a_damaged_counts_file_is_a_sentence(tmp_path: Path, ran: list[Cell]) -> None:
    (tmp_path / "o.counts.npz").write_bytes(b"PK\x03\x04 cut off")
    with pytest.raises(UserError, match=r"o\.counts\.npz cannot be read .*; remove it"):
        bench(tmp_path / "o.json", "--dataset", "circles", "--method", "dmmd")


def test_counts_of_two_runs_at_once_are_both_kept(tmp_path: Path) -> None:
    path = tmp_path / "c.npz"
    one, other = Counts(path), Counts(path)
    (cell, second) = cells(["circles", "pinwheel"], ["dmmd"], [0])
    one.add(cell, QUICK, torch.arange(65))
    other.add(second, QUICK, 2 * torch.arange(65))
    found = Counts(path)
    for number, kept in ((1, found.get(cell, QUICK)), (2, found.get(second, QUICK))):
        assert kept is not None
        assert kept.tolist() == [number * n for n in range(65)]


def test_table_and_figure_are_of_the_whole_file_under_one_plan(
    tmp_path: Path, ran: list[Cell]
) -> None:
    output, table = tmp_path / "o.json", tmp_path / "o.md"
    bench(output, "--dataset", "circles", "--method", "dmmd")
    bench(output, "--dataset", "circles", "--method", "idlm")
    text = table.read_text(encoding="utf-8")
    assert "| circles | dmmd |" in text
    assert "| circles | idlm |" in text
    bench(output, "--dataset", "circles", "--method", "sdtt", "--samples", "100")
    text = table.read_text(encoding="utf-8")
    assert "| circles | sdtt |" in text
    assert "| circles | dmmd |" not in text


def test_equal_tokens_alone_are_no_figure(tmp_path: Path, ran: list[Cell]) -> None:
    output = tmp_path / "o.json"
    asked = ("--dataset", "equal", "--method", "dmmd")
    with pytest.raises(UserError, match="there is nothing to draw"):
        bench(output, *asked, "--figure", str(tmp_path / "f.png"))
    assert not ran
    bench(output, *asked)
    assert {p.name for p in tmp_path.iterdir()} == {"o.json", "o.counts.npz", "o.md"}


def test_the_figure_shows_the_largest_latent_and_the_masked_teacher() -> None:
    found = cells(["circles", "equal"], [TEACHER, *METHODS], [0, 1])
    drawn = shown(reversed(found))
    assert {key[0] for key in drawn} == {"circles"}
    assert {process for _, (method, process) in drawn if method == TEACHER} == {"absorbing"}
    assert {column[0] for _, column in drawn} == {TEACHER, *METHODS}
    assert drawn[("circles", ("dmmd", "absorbing"))].latent == 16


def test_panels_stand_in_groups_no_more_than_eight_across() -> None:
    drawn = shown(cells(["circles"], [TEACHER, *METHODS], [0]))
    bands = _bands(column for _, column in drawn)
    groups = [[group[0][1] for group in band.groups] for band in bands]
    assert groups == [["absorbing"], ["uniform", "gaussian"]]
    assert max(band.width for band in bands) * 150 <= 1800
    assert set(METHODS) <= {*_TITLES}
    (band,) = _bands([("mm", "gaussian"), ("dmmd", "absorbing"), (TEACHER, "absorbing")])
    assert band.columns == [(TEACHER, "absorbing"), ("dmmd", "absorbing"), ("mm", "gaussian")]
    steps = [b - a for a, b in itertools.pairwise(band.places)]
    assert min(steps) >= _PANEL  # no panel covers another


def test_a_panel_without_counts_says_so(tmp_path: Path, ran: list[Cell]) -> None:
    records = bench(tmp_path / "o.json", "--dataset", "circles", "--method", "dmmd")
    texts: list[str] = []

    def read(figure: Any, path: Path) -> Path:
        texts.extend(text.get_text() for text in figure.findobj(Text))
        return path

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(toy_figure, "save_png", read)
        save_figure(records, QUICK, Counts(tmp_path / "none.npz"), tmp_path / "f.png")
    assert "counts\nnot kept" in texts
    assert {"truth", "D-MMD", "masked", "circles"} <= {*texts}
    assert departures() in " ".join(" ".join(texts).split("\n"))


def test_what_is_not_the_papers_is_told_with_its_values() -> None:
    told = departures()
    assert 'fake_sees "input_time", pure_noise 0.5 and flat weighting' in told
    assert 'D-MMD with fake_sees "input_masks" and flat weighting' in told
    assert "Perceptron._share" in told
    assert told in markdown([])


def test_the_whole_table_has_every_pair_that_exists(tmp_path: Path, ran: list[Cell]) -> None:
    output, figure, table = (tmp_path / name for name in ("o.json", "f.png", "t.md"))
    records = bench(output, "--seed", "0", "1", "--figure", str(figure), "--table", str(table))
    found = {(r["dataset"], r["method"]) for r in records}
    assert found == {
        (dataset, method)
        for dataset in toys.NAMES
        for method in (TEACHER, *METHODS)
        if dataset != "equal" or method == TEACHER or METHODS[method].process != "gaussian"
    }
    latents = {r["latent"] for r in records if r["method"] == "dmmd"}
    assert latents == {0, 16}
    assert {r["seed"] for r in records} == {0, 1}
    assert figure.read_bytes().startswith(b"\x89PNG")
    lines = table.read_text(encoding="utf-8").splitlines()
    assert sum(line.startswith("| data | method |") for line in lines) == 2
    row = "| spirals | di4c | absorbing | 16 | 2 |"
    assert sum(line.startswith(row) for line in lines) == 2  # TV and JS


def test_a_row_of_the_table_is_mean_and_deviation_over_seeds() -> None:
    shared = {"dataset": "circles", "method": "dmmd", "process": "absorbing", "latent": 16}
    shared |= {"floor_tv": 0.02, "floor_js": 0.0012, "train_seconds": 3.0, "steps": 1, "updates": 7}
    shared["settings"] = {"lr": 0.1}
    (row,) = summarise([{**shared, "seed": s, "tv": tv} for s, tv in enumerate((0.1, 0.2, 0.3))])
    assert row.at(1) == "0.200 ± 0.100"
    assert row.at(2) == ""
    tuned = {**shared, "settings": {"lr": 0.2}}
    rows = summarise([{**one, "seed": 0, "tv": 0.1} for one in (shared, tuned)])
    assert [row.at(1) for row in rows] == ["0.100"] * 2  # no mean over both
    text = markdown([{**shared, "seed": 0, "tv": 0.1, "js": 0.0123}])
    variation, shannon = text.split("Jensen-Shannon divergence in nats")
    assert "| circles | dmmd | absorbing | 16 | 1 | 0.100 |  |  |  | 0.020 | 7 | 3.0 |" in variation
    assert "| circles | dmmd | absorbing | 16 | 1 | 0.0123 |  |  |  | 0.0012 | 7 | 3.0 |" in shannon


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--dataset", "spiral"], "did you mean 'spirals'"),
        (["--method", "dmd"], "did you mean 'dmmd'|did you mean 'dmd2'"),
        (["--method", "mm", "--dataset", "equal"], "points of the plane"),
        (["--method", "mm", "--dataset", "circles", "--latent", "4"], "noise of method 'mm'"),
        (["--method", "teacher", "--latent", "4"], "a teacher has none"),
        (["--method", "sdtt", "--dataset", "circles", "--latent", "4"], "has a latent"),
        (["--method", "vadd", "--dataset", "circles", "--latent", "0"], "latent_global 0"),
        (["--method", "dmmd", "--latent", "-1"], "--latent is -1"),
        (["--latent", "4"], "name one method"),
        (["--jobs", "0"], "--jobs is 0"),
        (["--samples", "0"], "--samples is 0"),
        (["--bins", "30"], "multiple of 4"),
        (["--longer", "0"], "--longer is 0.0"),
        (["--dataset", "equal", "--bins", "8"], "--bins is 8, but 'equal' is sequences without"),
        (["--seed", "-1"], "--seed is -1"),
    ],
)
def test_what_does_not_fit_is_refused_in_a_sentence(
    tmp_path: Path, arguments: list[str], message: str
) -> None:
    with pytest.raises(UserError, match=message):
        run(["toys", "--quick", "--json", str(tmp_path / "o.json"), *arguments])
    assert not (tmp_path / "o.json").exists()


@pytest.mark.parametrize(("method", "latent"), [("sdtt", 4), ("vadd", 0)])
def test_a_latent_is_refused_before_a_teacher_is_trained(
    tmp_path: Path, ran: list[Cell], method: str, latent: int
) -> None:
    with pytest.raises(UserError, match="latent_global"):
        bench(tmp_path / "o.json", "--method", method, "--latent", str(latent))
    assert not ran


def test_a_file_of_something_else_is_left_alone(tmp_path: Path, ran: list[Cell]) -> None:
    output = tmp_path / "o.json"
    for content in ('[{"method": "other"}]', "{}", "[1]"):
        output.write_text(content, encoding="utf-8")
        with pytest.raises(UserError, match="no list of the toys' records"):
            bench(output, "--dataset", "circles", "--method", "idlm")
        assert output.read_text(encoding="utf-8") == content


def test_a_file_of_another_version_is_left_alone(tmp_path: Path, ran: list[Cell]) -> None:
    output = tmp_path / "o.json"
    records = bench(output, "--dataset", "circles", "--method", "idlm")
    whole = json.dumps(records)
    del records[0]["plan"]["bins"]
    for content, sentence in (
        (whole.replace('"bins"', '"colour": "red", "bins"'), r"another version .*colour"),
        (json.dumps(records), r"another version .*bins"),
        (whole.replace('"settings"', '"setting"'), "no list of the toys' records"),
    ):
        output.write_text(content, encoding="utf-8")
        with pytest.raises(UserError, match=sentence):
            bench(output, "--dataset", "circles", "--method", "idlm")
        assert output.read_text(encoding="utf-8") == content


def test_a_bench_must_be_named() -> None:
    with pytest.raises(UserError, match="invalid choice: 'toy'"):
        run(["toy"])
    with pytest.raises(UserError, match="toys\\|oracle"):
        run([])
    assert toy_cli.ALL == "all"
