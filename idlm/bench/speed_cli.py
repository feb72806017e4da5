"""``idlm bench speed``: sampler, losses and start-up against their bounds and plain versions."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from idlm.bench import shared, store
from idlm.bench.shared import ALL
from idlm.bench.store import Record
from idlm.errors import UserError
from idlm.paths import check_writable

if TYPE_CHECKING:
    from idlm.bench.speed_fit import FitCase
    from idlm.bench.speed_measure import Setting
    from idlm.bench.speed_run import LossCase, SamplerCase

_CASES = ("sampler", "losses", "fit", "growth", "startup")
# what answers without any work, and what is refused
_COMMANDS = (
    ("--help",),
    ("generat",),
    ("generate", "--help"),
    ("generate", "--steps", "x"),
    ("evaluate", "--help"),
    ("bench", "speed", "--help"),
    ("fit", "--help"),
    ("fit", "--config", "nowhere.yaml"),
)
_KEYS = {"case": str, "device": str}
_IDENTITY = (
    *("case", "command", "of", "against", "objective", "network", "vocab_size", "batch"),
    *("length", "steps", "device", "device_name", "dtype", "threads", "compile", "quick"),
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of ``idlm bench speed``."""
    parser.add_argument(
        "--case", choices=(*_CASES, ALL), default=ALL, help="what to measure (default: all)"
    )
    parser.add_argument(
        "--device", choices=("auto", "cpu", "cuda"), default="auto", help="default: auto"
    )
    parser.add_argument("--threads", type=int, help="of the CPU (default: one for each core)")
    parser.add_argument(
        "--json",
        metavar="OUT",
        required=True,
        help="where the records go; those of other cases stay. Beside OUT.json stands OUT.md",
    )
    parser.add_argument(
        "--quick", action="store_true", help="every case in seconds; the numbers mean nothing"
    )


def run(options: argparse.Namespace) -> None:
    """Measure, print a table, and write the records.

    Raises:
        UserError: for options that do not fit, or a device that is not there.
    """
    output = check_writable("--json", options.json)
    table = check_writable("--json", shared.beside(output, ".md"))
    threads = os.cpu_count() or 1 if options.threads is None else options.threads
    if threads < 1:
        raise UserError(f"--threads is {threads}; it must be at least 1")
    if threads > shared.MOST_PROCESSES:
        raise UserError(f"--threads is {threads}; it must be at most {shared.MOST_PROCESSES}")
    store.read_records(output, "speed bench's", _KEYS)

    from idlm.bench.speed_report import markdown, print_table
    from idlm.samples import replace_file

    device = _device(options.device)
    wanted = _CASES if options.case == ALL else (options.case,)
    for record in _measured(wanted, device, threads, quick=options.quick):
        key = _key(record)
        others = store.read_records(output, "speed bench's", _KEYS)
        kept = [other for other in others if _key(other) != key]
        store.write_records(output, sorted([*kept, record], key=_order))
        print(f"{record['case']}: {_short(record)}", file=sys.stderr)
    records = store.read_records(output, "speed bench's", _KEYS)
    print_table(records)
    replace_file(table, [markdown(records)])


def _device(asked: str) -> str:
    import torch

    if asked == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    if asked == "cuda" and not torch.cuda.is_available():
        raise UserError("--device is cuda, but there is no GPU that PyTorch can use; choose cpu")
    return asked


def _measured(
    wanted: tuple[str, ...], device: str, threads: int, *, quick: bool
) -> Iterator[Record]:
    from idlm.bench.speed_growth import growth_record
    from idlm.bench.speed_plan import plan
    from idlm.bench.speed_run import startup

    chosen = plan(device, threads, quick=quick)
    about = {"device": device, "device_name": _name(device), "quick": quick, **_versions()}
    if "sampler" in wanted:
        for case, setting in chosen.sampler:
            yield {**_alone(case, setting), **_conditions(setting), **about}
    if "losses" in wanted:
        for loss, setting in chosen.losses:
            yield {**_alone(loss, setting), **_conditions(setting), **about}
    if "growth" in wanted:
        for growth, setting in chosen.growth:
            found = [_alone(case, setting) for _, case in growth.grown()]
            yield {**growth_record(growth, found), **_conditions(setting), **about}
    if "fit" in wanted:
        for fit, setting in chosen.fit:
            largest = _fitted(fit, setting)
            if largest is not None:
                yield {**largest, **_conditions(setting), **about}
    if "startup" in wanted:
        for command in _COMMANDS:
            record = startup(list(command), repeats=1 if quick else 5)
            yield {**record, **about, "device": "cpu", "device_name": _name("cpu")}


def _alone(case: SamplerCase | LossCase, setting: Setting) -> Record:
    """A case's record, and its memory; each measured in a process of its own."""
    record: Record = _in_a_process(_run, case, setting)
    both = "plain_seconds" in record
    if record["case"] == "sampler" and not both:
        return record  # its memory is that of a case with another batch
    for name in ("lean", "plain") if both else ("lean",):
        record[f"{name}_bytes"] = _in_a_process(_memory, case, setting, name == "plain")
    if record["case"] == "losses" and record["lean_bytes"]:
        record["beyond_bytes"] = record["lean_bytes"] - record["gradient_bytes"]
    if record.get("plain_bytes") and record["lean_bytes"]:
        record["lean_over_plain_bytes"] = record["lean_bytes"] / record["plain_bytes"]
    return record


def _fitted(case: FitCase, setting: Setting) -> Record | None:
    """The largest batches; None where the peaks of the two processes do not tell."""
    from idlm.bench.speed_fit import fit_record, fits

    small, large = (_in_a_process(_training_bytes, loss, setting) for loss in case.batches())
    if small is None or large is None:
        print("fit: left out, this system does not tell the peak of a process", file=sys.stderr)
        return None
    try:
        record = fit_record(case, (small, large))
    except ValueError as error:
        print(f"fit: left out, {error}", file=sys.stderr)
        return None
    if setting.device == "cuda":  # a promise is one thing
        record["fits"] = {
            size: _in_a_process(fits, replace(case.loss, batch=batch), setting, int(size))
            for size, batch in record["largest_batch"].items()
            if batch
        }
    return record


def _training_bytes(case: LossCase, setting: Setting) -> int | None:
    from idlm.bench.speed_fit import training_bytes

    setting.apply()
    return training_bytes(case, setting)


def _in_a_process(work: Any, *arguments: Any) -> Any:
    import multiprocessing
    from concurrent.futures import ProcessPoolExecutor

    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        return pool.submit(work, *arguments).result()


def _run(case: SamplerCase | LossCase, setting: Setting) -> Record:
    setting.apply()
    return case.run(setting)


def _memory(case: SamplerCase | LossCase, setting: Setting, plain: bool) -> int | None:
    setting.apply()
    return case.memory(setting, plain)


def _conditions(setting: Setting) -> Record:
    return {"dtype": setting.dtype, "threads": setting.threads, "compile": setting.compile}


def _versions() -> Record:
    import torch

    import idlm

    return {"torch": torch.__version__, "idlm": idlm.__version__}


def _name(device: str) -> str:
    if device == "cuda":
        import torch

        return torch.cuda.get_device_name()
    import platform

    path = Path("/proc/cpuinfo")
    lines = path.read_text().splitlines() if path.exists() else []
    names = [line.split(":")[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def _key(record: Record) -> tuple[Any, ...]:
    """What a record is of; the rest was measured."""
    return tuple(str(record.get(name)) for name in _IDENTITY)


def _order(record: Record) -> tuple[Any, ...]:
    place = _CASES.index(record["case"]) if record["case"] in _CASES else len(_CASES)
    return record["device"], place, record.get("batch", 0)


def _short(record: Record) -> str:
    from idlm.bench.speed_report import line

    return ", ".join(f"{title} {cell}" for title, cell in line(record) if cell)
