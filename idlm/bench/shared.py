"""What the benches share: options, files, processes, settings; nothing heavy is imported here."""

from __future__ import annotations

import argparse
import contextlib
import json
import logging
import multiprocessing
import os
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from contextlib import contextmanager
from dataclasses import asdict, dataclass, is_dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from idlm.cli.shared import check_writable
from idlm.errors import UserError
from idlm.locks import awaited, lock_beside
from idlm.samples import replace_bytes, replace_file

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from rich.console import Console

    from idlm.objectives.base import DistillationObjective

Record = dict[str, Any]
Task = TypeVar("Task")
Result = TypeVar("Result")

ALL = "all"
# processes or threads: what is beyond is a slip of the keyboard, and would stall the machine
MOST_PROCESSES = 1024
# wide enough for every column when stdout is a file or a pipe
_PLAIN_WIDTH = 150

# Settings of every student. A first momentum of 0 is what GANs use: a student and a fake model with
# momentum chase each other.
SETTINGS: dict[str, Any] = {"betas": (0.0, 0.99), "warmup": 20, "decay": "linear"}
# settings of the distillation module that a record states
_RECORDED = (
    *("max_student_updates", "micro_batch_size", "lr", "fake_lr", "betas", "weight_decay"),
    *("adam_eps", "warmup", "decay", "clip", "ema_decay", "dropout"),
    *("latent_global", "latent_position", "latent_init"),
)


def rounds(updates: int, count: int) -> int:
    """Updates of a round, so that ``count`` rounds are made within the run."""
    return max(1, updates // count)


@dataclass(frozen=True)
class Outputs:
    """Where a bench writes.

    Attributes:
        records: the JSON.
        table: the Markdown table.
        figure: the PNG.
        must_draw: whether the figure was asked for by name: having nothing to draw is an error.
    """

    records: Path
    table: Path
    figure: Path
    must_draw: bool


def add_arguments(parser: argparse.ArgumentParser, *, kept: str) -> None:
    """The options that both benches have.

    Args:
        parser: takes them.
        kept: what else is written beside the JSON, for the help.
    """
    parser.add_argument(
        "--latent",
        type=int,
        help="size of the student's latent, 0 for none; the method's own by default",
    )
    parser.add_argument(
        "--json",
        metavar="OUT",
        required=True,
        help="where the records go; what is there is kept, and not run again unless its settings "
        f"have changed. Beside OUT.json stand OUT.md, OUT.png and {kept}",
    )
    parser.add_argument(
        "--table", metavar="MD", help="the Markdown table of what the file holds (default: OUT.md)"
    )
    parser.add_argument(
        "--figure",
        metavar="PNG",
        help="the figure of what the file holds (default: OUT.png, if there is something to draw)",
    )
    parser.add_argument("--jobs", type=int, help="processes, one core each (default: 2)")
    parser.add_argument(
        "--quick", action="store_true", help="every step in seconds; the numbers mean nothing"
    )


def outputs(options: argparse.Namespace) -> Outputs:
    """The files of the options, each found to be writable.

    Raises:
        UserError: for one that is not, a figure that is no PNG, or one file for two things.
    """
    records = check_writable("--json", options.json)
    table, figure = (Path(path) if path else None for path in (options.table, options.figure))
    if figure is not None and figure.suffix.lower() != ".png":
        raise UserError(f"--figure is {figure}; it is a PNG, so give it a name that ends in .png")
    found = Outputs(
        records,
        check_writable("--table", table or beside(records, ".md")),
        check_writable("--figure", figure or beside(records, ".png")),
        must_draw=figure is not None,
    )
    if len({path.resolve() for path in (found.records, found.table, found.figure)}) < 3:
        raise UserError(
            f"--json {found.records}, --table {found.table} and --figure {found.figure} are not "
            "three files; name one for each"
        )
    return found


def beside(records: Path, suffix: str) -> Path:
    """The path of what belongs to the records of a file: OUT.json and ``.md`` give OUT.md."""
    return records.with_name(records.name.removesuffix(".json") + suffix)


def job_count(options: argparse.Namespace) -> int:
    """How many processes to use.

    Raises:
        UserError: for fewer than one.
    """
    jobs = min(2, os.cpu_count() or 1) if options.jobs is None else options.jobs
    if jobs < 1:
        raise UserError(f"--jobs is {jobs}; it must be at least 1")
    if jobs > MOST_PROCESSES:
        raise UserError(f"--jobs is {jobs}; it must be at most {MOST_PROCESSES}")
    return jobs


def check_request(seeds: Sequence[int], latent: int | None, *, every: bool) -> None:
    """Refuse seeds and latents that fit no method.

    Args:
        seeds: of training and sampling.
        latent: size that was asked for, if any.
        every: whether all methods were asked for.

    Raises:
        UserError: naming what does not fit.
    """
    for seed in seeds:
        if not 0 <= seed < 1 << 32:
            raise UserError(f"--seed is {seed}; it must be in 0 ... {(1 << 32) - 1}")
    if latent is not None and latent < 0:
        raise UserError(f"--latent is {latent}; it must be 0, for none, or more")
    if latent is not None and every:
        raise UserError(
            f"--latent is {latent}, but --method all takes each method's own; name one method, or "
            "leave --latent out"
        )


def read_records(path: Path, whose: str, keys: Mapping[str, Any]) -> list[Record]:
    """The records of a file; none if there is no file.

    Args:
        path: the JSON.
        whose: name of the bench as an owner, for the message: ``oracle's``.
        keys: what a record must have, and the type of each.

    Raises:
        UserError: if it cannot be read, or holds something else.
    """
    if not path.exists():
        return []
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"--json {path} cannot be read ({error}); name another file") from error
    fits = isinstance(found, list) and all(
        isinstance(record, dict)
        and all(isinstance(record.get(key), kind) for key, kind in keys.items())
        for record in found
    )
    if not fits:
        raise UserError(f"--json {path} is no list of the {whose} records; name another file")
    return found


def write_records(path: Path, records: Sequence[Record]) -> None:
    """Write records, each on a line.

    Raises:
        UserError: if the file cannot be written.
    """
    lines = ",\n".join(json.dumps(record, allow_nan=False) for record in records)
    replace_file(path, [f"[\n{lines}\n]\n"])


@contextmanager
def merging(path: Path) -> Iterator[None]:
    """Read the file, change it and write it, while no other run does; who comes second waits.

    Raises:
        UserError: if the folder cannot be written.
    """
    if path.exists() and not path.is_file():  # a device keeps nothing
        yield
        return
    with awaited(lock_beside(path), subject=str(path)):
        yield


def as_json(value: Any) -> Any:
    """A value as JSON gives it back: lists for tuples."""
    return json.loads(json.dumps(value, allow_nan=False))


def objective_record(objective: DistillationObjective) -> Record:
    """Name and arguments of an objective that has not been run, for JSON.

    Returns:
        Its class under ``name``, and its public attributes that JSON has a form for; a dataclass is
        an object.
    """
    kept: Record = {"name": type(objective).__name__}
    for name, value in vars(objective).items():
        # what a run changes is no setting
        if name.startswith("_") or name in objective.state_dict():
            continue
        value = asdict(value) if is_dataclass(value) and not isinstance(value, type) else value
        with contextlib.suppress(TypeError):
            kept[name] = as_json(value)
    return kept


def student_record(objective: DistillationObjective, settings: Mapping[str, Any]) -> Record:
    """How a student is trained, for JSON.

    Args:
        objective: of the training.
        settings: arguments of the distillation module; its defaults are added.
    """
    from idlm.training.distil import DistillationModule

    module = DistillationModule.from_networks(None, objective, **settings)
    chosen: Record = {name: as_json(module.hparams[name]) for name in _RECORDED}
    return {
        "updates": chosen.pop("max_student_updates"),
        "batch": chosen.pop("micro_batch_size"),
        "fake_per_student": module.fake_per_student,
        **chosen,
        "objective": objective_record(objective),
    }


def save_png(figure: Figure, path: Path) -> Path:
    """Draw a figure; the file appears under its name only when complete.

    Args:
        figure: what to draw.
        path: the PNG; folders are made, an existing file is replaced.

    Returns:
        ``path``.

    Raises:
        UserError: if it cannot be written.
    """
    return replace_bytes(path, lambda file: figure.savefig(file, dpi=150, format="png"))


def wide_console() -> Console:
    """A console for tables."""
    from rich.console import Console

    console = Console()
    return console if console.is_terminal else Console(width=_PLAIN_WIDTH)


def markdown_table(titles: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table in Markdown, with the newline of its last line.

    Args:
        titles: of the columns.
        rows: cells of each line, as many as there are titles.
    """
    lines = [titles, ["---"] * len(titles), *rows]
    return "".join("| " + " | ".join(line) + " |\n" for line in lines)


def as_done(
    run: Callable[[Task], Iterable[Result]], stages: Sequence[Sequence[Task]], jobs: int
) -> Iterator[tuple[Task, Result]]:
    """Tasks and what comes of them, as it comes, or of a task in another process when it ends.

    A task that fails ends the rest: no further one is begun, and its error is raised when those
    that were begun have ended, so that nothing that is done is lost.

    Args:
        run: does a task and gives its results one by one; picklable, if there are several jobs.
        stages: tasks; none is begun before all of the stage before are done.
        jobs: number of processes; a single one is this one.

    Raises:
        Exception: of the first task that failed.
    """
    if jobs == 1 or sum(map(len, stages)) < 2:
        one_core()  # so that the numbers are those of any number of jobs
        for stage in stages:
            for task in stage:
                for result in run(task):
                    yield task, result
        return
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(jobs, mp_context=context, initializer=one_core) as pool:
        try:
            for stage in stages:
                futures = {pool.submit(_attempt, run, task): task for task in stage}
                failed: BaseException | None = None
                for future in as_completed(futures):
                    if future.cancelled():
                        continue
                    error = future.exception()
                    results = future.result() if error is None else getattr(error, "results", [])
                    for result in results:
                        yield futures[future], result
                    if error is not None and failed is None:
                        failed = error
                        for other in futures:
                            other.cancel()
                if isinstance(failed, _StoppedError):
                    raise failed.error from failed.__cause__  # the other process's traceback
                if failed is not None:
                    raise failed
        finally:
            # after an error, or where no more is asked for, the rest would be done in vain
            pool.shutdown(wait=False, cancel_futures=True)


class _StoppedError(Exception):
    """A task in another process failed; what it had done comes along."""

    def __init__(self, error: Exception, results: list[Any]) -> None:
        super().__init__(error, results)
        self.error, self.results = error, results


def _attempt(run: Callable[[Task], Iterable[Result]], task: Task) -> list[Result]:
    """All results of a task."""
    results: list[Result] = []
    try:
        for result in run(task):
            results.append(result)  # one by one: those before an error are kept
    except Exception as error:
        raise _StoppedError(error, results) from error
    return results


def one_core() -> None:
    """Networks this small are slower on several threads, and numbers depend on their count."""
    import torch

    torch.set_num_threads(1)


@contextmanager
def quiet() -> Iterator[None]:
    """Lightning's remarks about devices and workers are of no use here; its errors are."""
    log = logging.getLogger("lightning.pytorch")
    level = log.level
    log.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        log.setLevel(level)
