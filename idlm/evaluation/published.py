"""``eval/published.csv``: numbers of papers, each with its source and the conditions we know.

They were measured under other conditions than ours: other sample counts, evaluators, precisions
of the draws. Shown beside our own they have to be marked as such.
"""

from __future__ import annotations

import csv
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields
from pathlib import Path

from idlm.errors import UserError
from idlm.paths import repo_dir

# What the numbers are in; every column that is not listed holds words.
UNITS = {
    "steps": "sampler steps",
    "top_p": "probability mass",
    "genppl": "perplexity per evaluator token",
    "genppl_sd": "perplexity per evaluator token",
    "mauve": "0 to 1",
    "mauve_sd": "0 to 1",
    "entropy": "nats per token",
    "entropy_sd": "nats per token",
    "gm": "squared norm of a gradient in nats",
    "fid": "squared distance of features",
    "accuracy": "percent",
    "perplexity": "perplexity per token",
    "bits_per_dim": "bits",
    "samples": "sequences",
}
# the numbers a row can be about; it has at least one
METRICS = ("genppl", "mauve", "entropy", "gm", "fid", "accuracy", "perplexity", "bits_per_dim")
_WHOLE = ("steps", "samples")
_NEEDED = ("method", "kind", "corpus", "source")


@dataclass(frozen=True)
class Published:
    """One row; an empty string or None where the source does not say.

    Attributes:
        method: as the paper calls it.
        kind: student, teacher, autoregressive, data, baseline or generator.
        model: size or training set, where one source has several.
        process: masked, uniform, continuous, gaussian or autoregressive.
        corpus: what the model was trained and measured on.
        steps: sampler steps.
        tail: how a sampler ends, "ancestral" or "greedy".
        top_p: nucleus.
        genppl: generative perplexity under ``evaluator``.
        genppl_sd: its standard deviation, as given.
        mauve: MAUVE.
        mauve_sd: its standard deviation, as given.
        entropy: of a sample's tokens, nats; of the generator's output where ``notes`` says so.
        entropy_sd: its standard deviation, as given.
        gm: Gradient Moment.
        fid: Frechet inception distance.
        accuracy: exact match, percent.
        perplexity: of held-out text, a bound for diffusion models.
        bits_per_dim: of held-out images, a bound.
        evaluator: language model that judges.
        samples: how many were generated.
        precision: of the categorical draws: float64, float32, or unknown.
        source: arXiv number and table.
        notes: what else must be known.
    """

    method: str
    kind: str
    model: str
    process: str
    corpus: str
    steps: int | None
    tail: str
    top_p: float | None
    genppl: float | None
    genppl_sd: float | None
    mauve: float | None
    mauve_sd: float | None
    entropy: float | None
    entropy_sd: float | None
    gm: float | None
    fid: float | None
    accuracy: float | None
    perplexity: float | None
    bits_per_dim: float | None
    evaluator: str
    samples: int | None
    precision: str
    source: str
    notes: str

    def key(self) -> tuple[object, ...]:
        """What tells a row from the others: all but its numbers and notes."""
        names = ("method", "kind", "model", "process", "corpus", "steps", "tail", "top_p", "source")
        return tuple(getattr(self, name) for name in names)


COLUMNS = tuple(f.name for f in fields(Published))


def published_path() -> Path:
    """Where the shipped file is."""
    return repo_dir() / "eval" / "published.csv"


def load_published(path: str | Path | None = None) -> list[Published]:
    """Read the file, and refuse what could mislead: rows without source or number, twins.

    Args:
        path: a CSV with the columns of :data:`COLUMNS`; the shipped one by default.

    Raises:
        UserError: if it cannot be read, or a row is not as it should be.
    """
    path = Path(path) if path is not None else published_path()
    try:
        with open(path, encoding="utf-8", newline="") as file:
            reader = csv.DictReader(file)
            if tuple(reader.fieldnames or ()) != COLUMNS:
                raise UserError(f"{path} has other columns than {', '.join(COLUMNS)}")
            rows = [_row(path, number, row) for number, row in enumerate(reader, start=2)]
    except OSError as error:
        raise UserError(
            f"{path} cannot be read ({error.strerror}); run idlm from a complete checkout"
        ) from error
    seen: dict[tuple[object, ...], int] = {}
    for number, row in enumerate(rows, start=2):
        if row.key() in seen:
            raise UserError(f"{path} line {number} repeats line {seen[row.key()]}; remove one")
        seen[row.key()] = number
    return rows


def frontier_points(rows: Iterable[Published], *, corpus: str = "openwebtext") -> list[Published]:
    """The rows with GenPPL and entropy, which can be points beside a frontier.

    Args:
        rows: of :func:`load_published`.
        corpus: only of this one, since neither number compares across corpora.
    """
    return [r for r in rows if r.corpus == corpus and None not in (r.genppl, r.entropy)]


def _row(path: Path, number: int, given: Mapping[str, str | None]) -> Published:
    where = f"{path} line {number}"
    if None in given or None in given.values():
        raise UserError(f"{where} has not {len(COLUMNS)} fields; quote text that has commas")
    values: dict[str, object] = {}
    for name in COLUMNS:
        text = (given[name] or "").strip()
        values[name] = _number(where, name, text) if name in UNITS else text
    lacking = [name for name in _NEEDED if not values[name]]
    if lacking:
        raise UserError(f"{where} has no {' and no '.join(lacking)}; every number needs a source")
    if not str(values["source"]).startswith("arXiv "):
        raise UserError(f"{where} has source {values['source']!r}; begin with an arXiv number")
    if all(values[name] is None for name in METRICS):
        raise UserError(f"{where} has no number; give one of {', '.join(METRICS)}")
    values["precision"] = values["precision"] or "unknown"
    return Published(**values)  # type: ignore[arg-type]


def _number(where: str, name: str, text: str) -> float | int | None:
    if not text:
        return None
    try:
        return int(text) if name in _WHOLE else float(text)
    except ValueError:
        raise UserError(
            f"{where} has {name} {text!r}; it must be a number ({UNITS[name]})"
        ) from None
