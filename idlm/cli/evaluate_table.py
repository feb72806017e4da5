"""The table of ``idlm evaluate``: no perplexity without entropy and conditions beside it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Console
from rich.table import Table

# Wide enough for every column when stdout is a file or a pipe, whose width rich takes for 80.
_PLAIN_WIDTH = 160

_COLUMNS = (
    ("steps", "steps"),
    ("nfe", "nfe"),
    ("temperature", "temp."),
    ("top_p", "top-p"),
    ("sampling_dtype", "sampling"),
    ("length", "length"),
    ("num_samples", "samples"),
    ("seed", "seed"),
)


def print_table(
    results: Sequence[Mapping[str, Any]],
    summary: Sequence[Mapping[str, Any]],
    conditions: Mapping[str, Any],
) -> None:
    """Print one row for each sample set, and mean ± sd for sets that differ in seed alone.

    Args:
        results: of ``idlm.metrics.report.measure``.
        summary: of ``idlm.metrics.report.summarize``.
        conditions: of ``GenerativePerplexity.conditions``; they hold for every row.
    """
    console = Console()
    if not console.is_terminal:
        console = Console(width=_PLAIN_WIDTH)
    table = Table(caption=caption(conditions), caption_justify="left", caption_style="")
    table.add_column("source", overflow="fold")
    for _, title in _COLUMNS:
        table.add_column(title, justify="right")
    table.add_column("GenPPL", justify="right")
    table.add_column("entropy (nats)", justify="right")
    for result in results:
        shown = [_show(result.get(key)) for key, _ in _COLUMNS]
        table.add_row(
            str(result["source"]), *shown, _ppl(result["gen_ppl"]), f"{result['entropy']:.4f}"
        )
    for index, group in enumerate(summary):
        if index == 0:
            table.add_section()
        shown = [_show(group.get(key, group.get(f"{key}_mean"))) for key, _ in _COLUMNS[:-1]]
        table.add_row(
            f"mean ± sd of {group['sets']}: {group.get('checkpoint', 'unnamed')}",
            *shown,
            ",".join(_show(seed) for seed in group["seeds"]),
            _spread(group, "gen_ppl", 2),
            _spread(group, "entropy", 4),
        )
    console.print(table)


def caption(conditions: Mapping[str, Any]) -> str:
    """One or two lines that say how the perplexities were computed."""
    revision = conditions["evaluator_revision"] or "unknown"
    how = "re-tokenised" if conditions["retokenized"] else "model's own tokens"
    return (
        f"GenPPL under {conditions['evaluator']} (revision {revision}, "
        f"{conditions['evaluator_dtype']}): exp of the mean over all scored tokens, {how}, "
        f"eos rule {conditions['eos']}, at most {conditions['max_length'] or 'all'} tokens of a "
        f"sample, batches of {conditions['batch_size']}.\nEntropy: unigrams of each sequence of "
        "the model's own tokens, mean over sequences."
    )


def _ppl(value: float | None) -> str:
    return "none scored" if value is None else f"{value:.2f}"


def _spread(group: Mapping[str, Any], name: str, digits: int) -> str:
    if f"{name}_mean" not in group:
        return "none scored"
    return f"{group[f'{name}_mean']:.{digits}f} ± {group[f'{name}_sd']:.{digits}f}"


def _show(value: Any) -> str:
    if value is None:
        return "-"
    return f"{value:g}" if isinstance(value, float) else str(value)
