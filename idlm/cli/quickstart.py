"""``idlm quickstart``: the whole story on a laptop CPU in minutes.

Text of the teacher and of the student at equal cost, a short real distillation, both measured
over several step counts, one table, one picture, and the files behind them.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from idlm.cli.quickstart_plan import Plan, affordable_samples
from idlm.cli.shared import Parser, require_bundled
from idlm.errors import UserError
from idlm.locks import alone_in
from idlm.paths import BUNDLED_MODELS, check_writable

if TYPE_CHECKING:
    from rich.console import Console

    from idlm.evaluation.cells import Cell
    from idlm.sampling.ancestral import Callback, StepState

# Characters of each text that are shown side by side.
_EXCERPT = 900


def run(argv: list[str]) -> None:
    """Tell the story.

    Args:
        argv: the arguments after ``quickstart``.

    Raises:
        UserError: for bad usage, a folder that cannot be written, or missing bundled models.
    """
    parser = Parser(prog="idlm quickstart", description=__doc__, allow_abbrev=False)
    parser.add_argument(
        "--output",
        default="runs/quickstart",
        metavar="FOLDER",
        help="where everything goes (default: %(default)s)",
    )
    parser.add_argument("--seed", type=int, default=0, help="of all samples (default: 0)")
    args = parser.parse_args(argv)
    if not 0 <= args.seed < 1 << 32:
        raise UserError(f"--seed is {args.seed}; it must be in 0 ... {(1 << 32) - 1}")
    folder = check_writable("--output", args.output, folder=True)
    for name in BUNDLED_MODELS:
        require_bundled(name)
    with alone_in([folder], remedy="wait for it to end, or name another folder with --output"):
        tell(Plan(seed=args.seed), folder)


def tell(plan: Plan, folder: Path) -> dict[str, Any]:
    """Run all parts and write their files under ``folder``.

    Returns:
        What ``results.json`` holds.
    """
    from rich.console import Console

    from idlm.devices import pick_device

    console = Console()
    if not console.is_terminal:
        console = Console(width=120)
    started = time.perf_counter()
    device = str(pick_device())
    folder.mkdir(parents=True, exist_ok=True)
    console.rule("1 of 3: the same number of network calls")
    seconds_per_step = _show_texts(plan, device, console)
    console.rule("2 of 3: a short distillation of the teacher")
    fresh = _distil(plan, folder, console)
    console.rule("3 of 3: measuring")
    count = affordable_samples(plan, seconds_per_step)
    results = _measure(plan, plan.cells(count, fresh), folder, device)
    results["seconds_total"] = time.perf_counter() - started
    _write(plan, results, folder, console)
    return results


def _show_texts(plan: Plan, device: str, console: Console) -> float:
    """Print one text of teacher and student side by side; seconds per sample and step."""
    from rich.table import Table
    from rich.text import Text

    import idlm
    from idlm.models import decode, load_tokenizer

    shown = Table(
        title=f"{plan.length} tokens in {plan.target} network calls, seed {plan.seed}",
        show_lines=True,
        expand=True,
    )
    texts, seconds = [], 0.0
    with _bar("generating", 2 * plan.target) as advance:
        for label, checkpoint in (("teacher", plan.teacher), ("student", plan.student)):
            out = idlm.generate(
                idlm.load(checkpoint, device=device),
                1,
                plan.length,
                plan.target,
                seed=plan.seed,
                callback=advance,
            )
            text = decode(load_tokenizer(checkpoint), out.tokens)[0]
            texts.append(Text(text[:_EXCERPT].strip() + " ..."))
            seconds = out.seconds / plan.target  # of the second model: the first warms up
            shown.add_column(f"{label}, {out.nfe} calls", ratio=1)
    shown.add_row(*texts)
    console.print(shown)
    return seconds


def _distil(plan: Plan, folder: Path, console: Console) -> Path | None:
    """Run ``idlm fit`` on the quickstart's configuration; the folder of the student it made."""
    from idlm.cli import fit

    student, work = folder / "student", folder / "distillation"
    before = student.stat().st_mtime_ns if student.exists() else None
    arguments = [
        "fit",
        "--config",
        str(plan.config),
        "--seed_everything",
        str(plan.seed),
        "--trainer.default_root_dir",
        str(work),
        "--trainer.logger.init_args.save_dir",
        str(work),
        "--model.init_args.teacher",
        plan.teacher,
        "--model.init_args.seed",
        str(plan.seed),
        "--model.init_args.export_dir",
        str(student),
        "--data.init_args.tokenizer",
        plan.teacher,
        "--data.init_args.seed",
        str(plan.seed),
        "--data.init_args.corpus",
        plan.corpus,
        "--data.init_args.length",
        str(plan.length),
        *plan.overrides,
    ]
    console.print("idlm " + " ".join(arguments), style="dim", highlight=False, markup=False)
    fit.run(arguments)
    if not student.exists() or student.stat().st_mtime_ns == before:
        console.print(
            "The clock ran out before the first student update on this machine: no "
            "fresh student is measured."
        )
        return None
    return student


def _measure(plan: Plan, cells: Sequence[Cell], folder: Path, device: str) -> dict[str, Any]:
    from idlm.evaluation.cells import measure, measure_reference, open_evaluator
    from idlm.evaluation.compare import matched_table, summarise
    from idlm.evaluation.guards import cell_warnings, family_warnings

    judge = open_evaluator(plan.evaluator, device)
    count = cells[0].num_samples
    found = []
    with _bar("measuring", sum(cell.steps * count for cell in cells)) as advance:
        for cell in cells:
            name = f"{cell.label.replace(' ', '-')}-{cell.steps}-T{cell.temperature:g}.jsonl"
            found.append(
                measure(
                    cell,
                    evaluator=judge,
                    device=device,
                    batch_size=4,
                    save_samples=folder / "samples" / name,
                    callback=advance,
                )
            )
    reference = measure_reference(
        plan.corpus,
        "validation",
        tokenizer=plan.teacher,
        evaluator=judge,
        length=plan.length,
        rows=count,
        device=device,
    )
    summary = summarise(found)
    return {
        "plan": asdict(plan) | {"config": plan.config.name},
        "reference": reference,
        "summary": summary,
        "matched": matched_table(summary, "teacher"),
        "warnings": [
            *family_warnings(plan.teacher, judge, tokenizer=None, retokenized=True),
            *cell_warnings(found, [reference], few=False),  # each row has its standard error
        ],
        "cells": found,
    }


def _write(plan: Plan, results: dict[str, Any], folder: Path, console: Console) -> None:
    from idlm.cli.quickstart_table import caption, comparison, table
    from idlm.evaluation.guards import say
    from idlm.evaluation.plots import plot_frontier
    from idlm.metrics.report import write_json

    console.print(table(results))
    console.print(caption(results), style="dim", highlight=False, markup=False)
    console.print(comparison(results, plan.target), highlight=False, markup=False)
    say(results["warnings"])
    note = (
        f"judged by {plan.evaluator}; {results['cells'][0]['num_samples']} samples of "
        f"{plan.length} tokens per point, one seed; bars: 1 standard error"
    )
    picture = plot_frontier(
        results["summary"],
        folder / "frontier.png",
        teacher="teacher",
        reference=results["reference"],
        note=note,
    )
    numbers = write_json(folder / "results.json", results)
    console.print(f"\nDone in {results['seconds_total'] / 60:.1f} minutes. Written:")
    for what, path in (
        ("picture", picture),
        ("numbers", numbers),
        ("samples", folder / "samples"),
        ("fresh student", folder / "student"),
        ("training log", folder / "distillation"),
    ):
        if path.exists():
            console.print(f"  {what:<14} {path}", highlight=False, soft_wrap=True)


@contextmanager
def _bar(what: str, total: int) -> Iterator[Callback]:
    """A progress bar on stderr that a sampler moves, one per sample and step."""
    from rich.console import Console
    from rich.progress import Progress, TimeElapsedColumn

    columns = (*Progress.get_default_columns(), TimeElapsedColumn())
    with Progress(*columns, console=Console(stderr=True)) as bar:
        task = bar.add_task(what, total=total)

        def advance(state: StepState) -> None:
            bar.advance(task, state.tokens.shape[0])

        yield advance
