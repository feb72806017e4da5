"""``idlm bench toys``: methods on data whose distribution is a table."""

from __future__ import annotations

import argparse
import json
import os
import sys
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from idlm.cli.shared import check_writable
from idlm.errors import UserError

if TYPE_CHECKING:
    from idlm.bench.toy_run import Cell, Plan, Record

ALL = "all"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of the command; nothing heavy is imported for them."""
    parser.add_argument("--dataset", default=ALL, help="one data set, or all (the default)")
    parser.add_argument("--method", default=ALL, help="one method, teacher, or all (the default)")
    parser.add_argument(
        "--latent",
        type=int,
        help="size of the student's latent, 0 for none; the method's own by default",
    )
    parser.add_argument(
        "--seed",
        type=int,
        nargs="+",
        help="of training and sampling; by default 0, with --method all 0 1 2",
    )
    parser.add_argument(
        "--json",
        metavar="OUT",
        required=True,
        help="where the records go; what is there is kept and not run again",
    )
    parser.add_argument("--figure", metavar="PNG", help="draw what the file holds, in one step")
    parser.add_argument("--table", metavar="MD", help="write the table as Markdown, too")
    parser.add_argument("--samples", type=int, help="for each number of steps (default: 100000)")
    parser.add_argument("--bins", type=int, help="squares per axis (default: 32)")
    parser.add_argument("--longer", type=float, help="factor on the students' training (1)")
    parser.add_argument("--teacher-longer", type=float, help="factor on the teachers' (1)")
    parser.add_argument("--jobs", type=int, help="processes, one core each (default: 2)")
    parser.add_argument(
        "--quick", action="store_true", help="every step in seconds; the numbers mean nothing"
    )


def run(options: argparse.Namespace) -> None:
    """Run what is missing, write the records as they come, print the table, draw the figure.

    Raises:
        UserError: for a name that there is not, or options that do not fit.
    """
    from idlm.bench import toy_run
    from idlm.bench.toy_report import Counts, markdown, print_table, save_figure

    output = check_writable("--json", options.json)
    figure = check_writable("--figure", options.figure) if options.figure else None
    table = check_writable("--table", options.table) if options.table else None
    plan = _plan(options)
    wanted = _cells(options, plan)
    jobs = min(2, os.cpu_count() or 1) if options.jobs is None else options.jobs
    if jobs < 1:
        raise UserError(f"--jobs is {jobs}; it must be at least 1")
    toy_run.one_core()
    counts = Counts.beside(output)
    done = {toy_run.key_of(record) for record in _read(output)}
    missing = [cell for cell in wanted if cell.key(plan) not in done]
    for number, (cell, (found, first)) in enumerate(toy_run.run(missing, plan, jobs), start=1):
        # another run may have added its own in the meantime
        others = [r for r in _read(output) if toy_run.key_of(r) != cell.key(plan)]
        _write(output, sorted(others + found, key=_order))
        counts.add(cell, plan, first)
        far = ", ".join(f"{r['tv']:.3f}" for r in found)
        print(
            f"{number}/{len(missing)}  {cell.dataset}, {cell.method} ({cell.process}), latent "
            f"{cell.latent}, seed {cell.seed}: TV {far} in {found[0]['train_seconds']:.0f} s",
            file=sys.stderr,
        )
    keys = {cell.key(plan) for cell in wanted}
    shown = [record for record in _read(output) if toy_run.key_of(record) in keys]
    print_table(shown)
    if table is not None:
        from idlm.samples import replace_file

        replace_file(table, [markdown(shown)])
    if figure is not None:
        save_figure(wanted, plan, shown, counts, figure)


def _plan(options: argparse.Namespace) -> Plan:
    from idlm.bench.toy_run import QUICK, Plan

    plan = QUICK if options.quick else Plan()
    for name, least in (("samples", 1), ("bins", 4)):
        value = getattr(options, name)
        if value is None:
            continue
        if value < least:
            raise UserError(f"--{name} is {value}; it must be at least {least}")
        plan = replace(plan, **{name: value})
    for name in ("longer", "teacher_longer"):
        factor = getattr(options, name)
        if factor is None:
            continue
        if not 0.0 < factor < 1e6:
            option = name.replace("_", "-")
            raise UserError(f"--{option} is {factor}; it is a factor above 0, for instance 4")
        plan = replace(plan, **{name: factor})
    return plan


def _cells(options: argparse.Namespace, plan: Plan) -> list[Cell]:
    from idlm.bench import toys
    from idlm.bench.toy_methods import METHODS, TEACHER
    from idlm.bench.toy_run import cells

    every = options.method == ALL
    if every and options.latent is not None:
        raise UserError(
            f"--latent is {options.latent}, but --method all takes each method's own; name one "
            "method, or leave --latent out"
        )
    datasets = toys.NAMES if options.dataset == ALL else (options.dataset,)
    for name in datasets:
        toys.load(name, bins=plan.bins)
    seeds = options.seed or ([0, 1, 2] if every else [0])
    for seed in seeds:
        if not 0 <= seed < 1 << 32:
            raise UserError(f"--seed is {seed}; it must be in 0 ... {(1 << 32) - 1}")
    methods = (TEACHER, *METHODS) if every else (options.method,)
    found = cells(datasets, methods, dict.fromkeys(seeds), options.latent)
    if not found:
        raise UserError(f"there is nothing to run for --dataset {options.dataset}; name another")
    return found


def _order(record: Record) -> tuple[Any, ...]:
    """Records stand in the table's order, whatever process was done first."""
    from idlm.bench import toys
    from idlm.bench.toy_methods import METHODS, PROCESSES

    def place(names: Any, name: str) -> int:
        return list(names).index(name) if name in names else -1

    return (
        place(toys.NAMES, record["dataset"]),
        place(METHODS, record["method"]),
        place(PROCESSES, record["process"]),
        -record["latent"],
        record["seed"],
        json.dumps(record["plan"]),
        record["steps"],
    )


def _read(path: Path) -> list[Record]:
    from idlm.bench.toy_run import key_of

    if not path.exists():
        return []
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"--json {path} cannot be read ({error}); name another file") from error
    try:
        for record in found:
            key_of(record)
    except (KeyError, TypeError):
        raise UserError(
            f"--json {path} is no list of the toys' records; name another file"
        ) from None
    return found


def _write(path: Path, records: list[Record]) -> None:
    from idlm.samples import replace_file

    path.parent.mkdir(parents=True, exist_ok=True)
    # a record on each line
    lines = ",\n".join(json.dumps(record, allow_nan=False) for record in records)
    replace_file(path, [f"[\n{lines}\n]\n"])
