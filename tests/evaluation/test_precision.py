"""The study of precision: the exact law of a float32 race, the table, and the files."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
import torch
import yaml

from idlm.evaluation import precision
from idlm.evaluation.protocol import read_protocol
from idlm.evaluation.truncation import Case, demonstration, race_law, simulate
from idlm.paths import repo_dir
from idlm.sampling.float32 import race
from tests.tiny_models import LENGTH


@pytest.mark.parametrize("steps", [1, 4, 32])
def test_the_law_equals_races_with_uniforms_of_six_bits(steps):
    """Few bits make the cut-off large: 64 values, 40 tokens."""
    case, races = Case(tokens=40, steps=steps), 60_000
    heavy, other, mask = case.weights()
    weights = torch.tensor([heavy, mask, *[other] * 40], dtype=torch.float64)
    k = torch.randint(64, (races, 42), generator=torch.Generator().manual_seed(0))
    winner = race(weights, k.double() / 64)
    wins = [int((winner == 0).sum()), int((winner > 1).sum())]
    for found, chance in zip(wins, race_law(case, bits=6), strict=True):
        assert abs(found - races * chance) < 4 * math.sqrt(races * chance) + 0.002 * races


def test_on_a_large_vocabulary_float32_loses_the_flat_half_as_steps_grow():
    shares = []
    for steps in (1, 64, 1024):
        heavy, others = race_law(Case(steps=steps))
        shares.append(others / (heavy + others))
    assert shares[0] == pytest.approx(0.5, abs=0.005)
    assert shares[1] < 0.499
    assert shares[2] < 0.05  # it should be a half
    assert shares == sorted(shares, reverse=True)


def test_simulated_races_follow_the_law_in_float32_and_the_truth_in_float64():
    wins = simulate(Case(tokens=2000, steps=4), 2000)
    law = race_law(Case(tokens=2000, steps=4))
    for found, chance in zip(wins, law, strict=True):
        assert abs(found - 2000 * chance) < 4 * math.sqrt(2000 * chance)
    exact = simulate(Case(tokens=2000, steps=4), 2000, dtype=torch.float64)
    assert (exact[0] - exact[1]) ** 2 / sum(exact) < 10.8  # chi-square, 1 degree, level 1e-3


def test_the_demonstration_says_cut_off_share_and_chi_square():
    found = demonstration((1, 8), simulated=(8,), races=400, tokens=500)
    first, second = found["rows"]
    assert "float32" not in first
    assert second["cutoff"] == 8 / 2**24
    row = second["float64"]
    assert row["chi_square"] == pytest.approx((2 * row["share"] - 1) ** 2 * row["revealed"])
    assert found["vocabulary"] == 502


def cell(dtype, steps, log_ppl, entropy, rng, n=100, seed=0):
    noise = rng.standard_normal(n)
    nats, entropies = 100 * (log_ppl + 0.1 * noise), entropy + 0.1 * noise
    return {
        "label": "teacher", "steps": steps, "temperature": 1.0, "top_p": 1.0, "seed": seed,
        "num_samples": n, "sampling_dtype": dtype, "entropy": float(entropies.mean()),
        "gen_ppl": math.exp(nats.sum() / (100 * n)),
        "per_sample": {
            "nats": nats.tolist(), "tokens": [100] * n, "entropy": entropies.tolist(),
        },
    }  # fmt: skip


def test_pairs_of_precisions_stand_together_with_intervals_over_the_truth():
    rng = np.random.default_rng(0)
    cells = [
        cell("float64", 64, 5.0, 5.5, rng),
        cell("float32", 64, 4.8, 5.4, rng),
        cell("float64", 16, 5.0, 5.5, rng),
        cell("float32", 16, 5.0, 5.5, rng),
        cell("float64", 256, 5.0, 5.5, rng),  # without a partner
    ]
    few, many = precision.precision_table(cells)
    assert (few["steps"], many["steps"]) == (16, 64)
    assert few["ratio_low"] < 1.0 < few["ratio_high"]
    assert many["ratio_low"] < math.exp(-0.2) < many["ratio_high"] < 1.0
    assert many["entropy_difference_low"] < -0.1 < many["entropy_difference_high"] < 0.0
    assert many["interval"] == "samples"


def test_the_shipped_protocol_pairs_both_precisions_at_four_step_counts():
    cells = list(read_protocol(repo_dir() / "eval" / "precision.yaml").cells())
    assert {c.steps for c in cells} == {16, 64, 256, 1024}
    assert {c.sampling_dtype for c in cells} == {"float32", "float64"}


def test_the_study_writes_table_and_figure_and_measures_nothing_twice(
    tmp_path, folders, monkeypatch, capsys
):
    monkeypatch.setattr(
        precision, "demonstration", lambda races: demonstration((1, 8), simulated=(8,),
                                                                races=races, tokens=99)
    )  # fmt: skip
    plan = {
        "teacher": "teacher",
        "models": [
            {
                "label": "teacher",
                "checkpoint": str(folders.teacher),
                "steps": [2, 4],
                "sampling_dtypes": ["float64", "float32"],
            }
        ],
        "seeds": [0],
        "num_samples": 3,
        "length": LENGTH,
        "evaluator": str(folders.evaluator),
    }
    path, output = tmp_path / "p.yaml", tmp_path / "precision.json"
    path.write_text(yaml.safe_dump(plan))
    argv = ["--protocol", str(path), "--output", str(output), "--races", "50", "--device", "cpu"]
    precision.main(argv)
    first = json.loads(output.read_text())
    assert [row["steps"] for row in first["precision"]] == [2, 4]
    table = output.with_suffix(".md").read_text()
    assert "| teacher | 4 | 3 |" in table
    assert table in capsys.readouterr().out
    assert output.with_suffix(".png").read_bytes()[:4] == b"\x89PNG"
    monkeypatch.setattr(precision, "demonstration", None)  # would be called in vain
    precision.main(argv)
    assert json.loads(output.read_text()) == first
    plan["length"] = LENGTH - 2
    path.write_text(yaml.safe_dump(plan))
    precision.main(argv)
    shorter = json.loads(output.read_text())
    assert len(shorter["cells"]) == 2 * len(first["cells"])  # the longer ones stay
    assert [row["samples"] for row in shorter["precision"]] == [3, 3]
    entropies = {c["entropy"] for c in shorter["cells"] if c["length"] == LENGTH - 2}
    assert {row["entropy_float64"] for row in shorter["precision"]} <= entropies


def test_a_protocol_of_one_precision_is_refused(tmp_path, capsys):
    frontier = str(repo_dir() / "eval" / "frontier.yaml")
    with pytest.raises(SystemExit) as stop:
        precision.main(["--protocol", frontier, "--output", str(tmp_path / "x.json")])
    assert stop.value.code == 2
    assert "draws in float64 only; give a model sampling_dtypes" in capsys.readouterr().err
