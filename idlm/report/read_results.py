"""Frontiers: what the protocol, ``idlm quickstart`` and ``idlm evaluate`` wrote."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from idlm.errors import UserError
from idlm.report.checks import number, optional_number, perplexity, word
from idlm.report.findings import Frontier, Point, Record
from idlm.samples import CONDITIONS, are_repetitions, no_repetitions

_NUMBERS = ("gen_ppl", "entropy", "tokens_per_call", "seconds")
_REFERENCE = "reference:"
# Perplexities of two evaluators are different quantities: each evaluator has a frontier of its own.
_JUDGE = ("evaluator", "evaluator_revision", "evaluator_dtype", "eos")
# Where one of these differs within a file, the model's name says which it was.
_DRAWS = ("sampler", "sampling_dtype", "network_dtype")
_SETTING = ("label", "steps", "temperature", "top_p", *_DRAWS, *_JUDGE)
_REPEATED = ("nfe", "sampler", *CONDITIONS, *_JUDGE)
# A point states these itself; where another condition differs, the model's name says which it was.
_STATED = ("checkpoint", "steps", "temperature", "top_p")


def is_frontier(found: Any) -> bool:
    """Whether a JSON value is a frontier's results."""
    return isinstance(found, dict) and all(_objects(found.get(k)) for k in ("cells", "summary"))


def is_evaluation(found: Any) -> bool:
    """Whether a JSON value is what ``idlm evaluate --output`` wrote."""
    return isinstance(found, dict) and _objects(found.get("results")) and "summary" in found


def _objects(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(item, dict) for item in value)


def read_frontiers(name: str, found: Record, path: Path) -> list[Frontier]:
    """Results of a protocol or of a quickstart, one frontier for each evaluator.

    Args:
        name: of the file.
        found: what it holds, see :func:`is_frontier`.
        path: of the file, for messages.

    Raises:
        UserError: for a row that lacks what it must have.
    """
    judges: dict[tuple[Any, ...], list[Record]] = {}
    for row in found["summary"]:
        judges.setdefault(_judged(row), []).append(row)
    for cell in found["cells"]:
        perplexity(cell, ("gen_ppl", "entropy"), path)
    if not judges:
        raise UserError(f"{path} has no row with a perplexity: measure at least one")
    several = len(judges) > 1
    return [
        _frontier(f"{name}, under {judge[0]}" if several else name, rows, judge, found, path)
        for judge, rows in judges.items()
    ]


def _judged(row: Mapping[str, Any]) -> tuple[Any, ...]:
    """The evaluator of a row of a summary; all None where the file has but one."""
    return tuple(row.get(key) for key in _JUDGE)


def _frontier(
    name: str, rows: Sequence[Record], judge: tuple[Any, ...], found: Record, path: Path
) -> Frontier:
    """What one evaluator said."""
    names = _names(rows, path)
    points = [_point(row, label, path) for row, label in zip(rows, names, strict=True)]
    scored = [point for point in points if point is not None]
    if not scored:
        raise UserError(f"{path} has no row with a perplexity: measure at least one")
    cells = [cell for cell in found["cells"] if _is_of(judge, cell.get("evaluation"))]
    gains = found.get("gains")
    gains = gains if isinstance(gains, dict) else {}
    at_entropy = _rows_of(judge, gains.get("equal_entropy", found.get("matched")), path)
    teacher = _teacher(found)
    return Frontier(
        name=name,
        teachers={
            p.label for p, row in zip(points, rows, strict=True) if p and row["label"] == teacher
        },
        points=scored,
        reference=_reference(judge, found, path),
        at_entropy=[_with_entropy(row, rows, path) for row in at_entropy],
        at_steps=_rows_of(judge, gains.get("equal_steps"), path),
        records=cells,
        judge=_in_words([cell.get("evaluation") or {} for cell in cells]),
        teacher=teacher,
        unscored=len(points) - len(scored),
    )


def _is_of(judge: tuple[Any, ...], evaluation: Any) -> bool:
    said = evaluation if isinstance(evaluation, dict) else {}
    return all(
        want is None or said.get(key) == want for key, want in zip(_JUDGE, judge, strict=True)
    )


def _names(rows: Sequence[Record], path: Path) -> list[str]:
    """Labels, each followed by how it was drawn where that differs within the rows."""
    varying = [key for key in _DRAWS if len({str(row.get(key)) for row in rows}) > 1]
    return [
        ", ".join([word(row, "label", path), *(str(row.get(key)) for key in varying)])
        for row in rows
    ]


def _rows_of(judge: tuple[Any, ...], rows: Any, path: Path) -> list[Record]:
    """Comparisons under one evaluator."""
    rows = rows or []
    if not _objects(rows):
        raise UserError(f"{path} has comparisons that are no list of records: measure it again")
    return [row for row in rows if _judged(row) in (judge, (None,) * len(_JUDGE))]


def _with_entropy(row: Record, summary: Sequence[Record], path: Path) -> Record:
    """A comparison with the entropy it was made at, without which its perplexities say nothing."""
    if row.get("entropy") is None:
        key = _setting(row, row)
        match = next((one for one in summary if _setting(one, row) == key), None)
        if match is None:
            raise UserError(f"{path} compares a row that is not in its summary: measure it again")
        own = {"gen_ppl": match.get("gen_ppl_mean"), "entropy": match.get("entropy_mean")}
        row = {**row, **own}
    perplexity(row, ("gen_ppl", "entropy"), path)
    return row


def _setting(row: Mapping[str, Any], like: Mapping[str, Any]) -> tuple[Any, ...]:
    """What tells rows apart, as far as the other row says it."""
    return tuple(row.get(key) for key in _SETTING if key in like)


def _teacher(found: Record) -> str | None:
    """The label that a protocol names; a quickstart's teacher is called just so."""
    protocol = found.get("protocol")
    if isinstance(protocol, dict) and isinstance(protocol.get("teacher"), str):
        return str(protocol["teacher"])
    return "teacher" if isinstance(found.get("plan"), dict) else None


def _reference(judge: tuple[Any, ...], found: Record, path: Path) -> tuple[float, float] | None:
    """(entropy, GenPPL) of held-out text under an evaluator."""
    references = found.get("references")
    every = [found.get("reference"), *(references if isinstance(references, list) else [])]
    for one in every:
        if isinstance(one, dict) and _is_of(judge, one.get("evaluation")):
            scored = perplexity(one, ("gen_ppl", "entropy"), path)
            return None if scored is None else (scored[1], scored[0])
    return None


def _in_words(conditions: Sequence[Mapping[str, Any]]) -> str:
    """The evaluators."""
    names = {
        f"{c.get('evaluator')} ({c.get('evaluator_revision') or 'revision unknown'}, "
        f"{c.get('evaluator_dtype') or 'dtype unknown'}; eos rule {c.get('eos') or 'unknown'})"
        for c in conditions
        if c.get("evaluator")
    }
    return "; ".join(sorted(names)) or "an evaluator that the file does not name"


def _point(row: Record, label: str, path: Path) -> Point | None:
    scored = perplexity(row, ("gen_ppl_mean", "entropy_mean"), path)
    if scored is None:
        return None
    seeds = row.get("seeds")
    samples = optional_number(row, "num_samples", path)
    return Point(
        label=label,
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

    Sets of equal conditions that their seeds do not tell apart stay points of their own.

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
            # samples of an unknown origin are nobody's repetition
            own = () if "steps" in result else (len(groups),)
            key = (*(repr(result.get(k)) for k in _REPEATED), *own)
            groups.setdefault(key, []).append(result)
    if not groups:
        raise UserError(f"{path} has no generated samples with a perplexity: measure at least one")
    told = found.get("warnings")
    warnings = [one for one in told if isinstance(one, str)] if isinstance(told, list) else []
    sets = []
    for group in groups.values():
        if len(group) == 1 or are_repetitions(group):
            sets.append(group)
        else:
            sets += [[result] for result in group]
            warnings.append(no_repetitions(group))
    labels = _labels([group[0] for group in sets])
    return Frontier(
        name=name,
        points=[_mean_point(*pair, path) for pair in zip(sets, labels, strict=True)],
        reference=reference,
        records=found["results"],
        judge=_in_words(found["results"]),
        unscored=unscored,
        warnings=list(dict.fromkeys(warnings)),
    )


def _labels(results: Sequence[Record]) -> list[str]:
    """Checkpoints, each followed by the conditions in which its sample sets differ."""
    found = []
    for result in results:
        own = [other for other in results if other.get("checkpoint") == result.get("checkpoint")]
        varying = [
            f"{key} {result[key]}"
            for key in CONDITIONS
            if key not in _STATED
            and result.get(key) is not None
            and len({repr(other.get(key)) for other in own}) > 1
        ]
        name = result.get("checkpoint") or result.get("source") or "unnamed"
        found.append(", ".join([str(name), *varying]))
    return found


def _mean_point(group: Sequence[Record], label: str, path: Path) -> Point:
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
        label=label,
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
