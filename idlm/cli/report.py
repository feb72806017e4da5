"""``idlm report``: one self-contained page, pictures and tables of runs and measurements."""

from __future__ import annotations

import sys
from pathlib import Path

from idlm.cli.shared import Parser
from idlm.errors import UserError
from idlm.evaluation.published import published_path
from idlm.locks import alone_in
from idlm.paths import check_writable


def _parser() -> Parser:
    parser = Parser(prog="idlm report", description=__doc__, allow_abbrev=False)
    parser.add_argument(
        "runs",
        nargs="+",
        metavar="RUN",
        help="a training run's folder, a folder of results, or a file: metrics.csv, results of a "
        "protocol, of evaluate, quickstart or bench, samples.jsonl; known by its content",
    )
    parser.add_argument(
        "--output",
        default="runs/report",
        metavar="FOLDER",
        help="where index.html, figures/ and tables/ go (default: %(default)s)",
    )
    parser.add_argument(
        "--published",
        metavar="CSV",
        help="published numbers, shown as measured under other conditions (default: "
        "eval/published.csv of this checkout, if it is there)",
    )
    parser.add_argument("--title", default="idlm report", help="of the page (%(default)s)")
    parser.add_argument(
        "--teacher",
        metavar="LABEL",
        help="whose samples the others stand beside; by default those a frontier calls teacher, "
        "or whose name says so",
    )
    parser.add_argument(
        "--texts", type=int, default=2, help="samples shown of each file (default: 2)"
    )
    return parser


def run(argv: list[str]) -> None:
    """Write the report and say where it is.

    Args:
        argv: the arguments after ``report``.

    Raises:
        UserError: for bad usage, or a run that is missing, broken or unknown.
    """
    args = _parser().parse_args(argv)
    folder = check_writable("--output", args.output, folder=True)
    if args.texts < 0:
        raise UserError(f"--texts is {args.texts}; it must be 0 or more")
    published = Path(args.published) if args.published else _published()
    from idlm.report import make_report

    with alone_in([folder], remedy="wait for it to end, or name another folder with --output"):
        report = make_report(
            args.runs,
            folder,
            published=published,
            title=args.title,
            teacher=args.teacher,
            texts=args.texts,
        )
    for name, why in report.left_out:
        print(f"left out: {name}: {why}", file=sys.stderr)
    print(f"written: {report.page} and {len(report.files)} files of figures and tables beside it")


def _published() -> Path | None:
    path = published_path()
    if not path.is_file():
        return None
    here = Path.cwd()  # a page that is handed on names no folder of this machine
    return path.relative_to(here) if path.is_relative_to(here) else path
