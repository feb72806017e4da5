"""Training logs (Lightning's ``metrics.csv``) and the table of published numbers."""

from __future__ import annotations

import csv
import io
import math
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

from idlm.errors import UserError
from idlm.evaluation.published import COLUMNS, frontier_points, load_published
from idlm.report.checks import read_text
from idlm.report.findings import Published, Record, Training

# What counts the updates, the first that a log has; Lightning's step counts all networks' updates.
_COUNTERS = ("student_updates", "train/updates", "step")
_PUBLISHED = ("method", "model", "steps", "genppl", "entropy")
_MEAN = re.compile(r"\s*([-+]?[0-9.]+(?:[eE][-+]?[0-9]+)?)\s*(?:(?:±|\+-|\+/-).*)?\s*")


def is_log(text: str) -> bool:
    """Whether a text begins as Lightning's CSVLogger begins its file."""
    head = _head(text)
    return "step" in head and any(name.startswith(("train/", "val/")) for name in head)


def is_published(text: str) -> bool:
    """Whether a text begins as the table of published numbers."""
    return set(_PUBLISHED) <= set(_head(text))


def _head(text: str) -> list[str]:
    return next(csv.reader(io.StringIO(text[:10_000])), [])


def _rows(text: str, path: Path) -> list[dict[str, str]]:
    """Lines of a CSV under their heads.

    Raises:
        UserError: if there is none, or one is shorter or longer than the head.
    """
    try:
        head, *lines = [line for line in csv.reader(io.StringIO(text)) if line]
    except csv.Error as error:
        raise UserError(f"{path} is no CSV ({error}): write it again") from error
    if not lines:
        raise UserError(f"{path} has a head and no line: nothing was logged yet")
    for place, line in enumerate(lines, start=2):
        if len(line) != len(head):
            raise UserError(
                f"{path} line {place} has {len(line)} cells, its head {len(head)}: the file is cut "
                "off or damaged"
            )
    return [dict(zip(head, line, strict=True)) for line in lines]


def read_training(name: str, text: str, path: Path) -> Training:
    """The curves of a run, over its updates.

    A logger repeats the last value of what did not change: of several rows at one update the last
    counts.

    Args:
        name: of the run.
        text: of its ``metrics.csv``.
        path: of the file; settings are read from ``config.yaml`` or ``hparams.yaml`` beside it.

    Raises:
        UserError: for a cell that is no number, or a GenPPL without entropy.
    """
    rows = _rows(text, path)
    counter = next(name for name in _COUNTERS if name in rows[0])
    curves: dict[str, dict[float, float]] = {}
    now = 0.0
    for place, row in enumerate(rows, start=2):
        values = {key: _cell(cell, key, place, path) for key, cell in row.items() if cell.strip()}
        now = values.pop(counter, now)
        if "val/gen_ppl" in values and "val/entropy" not in values:
            raise UserError(f"{path} line {place} has a val/gen_ppl without val/entropy")
        for key, value in values.items():
            if key.startswith(("train/", "val/")):
                curves.setdefault(key, {})[now] = value
    settings = _settings(path.parent)
    return Training(
        name=name,
        counter="updates" if counter == "train/updates" else counter.replace("_", " "),
        curves={key: sorted(curve.items()) for key, curve in curves.items()},
        settings=settings,
        floor=_floor(settings),
    )


def _cell(cell: str, key: str, place: int, path: Path) -> float:
    try:
        return float(cell)
    except ValueError as error:
        raise UserError(
            f"{path} line {place} has {cell[:40]!r} for {key[:40]!r}, which is no number"
        ) from error


def _settings(folder: Path) -> Record:
    import yaml

    for name in ("config.yaml", "hparams.yaml"):
        path = folder / name
        if path.is_file():
            try:
                found = yaml.safe_load(read_text(path))
            except (yaml.YAMLError, RecursionError) as error:
                line = str(error).replace("\n", " ")
                raise UserError(f"{path} is no YAML of plain values ({line})") from error
            if isinstance(found, dict) and found:
                return {str(key): value for key, value in found.items()}
    return {}


def _floor(settings: Record) -> float | None:
    """The floor of the run's CollapseGuard, if it had one on the student's entropy."""
    trainer = settings.get("trainer")
    callbacks = trainer.get("callbacks") if isinstance(trainer, dict) else None
    for callback in callbacks if isinstance(callbacks, list) else []:
        named = isinstance(callback, dict) and str(callback.get("class_path", ""))
        if named and named.endswith("CollapseGuard"):
            given: Any = (callback.get("init_args") or {}).get("floor")
            if isinstance(given, int | float) and math.isfinite(given):
                return float(given)
    return None


def read_published(path: Path) -> list[Published]:
    """Published numbers; a spread after ± is kept in the row and out of the number.

    A table in the layout of ``eval/published.csv`` is held to the rules of that file, and of its
    rows those of another corpus than OpenWebText have no point in a picture.

    Raises:
        UserError: if a column is missing, a number is none, or a row of that layout misleads.
    """
    text = read_text(path)
    if not is_published(text):
        raise UserError(
            f"{path} is no table of published numbers: its head must have {', '.join(_PUBLISHED)}"
        )
    found = [_published(row, place, path) for place, row in enumerate(_rows(text, path), start=2)]
    if tuple(_head(text)) != COLUMNS:
        return found
    loaded = load_published(path)
    drawn = {one.key() for one in frontier_points(loaded)}
    pairs = zip(found, loaded, strict=True)
    return [replace(one, drawn=row.key() in drawn) for one, row in pairs]


def _published(row: dict[str, str], place: int, path: Path) -> Published:
    numbers: dict[str, float | None] = {}
    for key in ("steps", "genppl", "entropy"):
        cell = row[key].strip()
        match = _MEAN.fullmatch(cell)
        if match is None and cell not in ("", "-", "\N{EN DASH}", "n/a"):
            raise UserError(f"{path} line {place} has {cell[:40]!r} for {key}, which is no number")
        try:
            numbers[key] = None if match is None else float(match[1])
        except ValueError as error:
            raise UserError(f"{path} line {place} has {cell[:40]!r} for {key}") from error
    if numbers["genppl"] is not None and numbers["genppl"] <= 0:
        raise UserError(f"{path} line {place} has a GenPPL of {row['genppl']}; it is above 0")
    return Published(
        label=row["method"],
        steps=numbers["steps"],
        entropy=numbers["entropy"],
        gen_ppl=numbers["genppl"],
        row=row,
    )
