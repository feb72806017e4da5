"""Tables of the benches' records: means over seeds, unrounded."""

from __future__ import annotations

import json
import statistics
from collections.abc import Sequence

from idlm.report.escape import Value
from idlm.report.findings import Bench, Record
from idlm.report.tables import Column, Table

_ORACLE = (
    *(("cross_entropy", "cross-entropy (nats)", ".3f"), ("violations", "violations", ".2f")),
    *(("ngram_tv", "trigram TV", ".3f"), ("bigram_entropy", "bigram entropy (nats)", ".3f")),
    ("overlap", "overlap", ".4f"),
)
_SPEED_TITLES = {
    "sampler": "Sampling, against as many bare backbone passes and a plain sampler",
    "losses": "A fake and a student update, forward and backward",
    "growth": "Growth: the exponent p of cost = c size^p",
    "startup": "Start-up: seconds to an answer",
}
# of each case: what its table has, in order, if any record has it
_SPEED = {
    "sampler": (
        *("network", "batch", "length", "steps", "backbone_seconds", "lean_seconds"),
        *("over_backbone", "plain_seconds", "plain_over_lean", "tokens_per_second"),
    ),
    "losses": (
        *("objective", "network", "batch", "length", "lean_seconds", "plain_seconds"),
        *("plain_over_lean", "lean_bytes", "plain_bytes", "lean_over_plain_bytes"),
        "tokens_per_second",
    ),
    "growth": (
        *("of", "against", "sizes", "network", "lean_seconds_exponent"),
        *("backbone_seconds_exponent", "beyond_bytes_exponent"),
    ),
    "startup": ("command", "exit_code", "seconds"),
}
_ABOUT = ("dtype", "device", "device_name")


def toy_table(name: str, bench: Bench) -> Table:
    """Total variation of each method on each data set and number of steps.

    Args:
        name: of the table's files.
        bench: records of ``idlm bench toys``.
    """
    groups: dict[tuple[str, ...], list[Record]] = {}
    for record in bench.records:
        keys = ("dataset", "method", "process", "latent", "settings")
        # seeds of before and after a change of the settings have no mean
        groups.setdefault(tuple(json.dumps(record.get(k)) for k in keys), []).append(record)
    steps = sorted({record["steps"] for record in bench.records})
    columns = [Column(title) for title in ("method", "latent", "process", "data", "seeds")]
    for step in steps:
        columns += [Column(f"{step} step{'s' * (step != 1)}", ".3f"), Column("± sd", ".3f")]
    columns.append(Column("floor", ".3f"))
    rows = []
    for group in groups.values():
        first = group[0]
        row: list[Value] = [first[k] for k in ("method", "latent", "process", "dataset")]
        row.append(len({record["seed"] for record in group}))
        for step in steps:
            row += _mean_sd([record["tv"] for record in group if record["steps"] == step])
        rows.append([*row, first["floor_tv"]])
    return Table(name, "Total variation from the exact table", columns, rows)


def oracle_table(name: str, bench: Bench) -> Table:
    """Scores of each method and number of steps, means over seeds.

    Args:
        name: of the table's files.
        bench: records of ``idlm bench oracle``.
    """
    groups: dict[tuple[str, ...], list[Record]] = {}
    for record in bench.records:
        keys = ("method", "latent", "steps", "settings")
        groups.setdefault(tuple(json.dumps(record.get(k)) for k in keys), []).append(record)
    columns = [Column(title) for title in ("method", "process", "latent", "steps", "seeds")]
    columns += [Column(title, form) for _, title, form in _ORACLE]
    rows = []
    for group in groups.values():
        first = group[0]
        row: list[Value] = [first[key] for key in ("method", "process", "latent", "steps")]
        row.append(len({record["seed"] for record in group}))
        row += [statistics.fmean(record[key] for record in group) for key, _, _ in _ORACLE]
        rows.append(row)
    one = bench.records[0]
    note = (
        f"The source's entropy rate is {one['entropy_rate']:.3f} nats per token, the overlap of "
        f"two of its texts {one['source_overlap']:.4f}. A cross-entropy below the entropy rate, a "
        "lower bigram entropy or a higher overlap is lost diversity."
    )
    return Table(name, "Scores under the source", columns, rows, note)


def speed_tables(name: str, bench: Bench) -> list[Table]:
    """A table for each kind of case.

    Args:
        name: of the tables' files begins so.
        bench: records of ``idlm bench speed``.
    """
    tables = []
    cases = list(dict.fromkeys(record["case"] for record in bench.records))
    for place, case in enumerate(cases):
        records = [record for record in bench.records if record["case"] == case]
        keys = [k for k in (*_SPEED.get(case, ()), *_ABOUT) if any(k in r for r in records)]
        columns = [Column(key.replace("_", " "), ".4g") for key in keys]
        rows = [[_plain(record.get(key)) for key in keys] for record in records]
        title = _SPEED_TITLES.get(case, case)
        tables.append(Table(f"{name}-case-{place + 1}", title, columns, rows))
    return tables


def _plain(value: object) -> Value:
    if value is None or isinstance(value, str | int | float):
        return value
    return ", ".join(map(str, value)) if isinstance(value, list) else json.dumps(value)


def _mean_sd(values: Sequence[float]) -> list[Value]:
    if not values:
        return [None, None]
    return [statistics.fmean(values), statistics.stdev(values) if len(values) > 1 else None]
