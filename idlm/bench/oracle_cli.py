"""``idlm bench oracle``: methods on the oracle language, resumable, one JSON list of records."""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import sys
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from idlm.cli.shared import check_writable
from idlm.errors import UserError

if TYPE_CHECKING:
    from idlm.bench.oracle_run import Cell, Record
    from idlm.bench.oracle_train import Plan

ALL = "all"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of the command; nothing heavy is imported for them."""
    parser.add_argument("--method", default=ALL, help="one method, or all (the default)")
    parser.add_argument(
        "--latent",
        type=int,
        help="size of the student's latent, 0 for none; the method's own by default",
    )
    parser.add_argument(
        "--seed", type=int, nargs="+", default=[0], help="of training and sampling (default: 0)"
    )
    parser.add_argument(
        "--json",
        metavar="OUT",
        required=True,
        help="where the records go; what is there is kept and not run again",
    )
    parser.add_argument("--figure", metavar="PNG", help="draw what was asked for")
    parser.add_argument("--samples", type=int, help="texts to score for each number of steps")
    parser.add_argument("--teacher-updates", type=int, help="length of the teachers' training")
    parser.add_argument("--student-updates", type=int, help="length of the students' training")
    parser.add_argument("--jobs", type=int, help="processes, one core each (default: 2)")
    parser.add_argument(
        "--quick", action="store_true", help="every step in seconds; the numbers mean nothing"
    )


def run(options: argparse.Namespace) -> None:
    """Run what is missing, write the records after every cell, and print the table.

    Raises:
        UserError: for a method that there is not, or options that do not fit.
    """
    from idlm.bench import oracle_run
    from idlm.bench.oracle_report import print_table, save_figure

    output = check_writable("--json", options.json)
    figure = check_writable("--figure", options.figure) if options.figure else None
    plan = _plan(options)
    wanted = _cells(options)
    for cell in wanted:
        cell.check()
    jobs = min(2, os.cpu_count() or 1) if options.jobs is None else options.jobs
    if jobs < 1:
        raise UserError(f"--jobs is {jobs}; it must be at least 1")
    _one_core()  # so that the numbers are those of any number of jobs
    records = _read(output)
    missing = [c for c in wanted if not any(oracle_run.matches(r, c, plan) for r in records)]
    folder = output.with_name(f"{output.stem}.teachers")
    for number, (cell, found) in enumerate(_run(missing, plan, folder, jobs), start=1):
        # another run may have added its own in the meantime
        records = [r for r in _read(output) if not oracle_run.matches(r, cell, plan)] + found
        _write(output, sorted(records, key=oracle_run.order))
        far = ", ".join(f"{r['cross_entropy']:.2f}" for r in found)
        print(
            f"{number}/{len(missing)}  {cell.method}, latent {found[0]['latent']}, seed "
            f"{cell.seed}: cross-entropy {far} in {found[0]['train_seconds']:.0f} s",
            file=sys.stderr,
        )
    shown = [r for r in _read(output) if any(oracle_run.matches(r, c, plan) for c in wanted)]
    print_table(shown)
    if figure is not None:
        save_figure(shown, figure)


def _plan(options: argparse.Namespace) -> Plan:
    from idlm.bench.oracle_train import QUICK, Plan

    plan = QUICK if options.quick else Plan()
    for name, least in (("samples", 2), ("teacher_updates", 1), ("student_updates", 1)):
        value = getattr(options, name)
        if value is None:
            continue
        if value < least:
            option = name.replace("_", "-")
            raise UserError(f"--{option} is {value}; it must be at least {least}")
        plan = replace(plan, **{name: value})
    return plan


def _cells(options: argparse.Namespace) -> list[Cell]:
    from idlm.bench import oracle_run

    for seed in options.seed:
        if not 0 <= seed < 1 << 32:
            raise UserError(f"--seed is {seed}; it must be in 0 ... {(1 << 32) - 1}")
    seeds = list(dict.fromkeys(options.seed))
    if options.method != ALL:
        return [oracle_run.Cell(options.method, seed, options.latent) for seed in seeds]
    if options.latent is not None:
        raise UserError(
            f"--latent is {options.latent}, but --method all takes each method's own; name one "
            "method, or leave --latent out"
        )
    return [cell for seed in seeds for cell in oracle_run.cells(seed)]


def _run(
    cells: list[Cell], plan: Plan, folder: Path, jobs: int
) -> Iterator[tuple[Cell, list[Record]]]:
    """Cells and their records, as they are done."""
    from idlm.bench.oracle_run import run_cell

    if jobs == 1 or len(cells) < 2:
        for cell in cells:
            yield cell, run_cell(cell, plan, folder)
        return
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(jobs, mp_context=context, initializer=_one_core) as pool:
        for stage in _stages(cells):
            futures = {pool.submit(run_cell, cell, plan, folder): cell for cell in stage}
            for future in as_completed(futures):
                yield futures[future], future.result()


def _stages(cells: list[Cell]) -> tuple[list[Cell], list[Cell]]:
    """One cell for each teacher, then the others: no two train the same one at a time."""
    from idlm.bench.oracle_run import SOURCE

    first: dict[Any, Cell] = {}
    for cell in cells:
        if cell.method != SOURCE:  # it needs no teacher
            first.setdefault((cell.process, cell.seed), cell)
    return list(first.values()), [cell for cell in cells if cell not in first.values()]


def _one_core() -> None:
    import torch

    torch.set_num_threads(1)


def _read(path: Path) -> list[Record]:
    if not path.exists():
        return []
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"--json {path} cannot be read ({error}); name another file") from error
    keys = {"method", "latent", "seed", "steps", "plan", "cross_entropy"}
    if isinstance(found, list) and all(isinstance(r, dict) and keys <= r.keys() for r in found):
        return found
    raise UserError(f"--json {path} is no list of the oracle's records; name another file")


def _write(path: Path, records: list[Record]) -> None:
    from idlm.samples import replace_file

    path.parent.mkdir(parents=True, exist_ok=True)
    replace_file(path, [json.dumps(records, indent=1, allow_nan=False), "\n"])
