"""Every condition of every record as tables: what all share once, the rest record by record."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from idlm.report.escape import Value
from idlm.report.tables import Column, Table

Record = Mapping[str, Any]
_MORE = "more"
_PER_SAMPLE = ("per_sample",)


def flatten(record: Record, prefix: str = "") -> dict[str, Value]:
    """The leaves of nested objects under dotted names; lists of plain values as one text.

    Args:
        record: as JSON or YAML gives it.
        prefix: of all names.
    """
    found: dict[str, Value] = {}
    for key, value in record.items():
        name = f"{prefix}{key}"
        if isinstance(value, Mapping) and value:
            found |= flatten(value, f"{name}.")
        elif isinstance(value, list) and any(isinstance(item, Mapping | list) for item in value):
            found |= flatten({str(number): item for number, item in enumerate(value)}, f"{name}.")
        elif isinstance(value, list | Mapping):
            found[name] = ", ".join(map(_text, value)) or "none"
        elif value is None or isinstance(value, str | int | float | bool):
            found[name] = value
        else:  # a date of YAML
            found[name] = str(value)
    return found


def condition_tables(name: str, title: str, records: Sequence[Record]) -> list[Table]:
    """One or two tables that together hold every leaf of every record but its numbers per sample.

    Those are as many as there are samples, and no conditions; the file that was read has them.

    Args:
        name: of the tables' files.
        title: of the tables.
        records: one row each, unless they have everything in common.
    """
    rows = [flatten({k: v for k, v in r.items() if k not in _PER_SAMPLE}) for r in records]
    keys = list(dict.fromkeys(key for row in rows for key in row))
    shared = [key for key in keys if len({_exact(row.get(key, ...)) for row in rows}) == 1]
    tables = []
    if len(rows) == 1 or len(shared) < len(keys):
        varying = [key for key in keys if key not in shared]
    else:
        varying = []
    if varying:
        tables.append(_varying(name, f"{title}: what differs", rows, varying))
    if shared:
        heading = title if not varying else f"{title}: the same for all {len(rows)}"
        pairs = [(key, rows[0][key]) for key in shared]
        columns = (Column("condition"), Column("value", ".17g"))
        tables.append(Table(f"{name}-shared", heading, columns, pairs))
    return tables


def grouped(
    records: Iterable[Record], *, over: Sequence[str], without: Sequence[str]
) -> list[dict[str, Any]]:
    """Records whose conditions are equal, as one.

    Args:
        records: of a bench.
        over: conditions whose values a group lists.
        without: results, which are no conditions.
    """
    groups: dict[str, dict[str, Any]] = {}
    for record in records:
        kept = {k: v for k, v in record.items() if k not in over and k not in without}
        group = groups.setdefault(json.dumps(kept, sort_keys=True), {**kept})
        for name in over:
            if name in record and record[name] not in group.setdefault(name, []):
                group[name].append(record[name])
    return list(groups.values())


def _varying(
    name: str, title: str, rows: Sequence[Mapping[str, Value]], keys: Sequence[str]
) -> Table:
    """A row for each record; what few of them have stands together in a last column."""
    common = [key for key in keys if 2 * sum(key in row for row in rows) > len(rows)]
    rare = [key for key in keys if key not in common]
    columns = [Column(key) for key in common]
    values: list[list[Value]] = [[row.get(key) for key in common] for row in rows]
    if rare:
        columns.append(Column(_MORE))
        for row, cells in zip(rows, values, strict=True):
            cells.append("; ".join(f"{key} = {_text(row[key])}" for key in rare if key in row))
    return Table(name, title, columns, values)


def _text(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)


def _exact(value: Any) -> str:
    """A key that tells 1 from True and from 1.0."""
    return f"{type(value).__name__} {value!r}"
