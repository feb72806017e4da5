"""A report: one HTML page, pictures and tables of what was trained and measured."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

__all__ = ["Report", "make_report"]


@dataclass(frozen=True)
class Report:
    """What was written.

    Attributes:
        page: the HTML file.
        files: all others.
        left_out: files in the runs' folders that a report does not show, and why.
    """

    page: Path
    files: Sequence[Path]
    left_out: Sequence[tuple[str, str]]


def make_report(
    runs: Sequence[str | Path],
    output: str | Path,
    *,
    published: str | Path | None = None,
    title: str = "idlm report",
    teacher: str | None = None,
    texts: int = 2,
) -> Report:
    """Write a report.

    Args:
        runs: folders of training runs, and files of results or samples; each is known by its
            content.
        output: folder for ``index.html``, ``figures/*.png`` and ``tables/*.csv, .md, .tex``. Each
            file appears only when complete, the page last.
        published: table of published numbers.
        title: of the page.
        teacher: label of the teacher among the samples; found by itself if None.
        texts: samples shown of each file.

    Raises:
        UserError: for a run that is missing, broken or unknown, a GenPPL without entropy, or a
            folder that cannot be written.
    """
    from idlm.report.headlines import headlines
    from idlm.report.page import Page, render
    from idlm.report.recognise import collect
    from idlm.report.sections import sections
    from idlm.report.tables import Column, Table
    from idlm.samples import replace_file

    found = collect(runs, published=None if published is None else Path(published))
    parts = sections(found, teacher=teacher, texts=texts)
    columns = [Column("file"), Column("is"), Column("sha256")]
    sources = Table("source-files", "What this was made from", columns, found.sources)
    page = render(Page(title, headlines(found), parts, sources, found))
    folder = Path(output)
    tables = [sources, *(table for part in parts for table in (*part.tables, *part.folded))]
    pictures = [picture for part in parts for picture in part.pictures]
    files = [_picture(folder / "figures" / f"{p.name}.png", p.png) for p in pictures]
    for table in tables:
        files += _table(folder / "tables", table.name, table.csv(), table.markdown(), table.latex())
    return Report(replace_file(folder / "index.html", [page]), files, found.left_out)


def _picture(path: Path, data: bytes) -> Path:
    from idlm.samples import replace_bytes

    return replace_bytes(path, lambda file: file.write(data))


def _table(folder: Path, name: str, csv: str, markdown: str, latex: str) -> Iterator[Path]:
    from idlm.samples import replace_file

    for suffix, text in (("csv", csv), ("md", markdown), ("tex", latex)):
        yield replace_file(folder / f"{name}.{suffix}", [text])
