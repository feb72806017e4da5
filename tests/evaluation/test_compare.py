from __future__ import annotations

import pytest

from idlm.evaluation.compare import matched_table, summarise

# log GenPPL is linear in entropy between these: 100 at 4.0 nats, 400 at 4.4
CURVE = [(4.4, 400.0), (4.0, 100.0), (3.6, 50.0)]


def cell(label="teacher", steps=16, temperature=1.0, seed=0, gen_ppl=100.0, entropy=4.0, **more):
    return {
        "label": label,
        "steps": steps,
        "temperature": temperature,
        "top_p": 1.0,
        "seed": seed,
        "num_samples": 64,
        "gen_ppl": gen_ppl,
        "entropy": entropy,
        "network_calls": steps,
        "distinct_2_per_sequence": 0.5,
        "tokens_per_call": 64.0,
        "seconds": 1.0,
    } | more


def test_summary_is_mean_and_sd_over_seeds():
    rows = summarise([cell(seed=s, gen_ppl=p) for s, p in enumerate((90.0, 100.0, 110.0))])
    assert len(rows) == 1
    assert rows[0]["seeds"] == [0, 1, 2]
    assert rows[0]["gen_ppl_mean"] == pytest.approx(100.0)
    assert rows[0]["gen_ppl_sd"] == pytest.approx(10.0)


def test_a_single_seed_has_no_sd_and_a_missing_number_has_no_mean():
    assert summarise([cell()])[0]["gen_ppl_sd"] is None
    assert summarise([cell(seed=0), cell(seed=1, gen_ppl=None)])[0]["gen_ppl_mean"] is None


def test_a_single_seed_brings_the_standard_error_over_its_samples():
    one, *_ = summarise([cell(gen_ppl_stderr=3.0)])
    two, *_ = summarise([cell(gen_ppl_stderr=3.0), cell(seed=1, gen_ppl_stderr=4.0)])
    assert one["gen_ppl_stderr"] == 3.0
    assert "entropy_stderr" not in one  # the cell has none
    assert "gen_ppl_stderr" not in two


def test_every_student_row_meets_every_step_count_of_the_teacher():
    teacher = [
        cell(steps=n, temperature=t, gen_ppl=p * f, entropy=e)
        for n, f in ((16, 1.0), (64, 0.5))
        for t, (e, p) in zip((1.0, 0.9, 0.8), CURVE, strict=True)
    ]
    student = cell("student", 8, gen_ppl=100.0, entropy=4.2)
    table = matched_table(summarise([*teacher, student]), "teacher")
    assert [(row["steps"], row["teacher_steps"]) for row in table] == [(8, 16), (8, 64)]
    assert [row["ratio"] for row in table] == pytest.approx([0.5, 1.0])
