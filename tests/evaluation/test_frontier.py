from __future__ import annotations

import json
import math
import shutil

import pytest
import yaml
from safetensors.torch import load_file, save_file

from idlm.cli.main import main
from idlm.errors import UserError
from idlm.evaluation import frontier
from idlm.evaluation.protocol import read_protocol
from idlm.evaluation.results import Results
from idlm.paths import repo_dir
from tests.tiny_models import LENGTH, SENTENCES


@pytest.fixture
def settings(folders, tmp_path):
    """The content of a small protocol: two temperatures of the teacher, one student, two seeds."""
    corpus = tmp_path / "text.txt"
    corpus.write_text("\n".join(SENTENCES * 30), encoding="utf-8")
    return {
        "teacher": "teacher",
        "models": [
            {
                "label": "teacher",
                "checkpoint": str(folders.teacher),
                "steps": [2],
                "temperatures": [1.0, 0.5],
            },
            {"label": "student", "checkpoint": str(folders.student), "steps": [2]},
        ],
        "seeds": [0, 1],
        "num_samples": 2,
        "length": LENGTH,
        "evaluator": str(folders.evaluator),
        "reference": {"corpus": str(corpus), "rows": 2},
    }


def written(tmp_path, settings):
    path = tmp_path / "protocol.yaml"
    path.write_text(yaml.safe_dump(settings), encoding="utf-8")
    return path


def run(tmp_path, settings, **options):
    return frontier.run(
        read_protocol(written(tmp_path, settings)),
        tmp_path / "out.json",
        settings=frontier.Settings("cpu", 2),
        **options,
    )


@pytest.fixture
def measured(monkeypatch):
    """The cells that were really measured."""
    seen = []
    original = frontier.measure_each

    def spy(cell, **options):
        seen.append(cell)
        return original(cell, **options)

    monkeypatch.setattr(frontier, "measure_each", spy)
    return seen


def test_the_shipped_protocol_is_the_comparison_that_was_promised():
    protocol = read_protocol(repo_dir() / "eval" / "frontier.yaml")
    cells = list(protocol.cells())
    assert {c.steps for c in cells if c.label == "student"} >= {4, 8, 16, 32}
    teacher = [c for c in cells if c.label == "teacher"]
    assert {c.steps for c in teacher} >= {16, 64, 256, 1024}
    assert {c.temperature for c in teacher if c.steps == 16} >= {1.0, 0.95, 0.9, 0.8, 0.7}
    assert {c.seed for c in cells} == {0, 1, 2}
    assert all(c.num_samples >= 64 and c.length == 1024 for c in cells)
    assert protocol.reference is not None


def test_a_run_measures_every_cell_and_summarises_over_seeds(tmp_path, settings, capsys):
    result = run(tmp_path, settings)
    assert len(result["cells"]) == 6
    assert [(r["label"], r["temperature"], r["seeds"]) for r in result["summary"]] == [
        ("teacher", 1.0, [0, 1]),
        ("teacher", 0.5, [0, 1]),
        ("student", 1.0, [0, 1]),
    ]
    assert [row["label"] for row in result["matched"]] == ["student"]
    assert result["reference"]["num_samples"] == 2
    assert json.loads((tmp_path / "out.json").read_text()) == result
    assert "[6/6] student, 2 steps, T=1, seed 1: GenPPL" in capsys.readouterr().out


def test_a_run_that_was_stopped_measures_only_what_is_missing(
    tmp_path, settings, measured, monkeypatch
):
    real = frontier.measure_each

    def dies_at_the_third(cell, **options):
        if len(measured) == 2:
            raise KeyboardInterrupt
        return real(cell, **options)

    monkeypatch.setattr(frontier, "measure_each", dies_at_the_third)
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path, settings)
    kept = json.loads((tmp_path / "out.json").read_text())["cells"]
    assert len(kept) == 2
    monkeypatch.setattr(frontier, "measure_each", real)
    measured.clear()
    result = run(tmp_path, settings)
    assert len(measured) == 4
    assert result["cells"][:2] == kept
    measured.clear()
    run(tmp_path, settings)
    assert measured == []


def test_a_cell_of_other_weights_or_settings_is_measured_again_and_kept_out_of_the_summary(
    tmp_path, settings, measured, folders
):
    settings["seeds"] = [0]
    run(tmp_path, settings, only=["student"])
    measured.clear()
    settings["models"][1]["checkpoint"] = str(folders.teacher)
    result = run(tmp_path, settings, only=["student"])
    assert len(measured) == 1
    assert len(result["cells"]) == 2
    assert len(result["summary"]) == 1
    settings["num_samples"] = 3
    result = run(tmp_path, settings, only=["student"])
    assert [row["num_samples"] for row in result["summary"]] == [3]


def test_a_checkpoint_that_moved_is_not_measured_again(tmp_path, settings, measured, folders):
    run(tmp_path, settings, only=["student"])
    measured.clear()
    link = tmp_path / "elsewhere"
    link.symlink_to(folders.student)
    settings["models"][1]["checkpoint"] = str(link)
    run(tmp_path, settings, only=["student"])
    assert measured == []


def test_only_selects_labels_and_step_counts(tmp_path, settings, measured):
    settings["models"][0]["steps"] = [2, 3]
    settings["models"][0]["temperatures"] = [1.0]
    settings["seeds"] = [0]
    run(tmp_path, settings, only=["teacher:3", "student"])
    assert [(c.label, c.steps) for c in measured] == [("teacher", 3), ("student", 2)]
    with pytest.raises(UserError, match=r"--only 'teacher:9' selects nothing .*student, teacher"):
        run(tmp_path, settings, only=["teacher:9"])


def test_a_missing_model_is_said_before_anything_is_measured(tmp_path, settings, measured):
    settings["models"][1]["checkpoint"] = "./nowhere"
    with pytest.raises(UserError, match=r"checkpoint './nowhere' is not a folder"):
        run(tmp_path, settings)
    assert measured == []


def test_a_missing_model_does_not_stop_the_others(tmp_path, settings):
    settings["models"][1]["checkpoint"] = "./nowhere"
    settings["seeds"] = [0]
    assert len(run(tmp_path, settings, only=["teacher"])["summary"]) == 2


def test_samples_are_kept_on_request(tmp_path, settings):
    settings["seeds"] = [0]
    protocol = read_protocol(written(tmp_path, settings))
    frontier.run(
        protocol,
        tmp_path / "out.json",
        only=["student"],
        settings=frontier.Settings("cpu", 2, str(tmp_path / "kept")),
    )
    assert [p.name for p in (tmp_path / "kept").iterdir()] == ["student-2-T1-seed0.jsonl"]


def test_cells_that_were_measured_before_their_texts_were_wanted_are_named(
    tmp_path, settings, capsys
):
    settings["seeds"] = [0]
    run(tmp_path, settings, only=["student"])
    protocol, kept = read_protocol(written(tmp_path, settings)), tmp_path / "kept"
    for _ in range(2):  # the texts of the second run are there in the third
        capsys.readouterr()
        frontier.run(
            protocol, tmp_path / "out.json", settings=frontier.Settings("cpu", 2, str(kept))
        )
        said = capsys.readouterr().out
        assert f"no texts in {kept} for 1 cells, which were measured before: student, 2" in said
        assert "seed 0; to get them, name another --output" in said
    assert len(list(kept.iterdir())) == 2


def test_a_cell_that_another_process_has_claimed_is_left_to_it(
    tmp_path, settings, measured, capsys
):
    settings["seeds"] = [0]
    protocol = read_protocol(written(tmp_path, settings))
    others = Results(protocol, tmp_path / "out.json", "cpu")
    first = next(iter(protocol.cells()))
    with others.claim(first) as evaluators:
        assert evaluators == protocol.evaluators
        run(tmp_path, settings)
        assert len(measured) == 2
        assert first not in measured
        assert "1 cells are being measured by other processes" in capsys.readouterr().out
    run(tmp_path, settings)
    assert measured[-1] == first
    assert len(measured) == 3
    assert [p.name for p in tmp_path.iterdir() if p.name.startswith(".")] == []


def test_cells_that_others_added_meanwhile_are_kept(tmp_path, settings):
    settings["seeds"] = [0]
    protocol = read_protocol(written(tmp_path, settings))
    slow = Results(protocol, tmp_path / "out.json", "cpu")  # has read the file before
    theirs = run(tmp_path, settings, only=["student"])["cells"]
    mine = {**theirs[0], "label": "mine"}
    slow.add([mine])
    assert json.loads((tmp_path / "out.json").read_text())["cells"] == [*theirs, mine]


def test_several_evaluators_judge_the_same_samples_and_a_new_one_is_added(
    tmp_path, settings, measured, folders
):
    settings["seeds"] = [0]
    alone = run(tmp_path, settings)
    measured.clear()
    second = tmp_path / "second"
    shutil.copytree(folders.evaluator, second)
    weights = load_file(second / "model.safetensors")
    weights["transformer.wte.weight"][:, 0] *= 2.0
    save_file(weights, second / "model.safetensors", metadata={"format": "pt"})
    judges = [settings.pop("evaluator"), str(second)]
    both = run(tmp_path, settings | {"evaluators": judges})
    assert len(measured) == 3  # generated again for the new judge alone
    assert [row["evaluator"] for row in both["summary"]] == [judges[0]] * 3 + [judges[1]] * 3
    assert both["summary"][:3] == alone["summary"]
    assert {row["evaluator"] for row in both["matched"]} == set(judges)
    for one, other in zip(both["summary"][:3], both["summary"][3:], strict=True):
        assert one["entropy_mean"] == other["entropy_mean"]
        assert one["gen_ppl_mean"] != other["gen_ppl_mean"]
    assert [r["evaluation"]["evaluator"] for r in both["references"]] == judges
    assert both["reference"] == both["references"][0]
    measured.clear()
    run(tmp_path, settings | {"evaluators": judges})
    assert measured == []


def test_every_way_of_sampling_is_a_cell_of_its_own(tmp_path, settings):
    shared = {k: settings["models"][0][k] for k in ("label", "checkpoint", "steps")}
    settings["models"] = [
        shared
        | {
            "top_p": [1.0, 0.5],
            "samplers": ["ancestral", "margin"],
            "network_dtypes": ["float32", "bfloat16"],
        },
        shared | {"sampling_dtypes": ["float32"]},
    ]
    settings["seeds"] = [0]
    cells = run(tmp_path, settings)["cells"]
    assert len(cells) == 9
    names = ("sampler", "sampling_dtype", "network_dtype", "top_p")
    assert len({tuple(cell[name] for name in names) for cell in cells}) == 9
    exact = [cell for cell in cells if cell["sampling_dtype"] == "float64"]
    for name in ("sampler", "top_p"):
        assert len({(c[name], c["gen_ppl"]) for c in exact}) > 2, name
    assert {c["order"] for c in exact if c["sampler"] == "margin"} == {"margin"}
    assert not any("order" in c for c in exact if c["sampler"] == "ancestral")
    (raced,) = (cell for cell in cells if cell["sampling_dtype"] == "float32")
    assert raced["gen_ppl"] not in {cell["gen_ppl"] for cell in exact}


def test_per_sample_numbers_add_up_to_those_of_the_cell(tmp_path, settings):
    for cell in run(tmp_path, settings, only=["student"])["cells"]:
        kept = cell["per_sample"]
        assert len(kept["nats"]) == cell["num_samples"] == 2
        assert math.exp(sum(kept["nats"]) / sum(kept["tokens"])) == pytest.approx(cell["gen_ppl"])
        assert sum(kept["entropy"]) / 2 == pytest.approx(cell["entropy"])


def test_a_file_from_before_samplers_and_precisions_were_named_still_counts(
    tmp_path, settings, measured
):
    content = run(tmp_path, settings)
    old = ("sampler", "revision", "per_sample")
    content["cells"] = [{k: v for k, v in c.items() if k not in old} for c in content["cells"]]
    for name in ("gains", "references"):
        del content[name]
    (tmp_path / "out.json").write_text(json.dumps(content))
    measured.clear()
    again = run(tmp_path, settings)
    assert measured == []
    assert again["summary"] == content["summary"]
    assert again["gains"]["equal_entropy"][0]["interval"] == "seeds"


def test_the_shipped_results_are_cells_of_the_shipped_protocol():
    """Hours of measurements: whoever changes what identifies a cell must not lose them."""
    path = repo_dir() / "eval" / "results" / "frontier.json"
    protocol = read_protocol(repo_dir() / "eval" / "frontier.yaml")
    results = Results(protocol, path, "cpu")
    assert len(results.cells) >= 19
    assert sum(results.has(cell) for cell in protocol.cells()) == len(results.cells)


def test_a_file_that_is_no_results_file_is_left_alone(tmp_path, settings):
    (tmp_path / "out.json").write_text('{"my": "thesis"}')
    with pytest.raises(UserError, match="is no results file"):
        run(tmp_path, settings)
    assert (tmp_path / "out.json").read_text() == '{"my": "thesis"}'


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"num_smaples": 1}, r"key 'num_smaples', which nothing reads; did you mean 'num_samples'"),
        ({"reference": {"rwos": 1}}, r"key 'reference.rwos', .* did you mean 'rows'"),
        ({"colour": 1}, r"key 'colour', which nothing reads; there are models, teacher"),
        ({"num_samples": "many"}, "many"),
        ({"num_samples": 0}, "0 samples"),
        ({"teacher": "professor"}, "'professor', which is none of the labels"),
        ({"models": []}, "there are none"),
        ({"seeds": [0, 0]}, None),
        ({"evaluator": None}, "needs either evaluator, a language model that judges, or evaluato"),
        ({"evaluators": ["another"]}, "needs either evaluator"),
        ({"evaluator_dtype": "float8"}, "evaluator_dtype has 'float8'; choose from float32"),
        ({"eos": "none"}, "eos has 'none'; choose from published, strict"),
    ],
)
def test_a_protocol_that_makes_no_sense_is_refused(tmp_path, settings, change, sentence):
    path = written(tmp_path, settings | change)
    if sentence is None:  # a seed given twice is the same seed
        assert len(list(read_protocol(path).cells())) == 3
        return
    with pytest.raises(UserError, match=sentence):
        read_protocol(path)


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"temperature": 1.0}, r"key 'models\[0\].temperature', .* did you mean 'temperatures'"),
        ({"samplers": ["ddim"]}, "samplers has 'ddim'; choose from ancestral, greedy, confidence"),
        ({"sampling_dtypes": ["float16"]}, "sampling_dtypes has 'float16'; choose from float64"),
        ({"network_dtypes": ["int8"]}, "network_dtypes has 'int8'; choose from float32, bfloat16"),
        ({"top_p": [0.0]}, r"has top_p 0; it must be in \(0, 1\]"),
    ],
)
def test_a_model_that_makes_no_sense_is_refused_too(tmp_path, settings, change, sentence):
    settings["models"][0] |= change
    with pytest.raises(UserError, match=sentence):
        read_protocol(written(tmp_path, settings))


def test_one_label_never_stands_for_two_checkpoints(tmp_path, settings):
    settings["models"][1]["label"] = "teacher"
    with pytest.raises(UserError, match="a label of its own"):
        read_protocol(written(tmp_path, settings))


def test_a_setting_listed_twice_is_refused(tmp_path, settings):
    settings["models"][0]["steps"] = [2, 2]
    with pytest.raises(UserError, match="twice"):
        read_protocol(written(tmp_path, settings))


@pytest.mark.parametrize("content", [None, "models: [", "- a list"])
def test_a_file_that_is_no_protocol_is_one_sentence_and_exit_2(tmp_path, content, capsys):
    path = tmp_path / "protocol.yaml"
    if content is not None:
        path.write_text(content)
    with pytest.raises(SystemExit) as stop:
        main(["evaluate", "--protocol", str(path), "--output", str(tmp_path / "out.json")])
    assert stop.value.code == 2
    err = capsys.readouterr().err
    assert err.startswith("idlm: error: protocol")
    assert err.count("\n") == 1


@pytest.mark.slow
def test_workers_measure_the_same_numbers_side_by_side(tmp_path, settings):
    settings["seeds"] = [0]
    alone = run(tmp_path, settings)
    (tmp_path / "out.json").unlink()
    together = run(tmp_path, settings, workers=2, threads=1)
    for a, b in zip(alone["summary"], together["summary"], strict=True):
        assert (a["label"], a["entropy_mean"]) == (b["label"], pytest.approx(b["entropy_mean"]))
        assert a["gen_ppl_mean"] == pytest.approx(b["gen_ppl_mean"], rel=1e-5)
