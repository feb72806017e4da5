"""The frontier of a protocol: GenPPL against entropy for every model, step count and temperature.

``python -m idlm.evaluation.frontier --protocol eval/frontier.yaml --output
eval/results/frontier.json`` measures cell after cell and writes the file after each; run again,
it measures only what the file does not have yet.
"""

from __future__ import annotations

import argparse
import multiprocessing
import sys
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from idlm.devices import pick_device
from idlm.errors import UserError
from idlm.evaluation.cells import BATCH_SIZE, Cell, measure, weights_revision
from idlm.evaluation.compare import Matched, matched_entropy, summarise
from idlm.evaluation.protocol import Protocol, read_protocol
from idlm.evaluation.results import Results, locked

__all__ = [
    "Cell",
    "Matched",
    "Protocol",
    "matched_entropy",
    "measure",
    "read_protocol",
    "run",
    "summarise",
]


@dataclass(frozen=True)
class Settings:
    """How the cells are measured: nothing here changes a number beyond fp32 rounding."""

    device: str = "cpu"
    batch_size: int = BATCH_SIZE
    samples_dir: str | None = None


def run(
    protocol: Protocol,
    output: str | Path,
    *,
    only: Sequence[str] = (),
    workers: int = 1,
    threads: int | None = None,
    settings: Settings | None = None,
) -> dict[str, Any]:
    """Measure all cells of a protocol that ``output`` does not have yet.

    A cell counts as there if its fields, the hash of its checkpoint's weights and the evaluator's
    are the same. Cells of other conditions stay in the file and out of the summary.

    Args:
        protocol: what to measure.
        output: JSON file, replaced after each cell.
        only: what to measure now, as LABEL or LABEL:STEPS; all if empty.
        workers: processes that measure cells side by side.
        threads: of torch per process; the machine's share if not given.
        settings: device, batch size, where samples go.

    Returns:
        What is in the file: ``protocol``, ``reference``, ``cells``, ``summary``, ``matched``.

    Raises:
        UserError: for an unknown label, a model that cannot be loaded, or an output in use.
    """
    settings = settings or Settings()
    pick_device(settings.device)
    wanted = _wanted(protocol, only)
    if workers < 1:
        raise UserError(f"workers is {workers}; it must be at least 1")
    output = Path(output)
    with locked(output):
        results = Results(protocol, output, settings.device)
        for checkpoint in {cell.checkpoint for cell in wanted}:
            weights_revision(checkpoint)  # a missing model is said now, not hours later
        results.add_reference()
        missing = [cell for cell in wanted if not results.has(cell)]
        print(f"{len(wanted) - len(missing)} of {len(wanted)} cells are in {output}", flush=True)
        share = threads or max(1, torch.get_num_threads() // workers)
        for done, (cell, found) in enumerate(
            _measured(missing, protocol.evaluator, settings, workers, share), start=1
        ):
            results.add(found)
            print(f"[{done}/{len(missing)}] {_line(cell, found)}", flush=True)
        return results.save()


def _wanted(protocol: Protocol, only: Sequence[str]) -> list[Cell]:
    """The cells that ``only`` selects; each of its entries must select some."""
    cells = list(protocol.cells())
    for name in only:
        if not any(name in _names(cell) for cell in cells):
            known = sorted({cell.label for cell in cells})
            raise UserError(
                f"--only {name!r} selects nothing in the protocol; give a label "
                f"({', '.join(known)}) or LABEL:STEPS, such as {known[0]}:16"
            )
    return [cell for cell in cells if not only or any(name in _names(cell) for name in only)]


def _names(cell: Cell) -> tuple[str, str]:
    return cell.label, f"{cell.label}:{cell.steps}"


def _line(cell: Cell, found: dict[str, Any]) -> str:
    return (
        f"{cell}: GenPPL {found['gen_ppl'] or float('nan'):.2f}, entropy "
        f"{found['entropy']:.3f} nats, {found['network_calls']} network calls, "
        f"{found['seconds']:.1f} s"
    )


def _measured(
    cells: Sequence[Cell], evaluator: str, settings: Settings, workers: int, threads: int
) -> Iterator[tuple[Cell, dict[str, Any]]]:
    """Each cell with its numbers, in the order in which they are ready."""
    if workers == 1:
        before = torch.get_num_threads()
        torch.set_num_threads(threads)
        try:
            for cell in cells:
                yield cell, _one(cell, evaluator, settings)
        finally:
            torch.set_num_threads(before)
        return
    # spawn: a forked process would inherit torch's thread pools in an unusable state
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(
        workers, mp_context=context, initializer=torch.set_num_threads, initargs=(threads,)
    ) as pool:
        try:
            futures = {pool.submit(_one, cell, evaluator, settings): cell for cell in cells}
            for future in as_completed(futures):
                yield futures[future], future.result()
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise


def _one(cell: Cell, evaluator: str, settings: Settings) -> dict[str, Any]:
    samples = None
    if settings.samples_dir is not None:
        name = f"{cell.label}-{cell.steps}-T{cell.temperature:g}-seed{cell.seed}.jsonl"
        samples = Path(settings.samples_dir) / name
    return measure(
        cell,
        evaluator=evaluator,
        device=settings.device,
        batch_size=settings.batch_size,
        save_samples=samples,
    )


def main(argv: Sequence[str] | None = None) -> None:
    """The command line; errors of usage are one sentence and exit code 2."""
    parser = argparse.ArgumentParser(
        prog="python -m idlm.evaluation.frontier", description="Measure the frontier of a protocol."
    )
    parser.add_argument("--protocol", default="eval/frontier.yaml", help="YAML (%(default)s)")
    parser.add_argument("--output", default="eval/results/frontier.json", help="JSON (%(default)s)")
    parser.add_argument(
        "--only",
        action="append",
        default=[],
        metavar="LABEL[:STEPS]",
        help="measure only this now; may be repeated",
    )
    parser.add_argument("--workers", type=int, default=1, help="processes side by side (1)")
    parser.add_argument("--threads", type=int, help="torch threads per process")
    parser.add_argument("--device", help="cpu, cuda or cuda:1; a GPU if there is one")
    parser.add_argument(
        "--batch-size",
        type=int,
        default=BATCH_SIZE,
        help="sequences generated together (%(default)s)",
    )
    parser.add_argument("--samples", metavar="DIR", help="also keep every cell's samples here")
    args = parser.parse_args(argv)
    try:
        run(
            read_protocol(args.protocol),
            args.output,
            only=args.only,
            workers=args.workers,
            threads=args.threads,
            settings=Settings(str(pick_device(args.device)), args.batch_size, args.samples),
        )
    except UserError as error:
        print(f"idlm: error: {error}", file=sys.stderr)
        raise SystemExit(2) from None


if __name__ == "__main__":
    main()
