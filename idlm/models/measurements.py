"""Measurements of a checkpoint as a section of its card: no number without its conditions."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from itertools import compress
from pathlib import Path
from statistics import mean, stdev
from typing import Any

from idlm.errors import UserError
from idlm.models.cards import columns

# (name in the row, title); a row must have those marked True, or its perplexity says nothing
_CONDITIONS = (
    ("steps", "steps", True),
    ("nfe", "network calls", False),
    ("temperature", "temperature", False),
    ("top_p", "top-p", False),
    ("order", "order", False),
    ("tail", "tail", False),
    ("stride", "stride", False),
    ("stop", "stop", False),
    ("given", "given", False),
    ("length", "length", False),
    ("num_samples", "samples per seed", True),
    ("sampling_dtype", "sampling dtype", True),
    ("network_dtype", "network dtype", False),
)
_JUDGE = ("evaluator", "evaluator_revision", "evaluator_dtype", "pooling", "eos", "retokenized")
_NEEDED = (*(name for name, _, needed in _CONDITIONS if needed), "evaluator", "entropy")


def metrics_section(path: str | Path, names: Iterable[str]) -> str:
    """Markdown of the rows of a results file that are about one checkpoint.

    Args:
        path: what ``idlm evaluate --output`` or the frontier wrote.
        names: what the checkpoint may be called there: names, paths, hashes of its weights.

    Raises:
        UserError: if the file is no results file, has nothing on this checkpoint, or lacks a
            condition that a perplexity must be printed with.
    """
    rows = _read(Path(path))
    known = set(names)
    chosen = [row for row in rows if known & _called(row)]
    if not chosen:
        others = sorted({str(row["checkpoint"]) for row in rows if row.get("checkpoint")})
        raise UserError(
            f"{path} measures {', '.join(others) or 'no checkpoint'} and not this checkpoint "
            f"({', '.join(sorted(known))}); evaluate it with `idlm evaluate --checkpoint`"
        )
    for row in chosen:
        lacking = [name for name in _NEEDED if row.get(name) is None]
        if lacking:
            raise UserError(
                f"{path} gives a perplexity without {', '.join(lacking)}, which it must be "
                "printed with; measure it again with `idlm evaluate`"
            )
    judges = dict.fromkeys(tuple(row.get(name) for name in _JUDGE) for row in chosen)
    parts = []
    for judge in judges:
        same = [row for row in chosen if tuple(row.get(name) for name in _JUDGE) == judge]
        parts.append(f"{_table(same)}\n\n{_caption(dict(zip(_JUDGE, judge, strict=True)))}")
    return "\n\n".join(parts)


def _read(path: Path) -> list[dict[str, Any]]:
    """Every measured set of samples in a results file, its conditions on one level."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror}); check the path") from error
    except (ValueError, RecursionError) as error:
        raise UserError(
            f"{path} is no JSON ({error}); give what `idlm evaluate --output` wrote"
        ) from error
    rows = found.get("results", found.get("cells")) if isinstance(found, dict) else None
    if not isinstance(rows, list) or not all(
        isinstance(row, dict) and isinstance(row.get("evaluation") or {}, dict) for row in rows
    ):
        raise UserError(
            f"{path} is no results file; give the JSON that `idlm evaluate --output` wrote"
        )
    flat = [{**(row.get("evaluation") or {}), **row} for row in rows]
    return [{**row, "nfe": row.get("nfe", row.get("network_calls"))} for row in flat]


def _called(row: Mapping[str, Any]) -> set[str]:
    """The names a row gives its checkpoint: the hash of the weights alone where there is one.

    A folder may have been filled anew since, under the same name.
    """
    revision = row.get("checkpoint_revision") or row.get("revision")
    if revision and str(revision).startswith("sha256:"):
        return {str(revision)}
    return {str(row["checkpoint"])} if row.get("checkpoint") else set()


def _table(rows: Sequence[Mapping[str, Any]]) -> str:
    """One line for each set of conditions, mean ± standard deviation where seeds differ."""
    groups: dict[tuple[Any, ...], list[Mapping[str, Any]]] = {}
    for row in rows:
        key = tuple(_plain(row.get(name)) for name, _, _ in _CONDITIONS)
        groups.setdefault(key, []).append(row)
    # a condition that no row states, such as the tail of a masked sampler, is no column
    shown = [any(v is not None for v in values) for values in zip(*groups, strict=True)]
    named = [title for (_, title, _), wanted in zip(_CONDITIONS, shown, strict=True) if wanted]
    titles = [*named, "seeds", "GenPPL", "entropy (nats)"]
    lines = [
        [
            *("-" if value is None else value for value in compress(conditions, shown)),
            ", ".join(str(row.get("seed", "-")) for row in group),
            _spread([row.get("gen_ppl") for row in group], 2),
            _spread([row["entropy"] for row in group], 3),
        ]
        for conditions, group in groups.items()
    ]
    return columns(titles, lines)


def _plain(value: Any) -> Any:
    """A condition that can be told apart: the stop tokens are a list."""
    return ", ".join(map(str, value)) if isinstance(value, list) else value


def _spread(values: Sequence[float | None], digits: int) -> str:
    numbers = [float(value) for value in values if value is not None]
    if len(numbers) < len(values):
        return "none scored"
    shown = f"{mean(numbers):.{digits}f}"
    return f"{shown} ± {stdev(numbers):.{digits}f}" if len(numbers) > 1 else shown


def _caption(judge: Mapping[str, Any]) -> str:
    how = {True: "re-tokenised", False: "the model's own tokens"}.get(judge["retokenized"], "")
    told = [
        f"revision {judge['evaluator_revision'] or 'not stated'}",
        f"{judge['evaluator_dtype'] or 'dtype not stated'}",
        f"pooled over {judge['pooling']}" if judge["pooling"] else "",
        f"eos rule {judge['eos']}" if judge["eos"] else "",
        how,
    ]
    return (
        f"GenPPL under {judge['evaluator']} ({', '.join(filter(None, told))}). Entropy of the "
        "unigrams of each sample, mean over samples. ± is the standard deviation over seeds."
    )
