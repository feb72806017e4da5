from __future__ import annotations

import json
import struct

import pytest

from idlm.errors import UserError
from idlm.evaluation import plots
from idlm.evaluation.held_out import reach


def row(label, steps, entropy, gen_ppl, temperature=1.0, sd=0.01):
    return {
        "label": label,
        "steps": steps,
        "temperature": temperature,
        "seeds": [0, 1, 2],
        "top_p": 1.0,
        "entropy_mean": entropy,
        "entropy_sd": sd,
        "gen_ppl_mean": gen_ppl,
        "gen_ppl_sd": None if sd is None else gen_ppl * sd,
    }


SUMMARY = [
    *(row("teacher", 16, e, p, t) for t, e, p in ((1.0, 4.44, 252), (0.9, 4.35, 172))),
    *(row("teacher", 64, e, p, t, sd=None) for t, e, p in ((1.0, 4.43, 200), (0.9, 4.34, 140))),
    row("student", 8, 4.43, 260.0),
    row("student", 16, 4.42, 200.0),
]


def size(path):
    header = path.read_bytes()[:24]
    assert header[:8] == b"\x89PNG\r\n\x1a\n"
    return struct.unpack(">II", header[16:24])


@pytest.fixture
def axes(monkeypatch):
    """The two panels of the picture that was drawn."""
    seen = []
    for name in ("_entropy_panel", "_steps_panel"):
        original = getattr(plots, name)

        def spy(panel, *args, original=original):
            seen.append(panel)
            original(panel, *args)

        monkeypatch.setattr(plots, name, spy)
    return seen


def test_the_picture_shows_every_curve_and_every_model(tmp_path, axes):
    reference = {"gen_ppl": 150.0, "entropy": 4.36}
    path = plots.plot_frontier(
        SUMMARY,
        tmp_path / "new" / "f.png",
        teacher="teacher",
        reference=reference,
        note="conditions",
    )
    assert size(path)[0] > 1500
    assert [p.name for p in path.parent.iterdir()] == ["f.png"]
    left, right = axes
    names = {text.get_text() for text in left.get_legend().get_texts()}
    assert names == {
        "teacher, 16 steps",
        "teacher, 64 steps",
        "student (steps beside it)",
        "held-out text",
    }
    assert {t.get_text() for t in right.get_legend().get_texts()} == {
        "teacher",
        "student",
        "held-out text",
    }
    assert {"8", "16", "T=1", "T=0.9"} <= {text.get_text() for text in left.texts}


def test_bars_are_the_sd_over_seeds_or_the_standard_error_of_one_seed(tmp_path, axes):
    alone = row("student", 16, 4.42, 200.0, sd=None) | {"gen_ppl_stderr": 7.0, "seeds": [0]}
    plots.plot_frontier(
        [row("teacher", 16, 4.44, 252, sd=0.01), alone], tmp_path / "f.png", teacher="teacher"
    )
    half = {}
    for drawn in axes[1].containers:
        *_, (bars,) = drawn
        (low, high), *_ = (segment[:, 1] for segment in bars.get_segments())
        half[drawn.get_label()] = (high - low) / 2
    assert half == {"teacher": pytest.approx(2.52), "student": pytest.approx(7.0)}


def test_held_out_text_far_away_goes_to_the_edge_with_its_numbers(tmp_path, axes):
    plots.plot_frontier(
        SUMMARY, tmp_path / "f.png", teacher="teacher", reference={"gen_ppl": 21.8, "entropy": 4.12}
    )
    left, _ = axes
    assert any("4.12 nats" in t.get_text() and "21.8" in t.get_text() for t in left.texts)
    assert left.get_xlim()[0] > 4.12
    star = next(line for line in left.lines if line.get_label().endswith("(beyond the edge)"))
    assert (star.get_xdata()[0], star.get_ydata()[0]) == (0.06, 0.06)


def test_an_axis_is_widened_for_what_is_near_and_not_for_what_is_far():
    assert reach(0.0, 1.0, 0.25) == (0.0, 1.0, 0.25, 0)
    low, high, place, off = reach(0.0, 1.0, -0.2)
    assert (low, high, off) == (-0.25, 1.0, 0)
    assert place == pytest.approx(0.05 / 1.25)
    assert reach(0.0, 1.0, -5.0) == (-0.14, 1.0, 0.06, -1)
    assert reach(0.0, 1.0, 5.0) == pytest.approx((0.0, 1.14, 0.94, 1))


def test_nothing_to_plot_is_one_sentence(tmp_path):
    with pytest.raises(UserError, match="nothing to plot"):
        plots.plot_frontier(
            [row("student", 4, None, None, sd=None)], tmp_path / "f.png", teacher="teacher"
        )


def test_the_command_draws_a_results_file_and_refuses_anything_else(tmp_path, capsys):
    results = tmp_path / "frontier.json"
    protocol = {
        "teacher": "teacher",
        "evaluator": "judge",
        "num_samples": 64,
        "length": 1024,
        "seeds": [0, 1, 2],
    }
    results.write_text(json.dumps({"protocol": protocol, "summary": SUMMARY, "reference": None}))
    plots.main([str(results), str(tmp_path / "f.png")])
    assert capsys.readouterr().out.strip() == str(tmp_path / "f.png")
    results.write_text("{}")
    with pytest.raises(SystemExit) as stop:
        plots.main([str(results), str(tmp_path / "g.png")])
    assert stop.value.code == 2
    assert "is no results file" in capsys.readouterr().err
