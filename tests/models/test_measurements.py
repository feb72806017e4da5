"""Numbers reach a card with their conditions, or not at all."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from idlm.errors import UserError
from idlm.models.measurements import metrics_section

JUDGE = {
    "evaluator": "gpt2-large",
    "evaluator_revision": "abc",
    "evaluator_dtype": "float32",
    "pooling": "tokens",
    "eos": "published",
    "retokenized": True,
}


def row(**changes: Any) -> dict[str, Any]:
    return {
        "checkpoint": "student",
        "steps": 16,
        "nfe": 16,
        "temperature": 1.0,
        "top_p": 1.0,
        "length": 1024,
        "num_samples": 64,
        "sampling_dtype": "float64",
        "seed": 0,
        "gen_ppl": 30.0,
        "entropy": 5.25,
        **JUDGE,
        **changes,
    }


def written(folder: Path, rows: list[dict[str, Any]], key: str = "results") -> Path:
    path = folder / "metrics.json"
    path.write_text(json.dumps({key: rows}))
    return path


def test_a_perplexity_stands_beside_entropy_and_every_condition(tmp_path: Path) -> None:
    section = metrics_section(written(tmp_path, [row()]), ["student"])
    head, _, line, _, caption = section.splitlines()
    cells = dict(zip(head.split(" | "), line.split(" | "), strict=True))
    assert (cells["GenPPL"], cells["entropy (nats) |"]) == ("30.00", "5.250 |")
    assert (cells["| steps"], cells["network calls"]) == ("| 16", "16")
    assert (cells["samples per seed"], cells["sampling dtype"]) == ("64", "float64")
    for told in ("gpt2-large", "revision abc", "float32", "eos rule published", "re-tokenised"):
        assert told in caption


def test_seeds_become_a_mean_and_a_standard_deviation(tmp_path: Path) -> None:
    rows = [row(), row(seed=1, gen_ppl=34.0, entropy=5.35), row(seed=0, steps=8, nfe=8)]
    lines = metrics_section(written(tmp_path, rows), ["student"]).splitlines()
    assert lines[2].endswith("| 0, 1 | 32.00 ± 2.83 | 5.300 ± 0.071 |")
    assert lines[3].startswith("| 8 | 8 |")


def test_the_cells_of_a_frontier_are_read_too(tmp_path: Path) -> None:
    cell = {k: v for k, v in row().items() if k not in JUDGE and k != "nfe"}
    cell |= {"network_calls": 15, "checkpoint_revision": "sha256:1234", "evaluation": JUDGE}
    section = metrics_section(written(tmp_path, [cell], "cells"), ["anything", "sha256:1234"])
    assert "| 16 | 15 |" in section
    assert "GenPPL under gpt2-large" in section


def test_only_rows_of_these_weights_are_taken(tmp_path: Path) -> None:
    rows = [
        row(),
        row(checkpoint="teacher", gen_ppl=99.0),
        # the same name on other weights, and the same weights under another name
        row(revision="sha256:old", gen_ppl=77.0),
        row(checkpoint="copy", revision="sha256:new", gen_ppl=31.0, seed=1),
        {"source": "reference: held-out", "gen_ppl": 20.0, "entropy": 5.5},
    ]
    section = metrics_section(written(tmp_path, rows), ["student", "sha256:new"])
    assert "30.50 ± 0.71" in section
    assert not any(number in section for number in ("99", "77.0", "20.0"))


def test_another_judge_is_another_table(tmp_path: Path) -> None:
    rows = [row(), row(evaluator="llama", gen_ppl=12.0)]
    section = metrics_section(written(tmp_path, rows), ["student"])
    assert section.count("GenPPL under") == 2
    assert section.index("30.00") < section.index("gpt2-large") < section.index("12.00")


def test_a_perplexity_that_does_not_exist_is_said_to(tmp_path: Path) -> None:
    section = metrics_section(written(tmp_path, [row(gen_ppl=None)]), ["student"])
    assert "| none scored | 5.250 |" in section


@pytest.mark.parametrize("lost", ["entropy", "steps", "num_samples", "sampling_dtype", "evaluator"])
def test_a_perplexity_without_a_condition_is_refused(tmp_path: Path, lost: str) -> None:
    path = written(tmp_path, [row(**{lost: None})])
    with pytest.raises(UserError, match=f"perplexity without {lost}, which it must be printed"):
        metrics_section(path, ["student"])


def test_numbers_of_another_checkpoint_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="measures student and not this checkpoint"):
        metrics_section(written(tmp_path, [row()]), ["other"])


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("{", "is no JSON"),
        ("[]", "is no results file"),
        ('{"results": 3}', "is no results file"),
        ('{"results": [{"evaluation": [1]}]}', "is no results file"),
    ],
)
def test_a_file_of_something_else_is_refused(tmp_path: Path, text: str, named: str) -> None:
    (tmp_path / "x.json").write_text(text)
    with pytest.raises(UserError, match=named):
        metrics_section(tmp_path / "x.json", ["student"])
    with pytest.raises(UserError, match="cannot be read"):
        metrics_section(tmp_path / "absent.json", ["student"])
