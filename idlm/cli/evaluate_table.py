"""The table of ``idlm evaluate``: no perplexity without entropy and conditions beside it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Console
from rich.table import Table

from idlm.metrics.registry import ALL_METRICS

# Wide enough for every column when stdout is a file or a pipe, whose width rich takes for 80.
_PLAIN_WIDTH = 160
_METRIC_WIDTH = 20

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
_USUAL = ("gen_ppl", "entropy")
# What stands behind ± in a row of its own.
_SPREADS = {"mauve": "mauve_sd", "gradient_moment": "gradient_moment_stderr"}


def print_table(
    results: Sequence[Mapping[str, Any]],
    summary: Sequence[Mapping[str, Any]],
    conditions: Mapping[str, Any] | None,
    *,
    metrics: Sequence[str] = _USUAL,
    both_rules: bool = False,
) -> None:
    """Print one row for each sample set, and mean ± sd for sets that differ in seed alone.

    Args:
        results: of ``idlm.metrics.report.measure``.
        summary: of ``idlm.metrics.report.summarize``.
        conditions: of ``GenerativePerplexity.conditions``; they hold for every row. None without
            perplexities.
        metrics: columns, by their names in ``idlm.metrics.registry``.
        both_rules: show GenPPL under both end-of-text rules.
    """
    columns = [column for name in metrics for column in _columns(name, both_rules)]
    console = Console()
    if not console.is_terminal:
        console = Console(width=_PLAIN_WIDTH + _METRIC_WIDTH * (len(columns) - len(_USUAL)))
    said = [caption(conditions, both_rules)] if conditions is not None else []
    said += [_definition(name, results) for name in metrics if name not in _USUAL]
    if conditions is None:
        said.insert(0, _ENTROPY)
    table = Table(caption="\n".join(said), caption_justify="left", caption_style="")
    table.add_column("source", overflow="fold")
    for title in [title for _, title in _COLUMNS] + [title for _, title, _ in columns]:
        table.add_column(title, justify="right")
    for result in results:
        shown = [_show(result.get(key)) for key, _ in _COLUMNS]
        cells = [_cell(result, key, digits) for key, _, digits in columns]
        table.add_row(str(result["source"]), *shown, *cells)
    for index, group in enumerate(summary):
        if index == 0:
            table.add_section()
        shown = [_show(group.get(key, group.get(f"{key}_mean"))) for key, _ in _COLUMNS[:-1]]
        table.add_row(
            f"mean ± sd of {group['sets']}: {group.get('checkpoint', 'unnamed')}",
            *shown,
            ",".join(_show(seed) for seed in group["seeds"]),
            *(_spread(group, key, digits) for key, _, digits in columns),
        )
    console.print(table)


_ENTROPY = "Entropy: unigrams of each sequence of the model's own tokens, mean over sequences."


def _columns(name: str, both_rules: bool) -> list[tuple[str, str, int]]:
    """Key in the results, title and digits of the columns of one metric."""
    metric = ALL_METRICS[name]
    if name == "gen_ppl" and both_rules:
        rules = ("published", "strict")
        return [(f"gen_ppl_{rule}", f"GenPPL {rule}", metric.digits) for rule in rules]
    return [(name, metric.title, metric.digits)]


def caption(conditions: Mapping[str, Any], both_rules: bool = False) -> str:
    """One or two lines that say how the perplexities were computed."""
    revision = conditions["evaluator_revision"] or "unknown"
    how = "re-tokenised" if conditions["retokenized"] else "model's own tokens"
    rule = "rules published and strict" if both_rules else f"rule {conditions['eos']}"
    return (
        f"GenPPL under {conditions['evaluator']} (revision {revision}, "
        f"{conditions['evaluator_dtype']}): exp of the mean over all scored tokens, {how}, "
        f"eos {rule}, at most {conditions['max_length'] or 'all'} tokens of a "
        f"sample, batches of {conditions['batch_size']}.\n{_ENTROPY}"
    )


def _definition(name: str, results: Sequence[Mapping[str, Any]]) -> str:
    """A line on a further column: what it is, and the conditions of its first row that has any."""
    line = f"{ALL_METRICS[name].title}: {ALL_METRICS[name].definition}"
    found = next((r[f"{name}_details"] for r in results if r.get(f"{name}_details")), None)
    if found is None:
        return f"{line}."
    judge = (
        f"{found['evaluator']} (revision {found['evaluator_revision'] or 'unknown'}, "
        f"{found['evaluator_dtype']}), at most {found['max_length']} tokens of a text"
    )
    if name == "mauve":
        own = (
            f"{found['samples']} against {found['data']} texts, {found['clusters']} clusters, "
            f"scaling {found['scaling']:g}, seeds {', '.join(map(str, found['seeds']))}"
        )
    else:
        own = (
            f"{found['pairs']} pairs of 2 x {found['samples_per_half']:g} rows, "
            f"{'re-tokenised' if found['retokenized'] else 'own tokens'}, eos rule {found['eos']}"
        )
    return f"{line}; {judge}, {own}."


def _cell(result: Mapping[str, Any], key: str, digits: int) -> str:
    value = result.get(key)
    if value is None:
        if not key.startswith("gen_ppl"):
            return "none"
        broken = result.get("nonfinite_samples")
        return f"nan ({broken} of {result['num_samples']})" if broken else "none scored"
    spread = result.get(_SPREADS.get(key, ""))
    return f"{value:.{digits}f}" + ("" if spread is None else f" ± {spread:.{digits}f}")


def _spread(group: Mapping[str, Any], name: str, digits: int) -> str:
    if f"{name}_mean" not in group:
        return "none scored" if name.startswith("gen_ppl") else "none"
    return f"{group[f'{name}_mean']:.{digits}f} ± {group[f'{name}_sd']:.{digits}f}"


def _show(value: Any) -> str:
    if value is None:
        return "-"
    return f"{value:g}" if isinstance(value, float) else str(value)
