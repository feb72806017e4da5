"""What the benches share: options, files, processes, settings; nothing heavy is imported here."""

from __future__ import annotations

import argparse
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from idlm.errors import UserError
from idlm.paths import check_writable
from idlm.samples import replace_bytes

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from rich.console import Console


ALL = "all"
# processes or threads: what is beyond is a slip of the keyboard, and would stall the machine
MOST_PROCESSES = 1024
# wide enough for every column when stdout is a file or a pipe
_PLAIN_WIDTH = 150

# Settings of every student. A first momentum of 0 is what GANs use: a student and a fake model with
# momentum chase each other.
SETTINGS: dict[str, Any] = {"betas": (0.0, 0.99), "warmup": 20, "decay": "linear"}


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
