"""What must be said aloud beside the numbers of a sample set, one sentence each."""

from __future__ import annotations

import math
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from idlm.errors import UserError
from idlm.evaluation.compare import CONDITIONS, by_setting, setting
from idlm.metrics.evaluators import Evaluator, need_tokenizer
from idlm.metrics.mauve import MIN_SAMPLES
from idlm.metrics.registry import AGAINST_REFERENCE
from idlm.paths import BUNDLED_MODELS, repo_dir, resolve

# The fewest that published numbers of this family rest on: IDLM's 10 batches of 8.
FEW_SAMPLES = 80


def result_warnings(result: Mapping[str, Any], *, few: bool = True) -> list[str]:
    """What one result must be read with: few samples, and samples that failed.

    Args:
        result: of ``idlm.metrics.report.measure``.
        few: say that there are few samples, too; a table with standard errors does so itself.
    """
    where, n = result["source"], result["num_samples"]
    said = []
    if few and n < FEW_SAMPLES:
        numbers = [
            f"{title} {_with_error(result, name, digits)}{unit}"
            for name, title, digits, unit in (
                ("gen_ppl", "GenPPL", 2, ""),
                ("entropy", "entropy", 4, " nats"),
            )
            if name in result
        ]
        said.append(
            f"{where}: {n} samples are fewer than {FEW_SAMPLES}: {', '.join(numbers)} "
            "(± one standard error over samples)"
        )
    if result.get("unscored_samples"):
        said.append(
            f"{where}: {result['unscored_samples']} of {n} samples have no scored token (eos rule "
            f"{result['eos']}); GenPPL is that of the others"
        )
    if result.get("nonfinite_samples"):
        said.append(
            f"{where}: {result['nonfinite_samples']} of {n} samples have a log-probability that is "
            f"not finite under the evaluator in {result['evaluator_dtype']}, so GenPPL is nan; "
            "float32 may help (--evaluator-dtype, evaluator_dtype of a protocol)"
        )
    return said + _comparison_warnings(result)


def cell_warnings(
    cells: Iterable[Mapping[str, Any]],
    references: Iterable[Mapping[str, Any]] = (),
    *,
    few: bool = True,
) -> list[str]:
    """:func:`result_warnings` of measured cells, the seeds of a setting together, each once.

    Args:
        cells: of :mod:`idlm.evaluation.cells`.
        references: held-out text, of the same module.
        few: as for :func:`result_warnings`.
    """
    said: list[str] = []
    for group in by_setting(cells):
        row = setting(group[0])
        nucleus = f", top-p {row['top_p']:g}" * (row["top_p"] < 1.0)
        others = [str(row[name]) for name, usual in _USUAL.items() if row[name] != usual]
        how = "".join(f", {word}" for word in others)
        where = f"{row['label']}, {row['steps']} steps, T={row['temperature']:g}{nucleus}{how}"
        said += result_warnings(_together(f"{where} under {row['evaluator']}", group), few=few)
    for found in references:
        held_out = _together(f"held-out text of {found['corpus']}", [found])
        said += result_warnings(held_out, few=few)
    return list(dict.fromkeys(said))


def say(sentences: Iterable[str]) -> None:
    """Print warnings on stderr."""
    for sentence in sentences:
        print(f"idlm: warning: {sentence}", file=sys.stderr)


_USUAL = {name: CONDITIONS[name] for name in ("sampler", "sampling_dtype", "network_dtype")}


def _together(source: str, group: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Sets that differ in the seed alone as one result: means, their errors, sums of counts."""
    said = [cell["evaluation"] for cell in group]
    found: dict[str, Any] = {
        "source": source,
        "num_samples": sum(cell["num_samples"] for cell in group),
        **{name: said[0][name] for name in ("eos", "evaluator_dtype")},
    }
    for name in ("unscored_samples", "nonfinite_samples"):
        found[name] = sum(one.get(name, 0) for one in said)
    for name in ("gen_ppl", "entropy"):
        values = [cell[name] for cell in group]
        errors: list[Any] = [cell.get(f"{name}_stderr") for cell in group]
        found[name] = None if None in values else math.fsum(values) / len(group)
        found[f"{name}_stderr"] = None if None in errors else math.hypot(*errors) / len(group)
    return found


def _comparison_warnings(result: Mapping[str, Any]) -> list[str]:
    where, said = result["source"], []
    for name in AGAINST_REFERENCE:
        if name in result and f"{name}_details" not in result:
            said.append(
                f"{where}: too few rows of the text are left to hold it against, so {name} has no "
                "real-against-real value"
            )
    moment = result.get("gradient_moment_details")
    if moment and moment["nonfinite_pairs"]:
        said.append(
            f"{where}: {moment['nonfinite_pairs']} of {moment['pairs']} pairs of batches have "
            "gradients that are not finite, so the gradient moment is nan"
        )
    if moment and moment["unused_samples"]:
        said.append(
            f"{where}: {moment['unused_samples']} of {result['num_samples']} samples fill no batch "
            "and are not in the gradient moment"
        )
    mauve = result.get("mauve_details")
    if mauve and mauve["empty_samples"]:
        said.append(
            f"{where}: {mauve['empty_samples']} empty samples are in MAUVE as a lone end of text"
        )
    if mauve and min(mauve["samples"], mauve["data"]) < MIN_SAMPLES:
        said.append(
            f"{where}: MAUVE of {mauve['samples']} against {mauve['data']} texts, fewer than "
            f"{MIN_SAMPLES}, is biased; compare it with nothing but the reference's own row"
        )
    return said


def _with_error(result: Mapping[str, Any], name: str, digits: int) -> str:
    value, error = result[name], result.get(f"{name}_stderr")
    shown = "none" if value is None else f"{value:.{digits}f}"
    return f"{shown} ± {'unknown' if error is None else f'{error:.{digits}f}'}"


def family_warnings(
    checkpoint: str | None, evaluator: Evaluator, *, tokenizer: str | None, retokenized: bool
) -> list[str]:
    """What the evaluator shares with the model that made the samples.

    Args:
        checkpoint: name of that model; None if unknown.
        evaluator: the judging model, with a tokenizer or a folder that has one.
        tokenizer: given in place of the checkpoint's own.
        retokenized: whether the evaluator read texts, or the samples' own token ids.
    """
    if checkpoint is None:
        unknown = f"it is unknown whether evaluator {evaluator.name} is of its family"
        return [f"the samples name no checkpoint, so {unknown}"]
    if _same_folder(checkpoint, evaluator):
        said = (
            f"evaluator {evaluator.name} is the model that made the samples: a perplexity under it "
            "says how sure it is of itself, and its gradient moment holds the reference's "
            "gradients alone; choose another --evaluator"
        )
        return [said]
    own = _vocabulary(checkpoint)
    if own is None:
        unknown = f"it is unknown whether evaluator {evaluator.name} is of its family"
        return [f"the tokenizer of {checkpoint} cannot be opened, so {unknown}"]
    shared = _tokenizer_sentence(checkpoint, own, evaluator, retokenized)
    if tokenizer is None or _vocabulary(tokenizer) in (None, own):
        return [shared]
    changed = f"--tokenizer {tokenizer} is not that of {checkpoint}: texts and reference are in "
    return [f"{changed}other tokens than the model's", shared]


def _tokenizer_sentence(
    checkpoint: str, own: Mapping[str, int], evaluator: Evaluator, retokenized: bool
) -> str:
    theirs = need_tokenizer(evaluator).get_vocab()
    # One may have a pad token more; the ids that both have must mean the same.
    if own.items() <= theirs.items() or theirs.items() <= own.items():
        corpus = " and corpus" if _bundled(checkpoint) and _bundled(evaluator.name) else ""
        return (
            f"evaluator {evaluator.name} has the tokenizer{corpus} of {checkpoint}: of one "
            "family, it may favour its text; compare its numbers only with one another"
        )
    changed = (
        f"evaluator {evaluator.name} has another tokenizer ({len(theirs)} tokens) than "
        f"{checkpoint} ({len(own)})"
    )
    if retokenized:
        return f"{changed}: texts were tokenised again, and GenPPL counts the evaluator's tokens"
    return f"{changed} and read its token ids as its own: leave out --no-retokenize"


def _same_folder(checkpoint: str, evaluator: Evaluator) -> bool:
    folder = evaluator.folder
    if folder is None:
        return checkpoint == evaluator.name
    return Path(resolve(checkpoint)).expanduser().resolve() == folder.resolve()


def _bundled(name: str) -> bool:
    """Whether it is one of the models under data/models, which share one corpus."""
    folder = Path(resolve(name)).expanduser().resolve()
    return folder.parent == repo_dir() / "data" / "models" and folder.name in BUNDLED_MODELS


def _vocabulary(name: str) -> dict[str, int] | None:
    from idlm.models import load_tokenizer

    try:
        return dict(load_tokenizer(name).get_vocab())
    except UserError:
        return None
