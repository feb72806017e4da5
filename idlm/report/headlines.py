"""From findings to the sentences at the top of the page."""

from __future__ import annotations

from idlm.equal_entropy import OUTSIDE
from idlm.report.findings import Findings, Frontier, Record

_VERDICTS = {
    "gain": "a gain",
    "no gain": "nothing is gained over moving along that curve",
    "loss": "a loss",
    "undecided": "no verdict without an interval",
}


def headlines(found: Findings) -> list[str]:
    """What each frontier says at equal steps and equal entropy."""
    lines = []
    for one in found.frontiers:
        rows = [row for row in one.at_entropy if row.get("steps") == row.get("teacher_steps")]
        told = [row for row in rows if isinstance(row.get("ratio"), float)]
        lines += [_headline(one, row) for row in told]
        if silent := [_model_and_steps(row) for row in rows if row not in told]:
            lines.append(
                f"{one.name}: no comparison at equal steps and entropy for {', '.join(silent)} "
                f"steps ({OUTSIDE} of the teacher's temperatures)."
            )
        known = {_model_and_steps(row) for row in rows}
        lone = [_model_and_steps(row) for row in one.at_entropy]
        if absent := [name for name in dict.fromkeys(lone) if name not in known]:
            lines.append(
                f"{one.name}: no comparison at equal steps for {', '.join(absent)} steps (the "
                "teacher was not measured there)."
            )
    return lines


def _model_and_steps(row: Record) -> str:
    return f"{row.get('label')} at {row.get('steps')}"


def _headline(found: Frontier, row: Record) -> str:
    """One row in words; only an interval can tell a gain from chance."""
    low, high = row.get("ratio_low"), row.get("ratio_high")
    interval = f" (interval {low:.2f} to {high:.2f})" if low and high else ""
    verdict = _VERDICTS.get(str(row.get("verdict")), _VERDICTS["undecided"])
    draws = "".join(f", {row[key]}" for key in ("sampler", "sampling_dtype") if row.get(key))
    curve = f"its teacher's {row.get('sweep', 'temperature')} curve"
    return (
        f"{row.get('label')}, {row['steps']} steps{draws}: GenPPL {row['gen_ppl']:.1f} at entropy "
        f"{row['entropy']:.2f} nats, where {curve} at {row['teacher_steps']} steps has "
        f"{row['teacher_gen_ppl']:.1f}: {row['ratio']:.2f} times{interval}, {verdict} "
        f"({found.name})."
    )
