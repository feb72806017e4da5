"""The tables of ``idlm bench speed``: one for each kind of case."""

from __future__ import annotations

from collections.abc import Sequence

from rich.table import Table

from idlm.bench.shared import markdown_table, wide_console
from idlm.bench.store import Record

_TITLES = {
    "sampler": "Sampling, against as many bare backbone passes and a plain sampler",
    "losses": "A fake and a student update, forward and backward, lean and plain",
    "fit": "Largest batch of a distillation with optimisers and EMA",
    "growth": "Growth: the exponent p of cost = c size^p",
    "startup": "Start-up: seconds to an answer",
}
Line = list[tuple[str, str]]


def line(record: Record) -> Line:
    """Titles and cells of a record, in the order of its table."""
    if record["case"] == "startup":
        return [
            ("command", f"`{record['command']}`"),
            ("exit code", str(record["exit_code"])),
            ("seconds", f"{record['seconds']:.2f}"),
        ]
    where = record["device"] + (", compiled" if record["compile"] else "")
    found: Line = [("network", record["network"])]
    if record["case"] == "growth":
        sizes = ", ".join(map(str, record["sizes"]))
        fixed = [f"{k} {record[k]}" for k in ("batch", "length", "steps") if k in record]
        found = [("of", record["of"]), ("against", f"{record['against']} = {sizes}")]
        found.append(("fixed", ", ".join([record["network"], *fixed])))
        for cost, title in (
            ("lean_seconds", "seconds"),
            ("backbone_seconds", "backbone's seconds"),
            ("beyond_bytes", "bytes beyond weights and gradients"),
        ):
            power = record.get(f"{cost}_exponent")
            found.append((title, "" if power is None else f"{power:.2f}"))
        return [*found, ("device", where)]
    if record["case"] == "fit":
        found += [("length", str(record["length"])), ("objective", record["objective"])]
        found.append(("MB per sequence", f"{record['bytes_per_sequence'] / 1e6:.1f}"))
        ran = {True: ", ran", False: ", ran out of memory"}
        for size, batch in record["largest_batch"].items():
            seen = ran.get(record.get("fits", {}).get(size), "")
            found.append((f"in {size} GB", f"{batch}{seen}"))
        return [*found, ("dtype", record["dtype"]), ("device", where)]
    found += [("batch", str(record["batch"])), ("length", str(record["length"]))]
    if record["case"] == "sampler":
        found += [
            ("steps", str(record["steps"])),
            ("backbone (s)", f"{record['backbone_seconds']:.2f}"),
            ("ours (s)", f"{record['lean_seconds']:.2f}"),
            ("ours / backbone", f"{record['over_backbone']:.2f}"),
        ]
    else:
        found += [("objective", record["objective"]), ("ours (s)", f"{record['lean_seconds']:.2f}")]
    found += [
        ("plain (s)", _number(record, "plain_seconds", "{:.2f}")),
        ("plain / ours", _number(record, "plain_over_lean", "{:.1f}")),
    ]
    found += [
        ("ours (GB)", _gigabytes(record, "lean_bytes")),
        ("plain (GB)", _gigabytes(record, "plain_bytes")),
        ("ours / plain", _number(record, "lean_over_plain_bytes", "{:.2f}")),
    ]
    found.append(("tokens / s", f"{record['tokens_per_second']:,.0f}"))
    return [*found, ("dtype", record["dtype"]), ("device", where)]


def print_table(records: Sequence[Record]) -> None:
    """Show all records on stdout."""
    console = wide_console()
    for kind, title in _TITLES.items():
        lines = _lines(records, kind)
        if not lines:
            continue
        table = Table(title=title)
        for name, _ in lines[0]:
            table.add_column(name, overflow="fold")
        for found in lines:
            table.add_row(*(cell.strip("`") for _, cell in found))
        console.print(table)


def markdown(records: Sequence[Record]) -> str:
    """All tables, with the conditions they were measured under."""
    parts = []
    for kind, title in _TITLES.items():
        lines = _lines(records, kind)
        if lines:
            titles = [name for name, _ in lines[0]]
            cells = [[cell for _, cell in found] for found in lines]
            parts.append(f"{title}:\n\n{markdown_table(titles, cells)}")
    names = ("device_name", "threads", "torch", "idlm")
    seen = {tuple(r.get(n) for n in names) for r in records if "threads" in r}
    for device, threads, torch, version in sorted(seen, key=str):
        parts.append(f"On {device}, {threads} CPU threads, torch {torch}, idlm {version}.\n")
    parts.append(
        "Medians over rounds in which the works compared take turns (the plain sampler: one run). "
        "GB are the peak over the networks' weights in a process of its own, of losses with the "
        "gradients and without optimisers.\n"
    )
    return "\n".join(parts)


def _lines(records: Sequence[Record], kind: str) -> list[Line]:
    return [line(record) for record in records if record["case"] == kind]


def _number(record: Record, name: str, form: str) -> str:
    return form.format(record[name]) if record.get(name) is not None else ""


def _gigabytes(record: Record, name: str) -> str:
    return f"{record[name] / 1e9:.2f}" if record.get(name) else ""
