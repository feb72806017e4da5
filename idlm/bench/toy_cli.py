"""``idlm bench toys``: methods on data whose distribution is a table."""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from idlm.bench import shared, store
from idlm.bench.shared import ALL
from idlm.bench.store import Record
from idlm.errors import UserError

if TYPE_CHECKING:
    from idlm.bench.toy_figure import Counts
    from idlm.bench.toy_run import Cell, Plan

# what a record must have to be shown
_KEYS: dict[str, Any] = {
    **dict.fromkeys(("dataset", "method", "process"), str),
    **dict.fromkeys(("latent", "seed", "steps", "samples", "updates"), int),
    **dict.fromkeys(("tv", "js", "floor_tv", "floor_js", "train_seconds"), (int, float)),
    **dict.fromkeys(("plan", "settings"), dict),
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of the command; nothing heavy is imported for them."""
    parser.add_argument("--dataset", default=ALL, help="one data set, or all (the default)")
    parser.add_argument("--method", default=ALL, help="one method, teacher, or all (the default)")
    parser.add_argument(
        "--seed",
        type=int,
        nargs="+",
        help="of training and sampling; by default 0, with --method all 0 1 2",
    )
    shared.add_arguments(parser, kept="OUT.counts.npz, from which the figure is drawn")
    parser.add_argument("--samples", type=int, help="for each number of steps (default: 50000)")
    parser.add_argument("--bins", type=int, help="squares per axis (default: 32)")
    parser.add_argument("--longer", type=float, help="factor on the students' training (1)")
    parser.add_argument("--teacher-longer", type=float, help="factor on the teachers' (1)")


def run(options: argparse.Namespace) -> None:
    """Run what is missing, write the records as they come, then table and figure.

    A cell is missing if it has no records under the settings of today, or if the counts that the
    figure shows are gone. Table and figure are of all cells that the file holds under the same
    plan; the cells that were asked for are printed.

    Raises:
        UserError: for a name that there is not, or options that do not fit.
    """
    from idlm.bench import toy_run
    from idlm.bench.toy_figure import Counts, save_figure, shown
    from idlm.bench.toy_report import markdown, print_table
    from idlm.samples import replace_file

    files = shared.outputs(options)
    plan = _plan(options)
    wanted = _cells(options, plan)
    jobs = shared.job_count(options)
    counts = Counts(shared.beside(files.records, ".counts.npz"))
    held = [toy_run.cell_of(record) for record in _of_plan(files.records, plan)]
    if not shown([*held, *wanted]) and files.must_draw:
        raise UserError("there is nothing to draw: the figure shows data sets of the plane")
    _run_missing(wanted, plan, counts, files.records, jobs)
    records = _of_plan(files.records, plan)
    asked = {cell.key(plan) for cell in wanted}
    print_table([record for record in records if toy_run.key_of(record) in asked])
    replace_file(files.table, [markdown(records)])
    if shown(toy_run.cell_of(record) for record in records):
        save_figure(records, plan, counts, files.figure)


def _run_missing(wanted: list[Cell], plan: Plan, counts: Counts, output: Path, jobs: int) -> None:
    from idlm.bench import toy_run

    held = {toy_run.key_of(record): record["settings"] for record in _read(output)}
    missing = [
        cell
        for cell in wanted
        if held.get(cell.key(plan)) != toy_run.settings_record(cell, plan)
        or counts.get(cell, plan) is None
    ]
    for number, (cell, (found, first)) in enumerate(toy_run.run(missing, plan, jobs), start=1):
        # another run may have added its own in the meantime
        with store.merging(output):
            others = [r for r in _read(output) if toy_run.key_of(r) != cell.key(plan)]
            # counts first: with the records there, a cell broken off here would pass for done
            counts.add(cell, plan, first)
            store.write_records(output, sorted(others + found, key=_order))
        far = ", ".join(f"{r['tv']:.3f}" for r in found)
        print(
            f"{number}/{len(missing)}  {cell.dataset}, {cell.method} ({cell.process}), latent "
            f"{cell.latent}, seed {cell.seed}: TV {far} in {found[0]['train_seconds']:.0f} s",
            file=sys.stderr,
        )


def _plan(options: argparse.Namespace) -> Plan:
    from idlm.bench.toy_run import QUICK, Plan

    plan = QUICK if options.quick else Plan()
    # a table of all squares and the counts of all samples are held in memory
    for name, least, most in (("samples", 1, 100_000_000), ("bins", 4, 1024)):
        value = getattr(options, name)
        if value is None:
            continue
        if not least <= value <= most:
            bound = f"at least {least}" if value < least else f"at most {most}"
            raise UserError(f"--{name} is {value}; it must be {bound}")
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
    seeds = options.seed or ([0, 1, 2] if every else [0])
    shared.check_request(seeds, options.latent, every=every)
    datasets = toys.NAMES if options.dataset == ALL else (options.dataset,)
    if options.bins is not None and not any(toys.load(name).planar for name in datasets):
        raise UserError(
            f"--bins is {options.bins}, but {options.dataset!r} is sequences without squares; "
            "leave it out"
        )
    for name in datasets:
        toys.load(name, bins=plan.bins)
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


def _of_plan(path: Path, plan: Plan) -> list[Record]:
    """What the file holds under a plan."""
    from idlm.bench.toy_run import plan_of

    return [record for record in _read(path) if plan_of(record) == plan]


def _read(path: Path) -> list[Record]:
    from idlm.bench.toy_run import plan_of

    records = store.read_records(path, "toys'", _KEYS)
    try:
        for record in records:
            plan_of(record)
    except ValueError as error:
        raise UserError(
            f"--json {path} holds records of another version ({error}); name another file"
        ) from None
    return records
