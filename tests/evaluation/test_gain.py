"""Gains at equal steps and equal entropy: a simulation with a known truth, and the edges."""

from __future__ import annotations

import math

import numpy as np
import pytest

from idlm.evaluation.gain import GAIN, LOSS, NO_GAIN, UNDECIDED, gains
from idlm.evaluation.resampling import redraw

ENTROPIES = {1.05: 5.69, 1.0: 5.63, 0.95: 5.55, 0.9: 5.45, 0.8: 5.18, 0.7: 4.81}


def true_log_ppl(entropy: float) -> float:
    """A teacher's curve that bends as measured ones do; nats per token."""
    return 4.03 + 1.15 * (entropy - 4.81) + 0.55 * (entropy - 4.81) ** 2


def simulated(rng, label, entropy, log_ppl, *, steps=16, temperature=1.0, top_p=1.0, n=64, seed=0):
    """A cell of n samples whose entropies and nats scatter together around a known truth."""
    noise = rng.standard_normal((2, n))
    entropies = entropy + 0.08 * noise[0]
    tokens = np.full(n, 1000)
    nats = tokens * (log_ppl + 0.1 * noise[0] + 0.08 * noise[1])
    return {
        "label": label,
        "steps": steps,
        "temperature": temperature,
        "top_p": top_p,
        "seed": seed,
        "num_samples": n,
        "gen_ppl": math.exp(nats.sum() / tokens.sum()),
        "entropy": float(entropies.mean()),
        "per_sample": {
            "nats": nats.tolist(),
            "tokens": tokens.tolist(),
            "entropy": entropies.tolist(),
        },
    }


def frontier(rng, student_entropy, log_ratio, *, n=64):
    """Cells of a teacher's sweep, and a student that is ``log_ratio`` off its curve."""
    cells = [
        simulated(rng, "teacher", h, true_log_ppl(h), temperature=t, n=n)
        for t, h in ENTROPIES.items()
    ]
    own = true_log_ppl(student_entropy) + log_ratio
    return [*cells, simulated(rng, "student", student_entropy, own, n=n)]


def verdicts(log_ratio, runs=60, entropy=5.35):
    found = []
    for run in range(runs):
        cells = frontier(np.random.default_rng(run), entropy, log_ratio)
        (row,) = gains(cells, "teacher", repetitions=200)["equal_entropy"]
        found.append(row)
    return found


def covered(rows, truth):
    return sum(row["ratio_low"] <= truth <= row["ratio_high"] for row in rows) / len(rows)


def test_a_student_on_the_teachers_curve_has_gained_nothing():
    rows = verdicts(0.0)
    assert sum(row["verdict"] == NO_GAIN for row in rows) >= 55
    assert sum(row["verdict"] == GAIN for row in rows) <= 3
    assert covered(rows, 1.0) >= 0.9
    assert {row["interval"] for row in rows} == {"samples"}


@pytest.mark.parametrize(("truth", "verdict"), [(0.8, GAIN), (1.2, LOSS)])
def test_a_student_off_the_curve_gets_the_right_sign_and_an_interval_over_the_truth(truth, verdict):
    rows = verdicts(math.log(truth))
    assert all(row["verdict"] == verdict for row in rows)
    assert covered(rows, truth) >= 0.9
    assert np.mean([row["ratio_high"] - row["ratio_low"] for row in rows]) < 0.3


def test_a_wide_gap_between_temperatures_is_not_taken_for_a_gain():
    """A chord lies above a curve that bends upwards: alone it would call this one a gain."""
    rng = np.random.default_rng(0)
    places = {1.0: 5.63, 0.8: 5.0, 0.6: 4.4}
    many = 20_000  # no noise to hide behind
    cells = [
        simulated(rng, "teacher", h, true_log_ppl(h), temperature=t, n=many)
        for t, h in places.items()
    ]
    cells.append(simulated(rng, "student", 5.3, true_log_ppl(5.3), n=many))
    (row,) = gains(cells, "teacher", repetitions=50)["equal_entropy"]
    assert row["ratio"] < 0.97  # the chord's error
    assert row["verdict"] == NO_GAIN
    assert row["ratio_low"] <= 1.0 <= row["ratio_high"]


def test_at_equal_steps_the_ratio_and_the_entropy_paid_for_it_stand_together():
    cells = frontier(np.random.default_rng(1), 5.35, 0.0)
    (row,) = gains(cells, "teacher")["equal_steps"]
    truth = math.exp(true_log_ppl(5.35) - true_log_ppl(5.63))
    assert row["ratio_low"] < truth < row["ratio_high"] < 1
    assert row["entropy_difference_low"] < 5.35 - 5.63 < row["entropy_difference_high"] < 0


def test_a_sweep_of_the_nucleus_is_a_curve_of_its_own():
    rng = np.random.default_rng(2)
    cells = frontier(rng, 5.35, 0.0)
    cells += [
        simulated(rng, "teacher", h, true_log_ppl(h) - 0.3, top_p=p)
        for p, h in ((0.95, 5.5), (0.9, 5.3), (0.8, 5.0))
    ]
    rows = gains(cells, "teacher")["equal_entropy"]
    assert [(row["sweep"], row["verdict"]) for row in rows] == [
        ("temperature", NO_GAIN),
        ("nucleus", LOSS),
    ]


def without_samples(cells):
    return [{k: v for k, v in cell.items() if k != "per_sample"} for cell in cells]


def test_old_cells_get_an_interval_from_their_seeds_and_it_is_said():
    inside = 0
    for run in range(40):
        rng = np.random.default_rng(run)
        cells = []
        for seed in range(3):
            cells += [cell | {"seed": seed} for cell in frontier(rng, 5.35, math.log(0.8))]
        (row,) = gains(without_samples(cells), "teacher", repetitions=300)["equal_entropy"]
        assert row["interval"] == "seeds"
        inside += row["ratio_low"] <= 0.8 <= row["ratio_high"]
    assert inside >= 35


def test_a_single_old_seed_falls_back_on_standard_errors_or_on_nothing():
    cells = without_samples(frontier(np.random.default_rng(0), 5.35, math.log(0.8)))
    (row,) = gains(cells, "teacher")["equal_entropy"]
    assert (row["interval"], row["ratio_low"], row["verdict"]) == ("nothing", None, UNDECIDED)
    assert row["ratio"] == pytest.approx(0.8, rel=0.1)
    known = [cell | {"gen_ppl_stderr": 1.0, "entropy_stderr": 0.01} for cell in cells]
    (row,) = gains(known, "teacher")["equal_entropy"]
    assert (row["interval"], row["verdict"]) == ("standard errors", GAIN)


def test_outside_the_curve_nothing_is_claimed():
    (row,) = gains(frontier(np.random.default_rng(0), 4.5, -1.0), "teacher")["equal_entropy"]
    assert (row["ratio"], row["verdict"], row["note"]) == (None, UNDECIDED, "outside the curve")
    # on the edge half of the repetitions have no number
    (row,) = gains(frontier(np.random.default_rng(3), 4.815, -1.0), "teacher")["equal_entropy"]
    assert row["verdict"] == UNDECIDED
    assert row["note"].endswith("of the repetitions are outside the curve") or row["ratio"] is None


def test_models_that_were_sampled_otherwise_are_not_compared():
    cells = frontier(np.random.default_rng(0), 5.35, math.log(0.8))
    found = gains([*cells[:-1], cells[-1] | {"sampling_dtype": "float32"}], "teacher")
    assert found["equal_entropy"] == found["equal_steps"] == []


def test_a_cell_without_a_perplexity_is_counted_and_left_out():
    cells = frontier(np.random.default_rng(0), 5.35, 0.0)
    found = gains([*cells, cells[-1] | {"steps": 8, "gen_ppl": None}], "teacher")
    assert found["left_out"] == 1
    assert [row["steps"] for row in found["equal_entropy"]] == [16]


def test_the_same_cells_give_the_same_intervals():
    cells = frontier(np.random.default_rng(0), 5.35, 0.0)
    assert gains(cells, "teacher") == gains(cells, "teacher")


def test_resampling_has_the_spread_of_the_mean():
    cells = [simulated(np.random.default_rng(s), "x", 5.0, 4.0, seed=s, n=200) for s in range(2)]
    found = redraw(cells, 2000, np.random.default_rng(0))
    spread = np.mean([np.var(c["per_sample"]["entropy"]) for c in cells])
    assert np.std(found.entropies) == pytest.approx(math.sqrt(spread / 400), rel=0.1)
    assert np.corrcoef(found.entropies, found.log_ppls)[0, 1] > 0.6  # they go together
