from __future__ import annotations

import json
from pathlib import Path

import pytest

from idlm.errors import UserError
from idlm.evaluation.published import published_path
from idlm.report.recognise import collect


def test_every_kind_is_known_by_its_content_and_not_by_its_name(results, tmp_path):
    for number, name in enumerate(("frontier.json", "toys.json", "oracle.json", "speed.json")):
        (tmp_path / f"{number}.json").write_bytes((results / name).read_bytes())
    files = [tmp_path / f"{number}.json" for number in range(4)]
    found = collect(files)
    kinds = [kind for _, kind, _ in found.sources]
    assert kinds == ["frontier", "idlm bench toys", "idlm bench oracle", "idlm bench speed"]


def test_a_folder_gives_all_that_lies_in_it(results):
    found = collect([results])
    counts = [found.frontiers, found.toys, found.oracle, found.speed, found.trainings]
    assert [len(items) for items in counts] == [1, 1, 1, 1, 1]
    assert len(found.samples) == 2
    assert found.trainings[0].name == "results/run/version_0"


def test_a_file_that_is_named_twice_counts_once(results):
    found = collect([results / "toys.json", results, results / "toys.json"])
    assert len(found.toys) == 1


def test_an_unknown_file_in_a_folder_is_left_out_aloud_and_refused_by_name(results):
    (results / "other.json").write_text('{"a": 1}')
    found = collect([results])
    assert [Path(name).name for name, _ in found.left_out] == ["other.json"]
    with pytest.raises(UserError, match=r"other\.json holds nothing that a report shows"):
        collect([results / "other.json"])


@pytest.mark.parametrize(
    ("name", "content", "sentence"),
    [
        ("a.json", "{", "is no JSON"),
        ("a.json", '[{"case": "sampler", "network": NaN}]', "NaN is no number"),
        ("a.json", "[" * 100_000, "is no JSON"),
        ("a.json", "[]", "holds nothing that a report shows"),
        ("a.json", b"\xff\xfe", "is not UTF-8"),
        ("a.csv", "x,y\n1,2\n", "is no training log"),
        ("a.csv", "step,train/loss\n", "no line"),
        ("a.csv", "step,train/loss\n1,2,3\n", "line 2 has 3 cells"),
        ("a.csv", "step,train/loss\n1,two\n", "line 2 has 'two' for 'train/loss'"),
        ("a.csv", "step,val/gen_ppl,val/entropy\n1,20,\n", "val/gen_ppl without val/entropy"),
        ("a.jsonl", "{}\n", "no samples"),
        ("a.txt", "text", "is no JSON"),
    ],
)
def test_a_broken_or_unknown_file_is_refused_in_one_sentence(tmp_path, name, content, sentence):
    path = tmp_path / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(UserError) as refused:
        collect([path])
    assert sentence in str(refused.value)
    assert str(path) in str(refused.value)
    assert "\n" not in str(refused.value)


def test_a_missing_file_and_an_empty_folder_are_refused(tmp_path):
    with pytest.raises(UserError, match=r"gone\.json does not exist"):
        collect([tmp_path / "gone.json"])
    with pytest.raises(UserError, match="has no results"):
        collect([tmp_path])


def test_a_perplexity_without_entropy_is_refused_wherever_it_stands(make, tmp_path):
    summary, cells = make.frontier(), make.frontier()
    summary["summary"][0]["entropy_mean"] = None
    del cells["cells"][0]["entropy"]
    evaluation = {"summary": [], "results": [{"source": "a", "gen_ppl": 10.0, "steps": 4}]}
    for found in (summary, cells, evaluation):
        path = make.write_json(tmp_path / "a.json", found)
        with pytest.raises(UserError, match="without entropy"):
            collect([path])


@pytest.mark.parametrize("value", ["60", True, -1.0, 0.0])
def test_a_perplexity_that_is_none_is_refused(make, tmp_path, value):
    found = make.frontier()
    found["summary"][0]["gen_ppl_mean"] = value
    with pytest.raises(UserError, match="gen_ppl_mean"):
        collect([make.write_json(tmp_path / "a.json", found)])


def test_a_number_too_large_for_a_float_is_refused(make, tmp_path):
    path = make.write_json(tmp_path / "a.json", make.frontier())
    path.write_text(path.read_text().replace("40.0", "1e999"))
    with pytest.raises(UserError, match="no finite number"):
        collect([path])


@pytest.mark.parametrize(
    ("kind", "key", "value"),
    [("toy", "tv", "0.5"), ("oracle", "overlap", None), ("sampler", "plain_seconds", "fast")],
)
def test_a_record_of_a_bench_with_a_wrong_number_is_refused(make, tmp_path, kind, key, value):
    given = {"toy": ("idlm", 0, 1, 0.5), "oracle": ("idlm", 1, 2.0), "sampler": ("4x128",)}[kind]
    record = {**getattr(make, kind)(*given), key: value}
    with pytest.raises(UserError, match=key):
        collect([make.write_json(tmp_path / "a.json", [record])])


def test_seeds_of_an_evaluation_become_a_mean_and_its_spread(make, tmp_path):
    own = {"checkpoint": "m", "steps": 4, "nfe": 4, "length": 64, "num_samples": 8}
    results = [
        {**own, "seed": 0, "source": "a", "gen_ppl": 10.0, "entropy": 5.0},
        {**own, "seed": 1, "source": "b", "gen_ppl": 14.0, "entropy": 5.5},
        {"source": "reference: text", "gen_ppl": 8.0, "entropy": 5.4, "length": 64},
    ]
    path = make.write_json(tmp_path / "a.json", {"summary": [], "results": results})
    (found,) = collect([path]).frontiers
    (point,) = found.points
    assert (point.gen_ppl, point.entropy, point.seeds) == (12.0, 5.25, 2)
    assert point.gen_ppl_sd == pytest.approx(8**0.5)
    assert point.tokens_per_call == 16.0
    assert found.reference == (5.4, 8.0)


def evaluation_of(make, path, *headers):
    """The one frontier of an evaluation whose sets have these headers."""
    shared = {"checkpoint": "m", "steps": 4, "nfe": 4, "length": 64, "num_samples": 8}
    results = [
        {
            **shared,
            "seed": number,
            "source": f"file {number}",
            "gen_ppl": 9.0,
            "entropy": 5.0,
            **one,
        }
        for number, one in enumerate(headers)
    ]
    found = {"summary": [], "results": results, "warnings": ["few samples"]}
    (frontier,) = collect([make.write_json(path / "a.json", found)]).frontiers
    return frontier


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ({"order": "random"}, {"order": "confidence"}),
        ({"tail": "ancestral"}, {"tail": "greedy"}),
        ({"stride": 64}, {"stride": 4}),
        ({"stop": "none"}, {"stop": "eos"}),
        ({"given": "nothing"}, {"given": "prompt"}),
        ({"raw": False}, {"raw": True}),
        ({"sampling_dtype": "float64"}, {"sampling_dtype": "float32"}),
        ({"network_dtype": "float32"}, {"network_dtype": "bfloat16"}),
        ({"compiled": False}, {"compiled": True}),
    ],
    ids=lambda value: next(iter(value)),
)
def test_sets_made_in_two_ways_are_two_points_whose_names_say_which(make, tmp_path, first, second):
    points = evaluation_of(make, tmp_path, first, second).points
    ((name, one),), ((_, two),) = first.items(), second.items()
    assert [point.label for point in points] == [f"m, {name} {one}", f"m, {name} {two}"]
    assert [point.seeds for point in points] == [1, 1]


def test_sets_of_one_seed_are_two_points_and_said_to_be_no_repetitions(make, tmp_path):
    found = evaluation_of(make, tmp_path, {"seed": 3}, {"seed": 3}, {"steps": 8, "nfe": 8})
    assert [point.seeds for point in found.points] == [1, 1, 1]
    assert [point.gen_ppl_sd for point in found.points] == [None] * 3
    few, said = found.warnings
    assert few == "few samples"
    assert "seeds 3, 3" in said
    assert "file 0, file 1" in said


def test_two_evaluators_in_one_file_are_two_frontiers(make, tmp_path):
    found = make.frontier()
    for name in ("judge", "other"):
        for row in make.frontier()["summary"]:
            found["summary"].append({**row, "evaluator": name})
    found["summary"] = found["summary"][4:]
    found["matched"] = []
    frontiers = collect([make.write_json(tmp_path / "a.json", found)]).frontiers
    assert [one.name.rpartition(", under ")[2] for one in frontiers] == ["judge", "other"]
    # the cells were all judged by the first
    assert [len(one.records) for one in frontiers] == [4, 0]


def test_ways_of_drawing_that_differ_are_part_of_the_name(make, tmp_path):
    found = make.frontier()
    for row, dtype in zip(found["summary"], ("float64", "float32") * 2, strict=True):
        row["sampling_dtype"] = dtype
    (one,) = collect([make.write_json(tmp_path / "a.json", found)]).frontiers
    labels = [point.label for point in one.points]
    assert labels[:2] == ["teacher, float64", "teacher, float32"]
    assert set(one.teachers) == {"teacher, float64", "teacher, float32"}


def test_a_log_is_read_over_the_updates_of_the_student(results):
    (run,) = collect([results / "run"]).trainings
    assert run.counter == "student updates"
    # of several rows at one update the last counts, and validation belongs to the update before it
    assert run.curves["train/fake_loss"] == [(0.0, 7.5), (1.0, 7.25), (2.0, 7.25), (3.0, 7.0)]
    assert run.curves["val/gen_ppl"] == [(2.0, 90.5), (3.0, 80.25)]
    assert run.curves["val/frontier_ratio"][0][1] == float("inf")
    assert run.floor == 1.5
    assert run.settings["seed_everything"] == 3


def test_settings_that_would_make_objects_are_refused(results):
    config = results / "run" / "logs" / "version_0" / "config.yaml"
    config.write_text("a: !!python/object/apply:os.system ['true']")
    with pytest.raises(UserError, match="no YAML of plain values"):
        collect([results / "run"])


def test_published_numbers_lose_their_spread_and_keep_their_words(results):
    found = collect([results], published=results.parent / "published.csv").published
    assert [one.gen_ppl for one in found] == [41.29, 32.75, 12.5]
    assert [one.entropy for one in found] == [5.28, 5.42, None]
    assert found[1].row["genppl"] == "32.75±1.62"
    assert found[0].row["notes"] == "a, note"


def test_a_table_in_the_shipped_layout_is_held_to_its_rules(results, tmp_path):
    head, line, *_ = published_path().read_text(encoding="utf-8").splitlines()
    other = line.replace("openwebtext", "lm1b")
    path = tmp_path / "published.csv"
    path.write_text("\n".join([head, line, other, ""]), encoding="utf-8")
    found = collect([results], published=path).published
    assert [one.drawn for one in found] == [True, False]  # neither number compares across corpora
    assert (found[0].steps, found[0].gen_ppl, found[0].entropy) == (32, 41.45, 5.31)
    for lines, sentence in (
        ([head, line, line, ""], "line 3 repeats line 2"),
        ([head, line.replace("arXiv 2602.19066", "a blog"), ""], "begin with an arXiv number"),
        ([head, line.replace("41.45", "-41.45"), ""], "it is above 0"),
    ):
        path.write_text("\n".join(lines), encoding="utf-8")
        with pytest.raises(UserError, match=sentence):
            collect([results], published=path)


@pytest.mark.parametrize("cell", ["forty", "-3", "0"])
def test_a_published_number_that_is_none_is_refused(make, results, cell):
    path = results.parent / "published.csv"
    path.write_text(make.PUBLISHED.replace("41.29", cell))
    with pytest.raises(UserError, match="line 2"):
        collect([results], published=path)


def test_the_source_is_named_with_its_digest(results):
    found = collect([results / "toys.json"]).sources
    (name, _, digest) = found[0]
    assert name.endswith("toys.json")
    assert len(digest) == 12
    (results / "toys.json").write_text(
        json.dumps(json.loads((results / "toys.json").read_text())[:1])
    )
    assert collect([results / "toys.json"]).sources[0][2] != digest
