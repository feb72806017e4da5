"""Frontiers: what the protocol, ``idlm quickstart`` and ``idlm evaluate`` wrote."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from idlm.errors import UserError
from idlm.report.checks import number, optional_number, perplexity, word
from idlm.report.findings import Frontier, Point, Record

_NUMBERS = ("gen_ppl", "entropy", "tokens_per_call", "seconds")
_REFERENCE = "reference:"


def is_frontier(found: Any) -> bool:
    """Whether a JSON value is a frontier's results."""
    return (
        isinstance(found, dict) and _objects(found.get("cells")) and _objects(found.get("summary"))
    )


def is_evaluation(found: Any) -> bool:
    """Whether a JSON value is what ``idlm evaluate --output`` wrote."""
    return isinstance(found, dict) and _objects(found.get("results")) and "summary" in found


def _objects(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(item, dict) for item in value)


def read_frontier(name: str, found: Record, path: Path) -> Frontier:
    """Results of a protocol or of a quickstart.

    Args:
        name: of the file.
        found: what it holds, see :func:`is_frontier`.
        path: of the file, for messages.

    Raises:
        UserError: for a row that lacks what it must have.
    """
    points = [point for row in found["summary"] if (point := _point(row, path)) is not None]
    if not points:
        raise UserError(f"{path} has no row with a perplexity: measure at least one")
    matched = found.get("matched") or []
    if not _objects(matched):
        raise UserError(f"{path} has comparisons that are no list of records: measure it again")
    for cell in found["cells"]:
        perplexity(cell, ("gen_ppl", "entropy"), path)
    return Frontier(
        name=name,
        teacher=_teacher(found),
        points=points,
        reference=_reference(found.get("reference"), path),
        matched=matched,
        records=found["cells"],
        judge=_judge([cell.get("evaluation") or {} for cell in found["cells"]]),
        unscored=len(found["summary"]) - len(points),
    )


def _teacher(found: Record) -> str | None:
    """The label that a protocol names; a quickstart's teacher is called just so."""
    protocol = found.get("protocol")
    if isinstance(protocol, dict) and isinstance(protocol.get("teacher"), str):
        return protocol["teacher"]
    return "teacher" if isinstance(found.get("plan"), dict) else None


def _reference(found: Any, path: Path) -> tuple[float, float] | None:
    if not isinstance(found, dict):
        return None
    scored = perplexity(found, ("gen_ppl", "entropy"), path)
    return None if scored is None else (scored[1], scored[0])


def _judge(conditions: Sequence[Mapping[str, Any]]) -> str:
    """The evaluators in words."""
    names = {
        f"{c.get('evaluator')} ({c.get('evaluator_revision') or 'revision unknown'}, "
        f"{c.get('evaluator_dtype') or 'dtype unknown'}; eos rule {c.get('eos') or 'unknown'})"
        for c in conditions
        if c.get("evaluator")
    }
    return "; ".join(sorted(names)) or "an evaluator that the file does not name"


def _point(row: Record, path: Path) -> Point | None:
    scored = perplexity(row, ("gen_ppl_mean", "entropy_mean"), path)
    if scored is None:
        return None
    seeds = row.get("seeds")
    samples = optional_number(row, "num_samples", path)
    return Point(
        label=word(row, "label", path),
        steps=round(number(row, "steps", path)),
        temperature=number(row, "temperature", path),
        top_p=number(row, "top_p", path) if "top_p" in row else 1.0,
        gen_ppl=scored[0],
        gen_ppl_sd=optional_number(row, "gen_ppl_sd", path),
        entropy=scored[1],
        entropy_sd=optional_number(row, "entropy_sd", path),
        tokens_per_call=optional_number(row, "tokens_per_call_mean", path),
        seconds=optional_number(row, "seconds_mean", path),
        seeds=len(seeds) if isinstance(seeds, list) else 1,
        num_samples=None if samples is None else round(samples),
    )


def read_evaluation(name: str, found: Record, path: Path) -> Frontier:
    """Results of ``idlm evaluate``: sets that differ in seed alone become one point.

    Args:
        name: of the file.
        found: what it holds, see :func:`is_evaluation`.
        path: of the file, for messages.

    Raises:
        UserError: for a result that lacks what it must have.
    """
    groups: dict[tuple[Any, ...], list[Record]] = {}
    reference = None
    unscored = 0
    for result in found["results"]:
        scored = perplexity(result, ("gen_ppl", "entropy"), path)
        if str(result.get("source", "")).startswith(_REFERENCE):
            reference = None if scored is None else (scored[1], scored[0])
        elif scored is None:
            unscored += 1
        else:
            keys = ("checkpoint", "revision", "steps", "nfe", "temperature", "top_p", "length")
            # samples of an unknown origin are nobody's repetition
            own = () if "steps" in result else (len(groups),)
            groups.setdefault((*(repr(result.get(k)) for k in keys), *own), []).append(result)
    if not groups:
        raise UserError(f"{path} has no generated samples with a perplexity: measure at least one")
    return Frontier(
        name=name,
        teacher=None,
        points=[_mean_point(group, path) for group in groups.values()],
        reference=reference,
        matched=[],
        records=found["results"],
        judge=_judge(found["results"]),
        unscored=unscored,
    )


def _mean_point(group: Sequence[Record], path: Path) -> Point:
    first = group[0]
    means: dict[str, float | None] = {}
    spreads: dict[str, float | None] = {}
    for name in _NUMBERS:
        values = [optional_number(result, name, path) for result in group]
        present = [value for value in values if value is not None]
        whole = len(present) == len(values)
        means[name] = statistics.fmean(present) if whole else None
        spreads[name] = statistics.stdev(present) if whole and len(present) > 1 else None
    steps = optional_number(first, "steps", path) or optional_number(first, "nfe", path)
    calls, length = optional_number(first, "nfe", path), optional_number(first, "length", path)
    shared = length / calls if calls and length else None
    assert means["gen_ppl"] is not None  # all were scored
    assert means["entropy"] is not None
    temperature, top_p = (optional_number(first, key, path) for key in ("temperature", "top_p"))
    samples = [optional_number(result, "num_samples", path) for result in group]
    return Point(
        label=str(first.get("checkpoint") or first.get("source") or "unnamed"),
        steps=round(steps or 0),
        temperature=1.0 if temperature is None else temperature,
        top_p=1.0 if top_p is None else top_p,
        gen_ppl=means["gen_ppl"],
        gen_ppl_sd=spreads["gen_ppl"],
        entropy=means["entropy"],
        entropy_sd=spreads["entropy"],
        tokens_per_call=means["tokens_per_call"] or shared,
        seconds=means["seconds"],
        seeds=len(group),
        num_samples=round(min(value or 0 for value in samples)) or None,
    )
