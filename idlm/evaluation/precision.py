"""The study of precision: one teacher drawn from in float64 and in float32, at several step counts.

``python -m idlm.evaluation.precision --output eval/results/precision.json`` measures the cells of
``eval/precision.yaml`` that are missing, adds the exact law of a float32 race, and writes a table
(``.md``) and a figure (``.png``) beside the JSON. Minutes of a CPU.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from idlm.devices import pick_device
from idlm.errors import UserError
from idlm.evaluation.compare import by_setting, setting
from idlm.evaluation.frontier import Settings, run
from idlm.evaluation.gain import LEVEL, REPETITIONS
from idlm.evaluation.guards import say
from idlm.evaluation.precision_report import markdown, plot_precision
from idlm.evaluation.protocol import read_protocol
from idlm.evaluation.resampling import NOTHING, Redrawn, redraw
from idlm.evaluation.results import Results
from idlm.evaluation.truncation import demonstration
from idlm.locks import held
from idlm.metrics.report import write_json
from idlm.samples import replace_file
from idlm.sampling.base import FLOAT32, FLOAT64

RACES = 60_000


def precision_table(
    cells: Iterable[Mapping[str, Any]], *, repetitions: int = REPETITIONS, seed: int = 0
) -> list[dict[str, Any]]:
    """float32 draws beside float64 ones, all else equal, in order of steps.

    Args:
        cells: of one protocol and one set of weights, measured with both ``sampling_dtype``;
            those without a partner are ignored.
        repetitions: resamplings behind each interval.
        seed: of the resampling.

    Returns:
        For each pair GenPPL and entropy (nats) of both, ``ratio`` of GenPPL (float32 over
        float64) and ``entropy_difference`` with ``_low`` and ``_high``, the samples of each, and
        in ``interval`` what the interval is made from.
    """
    rng = np.random.default_rng(seed)
    found: dict[tuple[Any, ...], dict[str, tuple[dict[str, Any], Redrawn]]] = {}
    for group in by_setting(cells):
        if any(not cell.get("gen_ppl") for cell in group):
            continue
        row = setting(group[0]) | {"samples": sum(cell["num_samples"] for cell in group)}
        shared = tuple(v for k, v in row.items() if k not in ("sampling_dtype", "samples"))
        point = redraw(group, repetitions, rng)
        found.setdefault(shared, {})[row["sampling_dtype"]] = row, point
    pairs = [pair for pair in found.values() if {FLOAT32, FLOAT64} <= set(pair)]
    return sorted((_pair(pair) for pair in pairs), key=lambda row: (row["label"], row["steps"]))


def _pair(pair: Mapping[str, tuple[dict[str, Any], Redrawn]]) -> dict[str, Any]:
    (row, exact), (_, rough) = pair[FLOAT64], pair[FLOAT32]
    tail = (1 - LEVEL) / 2
    source = " and ".join(sorted({exact.source, rough.source}))
    known = NOTHING not in (exact.source, rough.source)
    logs = np.quantile(rough.log_ppls - exact.log_ppls, [tail, 1 - tail])
    nats = np.quantile(rough.entropies - exact.entropies, [tail, 1 - tail])
    return {
        **{name: row[name] for name in ("label", "steps", "temperature", "top_p", "samples")},
        "gen_ppl_float64": math.exp(exact.log_ppl),
        "gen_ppl_float32": math.exp(rough.log_ppl),
        "entropy_float64": exact.entropy,
        "entropy_float32": rough.entropy,
        "ratio": math.exp(rough.log_ppl - exact.log_ppl),
        "ratio_low": math.exp(logs[0]) if known else None,
        "ratio_high": math.exp(logs[1]) if known else None,
        "entropy_difference": rough.entropy - exact.entropy,
        "entropy_difference_low": float(nats[0]) if known else None,
        "entropy_difference_high": float(nats[1]) if known else None,
        "interval": source,
    }


def study(
    protocol_file: str | Path, output: str | Path, *, device: str = "cpu", races: int = RACES
) -> dict[str, Any]:
    """Measure what is missing and write JSON, table and figure.

    Args:
        protocol_file: YAML whose cells differ in ``sampling_dtypes``.
        output: JSON file; ``.md`` and ``.png`` go beside it.
        device: of the models.
        races: of each simulated race.

    Raises:
        UserError: if the protocol has no pair of precisions, or a file cannot be written.
    """
    output = Path(output)
    protocol = read_protocol(protocol_file)
    drawn = {cell.sampling_dtype for cell in protocol.cells()}
    if drawn != {FLOAT32, FLOAT64}:
        raise UserError(
            f"protocol {str(protocol_file)!r} draws in {', '.join(sorted(drawn))} only; give a "
            "model sampling_dtypes: [float64, float32]"
        )
    known = _race_of(output)
    content = run(protocol, output, settings=Settings(device))
    # the file also keeps cells of other weights, lengths and counts, which are no repetitions
    content["precision"] = precision_table(Results(protocol, output, device).current())
    content["race"] = known if known and known["races"] == races else demonstration(races=races)
    write_json(output, content)
    replace_file(output.with_suffix(".md"), [markdown(content)])
    plot_precision(content, output.with_suffix(".png"))
    return content


def _race_of(output: Path) -> dict[str, Any] | None:
    """The exact law that the file already has; measuring cells writes the file without it."""
    try:
        found = json.loads(output.read_text(encoding="utf-8"))
        return found.get("race") if isinstance(found, dict) else None
    except (OSError, ValueError):
        return None  # not there yet, or run() says what is wrong with it


def main(argv: Sequence[str] | None = None) -> None:
    """The command line; errors of usage are one sentence and exit code 2."""
    parser = argparse.ArgumentParser(
        prog="python -m idlm.evaluation.precision",
        description="What float32 draws do to perplexity and entropy.",
    )
    parser.add_argument("--protocol", default="eval/precision.yaml", help="YAML (%(default)s)")
    parser.add_argument("--output", default="eval/results/precision.json", help="(%(default)s)")
    parser.add_argument("--device", help="cpu, cuda or cuda:1; a GPU if there is one")
    parser.add_argument("--races", type=int, default=RACES, help="simulated races (%(default)s)")
    args = parser.parse_args(argv)
    try:
        if args.races < 1:
            raise UserError(f"--races is {args.races}: it must be 1 or more")
        device = str(pick_device(args.device))
        # beside the locks of its cells, which other processes may measure meanwhile
        lock = Path(args.output).with_name(f".{Path(args.output).name}.study.lock")
        with held(lock, subject=args.output, remedy="wait for it, or name another --output"):
            content = study(args.protocol, args.output, device=device, races=args.races)
        print(markdown(content))
        say(content["warnings"])
    except UserError as error:
        print(f"idlm: error: {error}", file=sys.stderr)
        raise SystemExit(2) from None


if __name__ == "__main__":
    main()
