"""``idlm bench oracle``: methods on the oracle language, resumable, one JSON list of records."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from idlm.bench import pool, shared, store
from idlm.bench.shared import ALL
from idlm.bench.store import Record
from idlm.errors import UserError

if TYPE_CHECKING:
    from idlm.bench.oracle_run import Cell
    from idlm.bench.oracle_train import Plan

# of texts or updates: what is beyond is a slip of the keyboard
_MOST = 10_000_000
# what a record must have to be found again and shown
_KEYS: dict[str, Any] = {
    **dict.fromkeys(("method", "process"), str),
    **dict.fromkeys(("latent", "seed", "steps", "samples"), int),
    **dict.fromkeys(
        (
            *("cross_entropy", "cross_entropy_se", "violations", "impossible", "ngram_tv"),
            *("bigram_entropy", "overlap", "train_seconds", "epsilon"),
            *("entropy_rate", "source_bigram_entropy", "source_overlap", "floor_ngram_tv"),
        ),
        (int, float),
    ),
    **dict.fromkeys(("plan", "settings"), dict),
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of the command; nothing heavy is imported for them."""
    parser.add_argument("--method", default=ALL, help="one method, or all (the default)")
    parser.add_argument(
        "--seed", type=int, nargs="+", default=[0], help="of training and sampling (default: 0)"
    )
    shared.add_arguments(parser, kept="OUT.teachers, a folder of the trained teachers")
    parser.add_argument("--samples", type=int, help="texts to score for each number of steps")
    parser.add_argument("--teacher-updates", type=int, help="length of the teachers' training")
    parser.add_argument("--student-updates", type=int, help="length of the students' training")


def run(options: argparse.Namespace) -> None:
    """Run what is missing, write the records after every cell, then table and figure.

    Table and figure are of all that the file holds under the same plan; the cells that were asked
    for are printed.

    Raises:
        UserError: for a method that there is not, or options that do not fit.
    """
    from idlm.bench import oracle_run
    from idlm.bench.oracle_report import drawn, markdown, print_table, save_figure
    from idlm.samples import replace_file

    files = shared.outputs(options)
    plan = _plan(options)
    wanted = _cells(options)
    for cell in wanted:
        cell.check()
    jobs = shared.job_count(options)
    methods = [cell.method for cell in wanted]
    methods += [record["method"] for record in _of_plan(files.records, plan)]
    if files.must_draw and not any(map(drawn, methods)):
        raise UserError("there is nothing to draw: the figure shows models, the source is its line")
    _run_missing(wanted, plan, files.records, jobs)
    records = _of_plan(files.records, plan)
    asked = [r for r in records if any(oracle_run.matches(r, c, plan) for c in wanted)]
    print_table(asked)
    replace_file(files.table, [markdown(records)])
    if any(drawn(record["method"]) for record in records):
        save_figure(records, files.figure)


def _run_missing(wanted: list[Cell], plan: Plan, output: Path, jobs: int) -> None:
    from idlm.bench import oracle_run

    records = _read(output)
    missing = [cell for cell in wanted if not oracle_run.is_done(cell, plan, records)]
    folder = shared.beside(output, ".teachers")
    for number, (cell, found) in enumerate(_run(missing, plan, folder, jobs), start=1):
        # another run may have added its own in the meantime
        with store.merging(output):
            records = [r for r in _read(output) if not oracle_run.matches(r, cell, plan)] + found
            store.write_records(output, sorted(records, key=oracle_run.order))
        far = ", ".join(f"{r['cross_entropy']:.2f}" for r in found)
        print(
            f"{number}/{len(missing)}  {cell.method}, latent {found[0]['latent']}, seed "
            f"{cell.seed}: cross-entropy {far} in {found[0]['train_seconds']:.0f} s",
            file=sys.stderr,
        )


def _plan(options: argparse.Namespace) -> Plan:
    from idlm.bench.oracle_train import QUICK, Plan

    plan = QUICK if options.quick else Plan()
    for name, least in (("samples", 2), ("teacher_updates", 1), ("student_updates", 1)):
        value = getattr(options, name)
        if value is None:
            continue
        if not least <= value <= _MOST:
            option = name.replace("_", "-")
            bound = f"at least {least}" if value < least else f"at most {_MOST}"
            raise UserError(f"--{option} is {value}; it must be {bound}")
        plan = replace(plan, **{name: value})
    return plan


def _cells(options: argparse.Namespace) -> list[Cell]:
    from idlm.bench import oracle_run

    shared.check_request(options.seed, options.latent, every=options.method == ALL)
    seeds = list(dict.fromkeys(options.seed))
    if options.method != ALL:
        return [oracle_run.Cell(options.method, seed, options.latent) for seed in seeds]
    return [cell for seed in seeds for cell in oracle_run.cells(seed)]


def _run(
    cells: list[Cell], plan: Plan, folder: Path, jobs: int
) -> Iterator[tuple[Cell, list[Record]]]:
    """Cells and their records, as they are done."""
    return pool.as_done(partial(_one, plan=plan, folder=folder), _stages(cells), jobs)


def _one(cell: Cell, plan: Plan, folder: Path) -> Iterator[list[Record]]:
    from idlm.bench.oracle_run import run_cell

    yield run_cell(cell, plan, folder)


def _stages(cells: list[Cell]) -> tuple[list[Cell], list[Cell]]:
    """One cell for each teacher, then the others: no two train the same one at a time."""
    from idlm.bench.oracle_run import SOURCE

    first: dict[Any, Cell] = {}
    for cell in cells:
        if cell.method != SOURCE:  # it needs no teacher
            first.setdefault((cell.process, cell.seed), cell)
    return list(first.values()), [cell for cell in cells if cell not in first.values()]


def _of_plan(path: Path, plan: Plan) -> list[Record]:
    """What the file holds under a plan."""
    return [record for record in _read(path) if record["plan"] == plan.plain()]


def _read(path: Path) -> list[Record]:
    return store.read_records(path, "oracle's", _KEYS)
