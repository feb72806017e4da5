"""What a RUN is, by its content."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from idlm.errors import UserError
from idlm.report.checks import number, optional_number, read_bytes, read_json, read_text, word
from idlm.report.findings import Bench, Findings, SampleFile
from idlm.report.read_logs import is_log, is_published, read_published, read_training
from idlm.report.read_results import is_evaluation, is_frontier, read_evaluation, read_frontiers
from idlm.samples import is_decoded, read_samples

_KNOWN = (
    "a folder of a training run, metrics.csv, results of a protocol, of `idlm evaluate`, "
    "`idlm quickstart` or `idlm bench`, or samples.jsonl"
)
# Below a folder: runs lie a few levels deep, and nothing else of a checkout should be searched.
_LOGS = ("metrics.csv", "*/metrics.csv", "*/*/metrics.csv", "*/*/*/metrics.csv")
_RESULTS = ("*.json", "*.jsonl", "samples/*.jsonl")
_NO_NAME = ("logs", "lightning_logs", ".", "")


class UnknownError(UserError):
    """A file that is whole, but nothing that a report shows."""


def collect(runs: Sequence[str | Path], *, published: Path | None = None) -> Findings:
    """Read all runs.

    Args:
        runs: files and folders; one that is named twice counts once.
        published: the table of published numbers.

    Raises:
        UserError: for one that is missing, broken, unknown or, a folder, empty of results.
    """
    findings = Findings()
    seen: set[Path] = set()
    for run in map(Path, runs):
        files = sorted(_inside(run)) if run.is_dir() else [run]
        before = len(findings.sources)
        for file in files:
            if file.resolve() in seen:
                before -= 1
                continue
            seen.add(file.resolve())
            try:
                _add(findings, file, run)
            except UnknownError as error:
                if file == run:
                    raise
                findings.left_out.append((str(file), str(error)))
        if len(findings.sources) <= before:
            raise UserError(f"folder {run} has no results: a RUN is {_KNOWN}")
    if published is not None and published.resolve() not in seen:
        findings.published += read_published(published)
        findings.sources.append((str(published), "published numbers", _digest(published)))
    return findings


def _inside(folder: Path) -> Iterator[Path]:
    for pattern in (*_LOGS, *_RESULTS):
        yield from folder.glob(pattern)


def _digest(path: Path) -> str:
    return hashlib.sha256(read_bytes(path)).hexdigest()[:12]


def _add(findings: Findings, path: Path, run: Path) -> None:
    """Read one file into the list it belongs to."""
    if not path.exists():
        raise UserError(f"{path} does not exist: a RUN is {_KNOWN}")
    if path.suffix == ".jsonl":
        kind = _add_samples(findings, path)
    elif path.suffix == ".csv":
        kind = _add_table(findings, path, run)
    else:
        kind = _add_results(findings, path)
    findings.sources.append((str(path), kind, _digest(path)))


def _add_table(findings: Findings, path: Path, run: Path) -> str:
    text = read_text(path)
    if is_log(text):
        findings.trainings.append(read_training(_run_name(path, run), text, path))
        return "training log"
    if is_published(text):
        findings.published += read_published(path)
        return "published numbers"
    raise UnknownError(f"{path} is no training log: a RUN is {_KNOWN}")


def _run_name(path: Path, run: Path) -> str:
    """The folders that tell a run from others, without the logger's own."""
    parts = [run.name if run.is_dir() else path.parent.parent.name]
    parts += path.parent.relative_to(run).parts if run.is_dir() else [path.parent.name]
    return "/".join(part for part in parts if part not in _NO_NAME) or "run"


def _add_samples(findings: Findings, path: Path) -> str:
    header, rows = read_samples(path)
    if not is_decoded(header):
        raise UnknownError(f"{path} has samples without text (--no-text), and a report shows text")
    others = [{k: v for k, v in row.items() if k not in ("text", "tokens")} for row in rows]
    findings.samples.append(SampleFile(str(path), header, [row["text"] for row in rows], others))
    return f"{len(rows)} samples"


def _add_results(findings: Findings, path: Path) -> str:
    found = read_json(path)
    if is_frontier(found):
        findings.frontiers += read_frontiers(str(path), found, path)
        return "frontier" if "protocol" in found else "quickstart"
    if is_evaluation(found):
        findings.frontiers.append(read_evaluation(str(path), found, path))
        return "evaluation"
    if isinstance(found, list) and found and all(isinstance(record, dict) for record in found):
        for kind, (fits, check) in _BENCHES.items():
            if all(map(fits, found)):
                for record in found:
                    check(record, path)
                getattr(findings, kind).append(Bench(str(path), path, found))
                return f"idlm bench {kind}"
    raise UnknownError(f"{path} holds nothing that a report shows: a RUN is {_KNOWN}")


def _check_toy(record: dict[str, Any], path: Path) -> None:
    for key in ("dataset", "method", "process"):
        word(record, key, path)
    for key in ("latent", "seed", "steps", "tv", "floor_tv"):
        number(record, key, path)


def _check_oracle(record: dict[str, Any], path: Path) -> None:
    for key in ("method", "process"):
        word(record, key, path)
    for key in ("latent", "seed", "steps", *ORACLE_NUMBERS, "entropy_rate", "source_overlap"):
        number(record, key, path)


def _check_speed(record: dict[str, Any], path: Path) -> None:
    word(record, "device", path)
    if record["case"] == "sampler":
        word(record, "network", path)
        for key in ("batch", "lean_seconds", "backbone_seconds"):
            number(record, key, path)
        optional_number(record, "plain_seconds", path)


ORACLE_NUMBERS = ("cross_entropy", "violations", "ngram_tv", "bigram_entropy", "overlap")
_Fits = Callable[[dict[str, Any]], bool]
_Check = Callable[[dict[str, Any], Path], None]
_BENCHES: dict[str, tuple[_Fits, _Check]] = {
    "toys": (lambda record: "tv" in record and "dataset" in record, _check_toy),
    "oracle": (lambda record: record.get("dataset") == "oracle", _check_oracle),
    "speed": (lambda record: isinstance(record.get("case"), str), _check_speed),
}
