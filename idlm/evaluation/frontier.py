"""Running a protocol: GenPPL against entropy for every model, step count and way of sampling.

``idlm evaluate --protocol eval/frontier.yaml --output eval/results/frontier.json`` measures cell
after cell and writes the file after each; run again, it measures only what the file does not have
yet. Several processes may fill one file; ``python -m idlm.evaluation.frontier`` is the same.
"""

from __future__ import annotations

import multiprocessing
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from idlm.devices import pick_device
from idlm.errors import UserError
from idlm.evaluation.cell import ANCESTRAL
from idlm.evaluation.cells import BATCH_SIZE, Cell, measure_each, weights_revision
from idlm.evaluation.protocol import Protocol
from idlm.evaluation.results import Results


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
    are the same. Cells of other conditions stay in the file and out of the summary. A cell that
    another process is measuring is left to it.

    Args:
        protocol: what to measure.
        output: JSON file, replaced after each cell.
        only: what to measure now, as LABEL or LABEL:STEPS; all if empty.
        workers: processes that measure cells side by side.
        threads: of torch per process; the machine's share if not given.
        settings: device, batch size, where samples go.

    Returns:
        What is in the file: ``protocol``, ``reference``, ``references``, ``cells``, ``summary``,
        ``matched``, ``gains`` and ``warnings``.

    Raises:
        UserError: for an unknown label, or a model that cannot be loaded.
    """
    settings = settings or Settings()
    pick_device(settings.device)
    wanted = _wanted(protocol, only)
    if workers < 1:
        raise UserError(f"workers is {workers}; it must be at least 1")
    for checkpoint, revision in {(cell.checkpoint, cell.revision) for cell in wanted}:
        weights_revision(checkpoint, revision=revision)  # a missing model is said now, not later
    output = Path(output)
    results = Results(protocol, output, settings.device)
    results.add_references()
    missing = sum(not results.has(cell) for cell in wanted)
    print(f"{len(wanted) - missing} of {len(wanted)} cells are in {output}", flush=True)
    _say_textless(results, wanted, settings.samples_dir)
    share = threads or max(1, torch.get_num_threads() // workers)
    if workers == 1:
        before = torch.get_num_threads()
        torch.set_num_threads(share)
        try:
            _measure_missing(results, wanted, settings)
        finally:
            torch.set_num_threads(before)
    else:
        _side_by_side(min(workers, max(1, missing)), share, (protocol, output, wanted, settings))
    content = results.save()
    if absent := sum(not results.has(cell) for cell in wanted):
        print(f"{absent} cells are being measured by other processes, which will add them")
    return content


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


def _measure_missing(results: Results, wanted: Sequence[Cell], settings: Settings) -> None:
    """Measure what the file lacks and nobody else is at, cell by cell."""
    for number, cell in enumerate(wanted, start=1):
        with results.claim(cell) as evaluators:
            if not evaluators:
                continue
            found = measure_each(
                cell,
                evaluators=[results.judge(name) for name in evaluators],
                eos=results.protocol.eos,
                device=settings.device,
                batch_size=settings.batch_size,
                save_samples=_samples_file(cell, settings.samples_dir),
            )
            results.add(found)
            for one in found:
                print(f"[{number}/{len(wanted)}] {_line(cell, one)}", flush=True)


def _line(cell: Cell, found: dict[str, Any]) -> str:
    return (
        f"{cell}: GenPPL {found['gen_ppl'] or float('nan'):.2f}, entropy "
        f"{found['entropy']:.3f} nats, {found['network_calls']} network calls, "
        f"{found['seconds']:.1f} s"
    )


def _samples_file(cell: Cell, folder: str | None) -> Path | None:
    if folder is None:
        return None
    parts = [cell.label, str(cell.steps), f"T{cell.temperature:g}"]
    parts += [f"p{cell.top_p:g}"] * (cell.top_p < 1.0)
    parts += [cell.sampler] * (cell.sampler != ANCESTRAL)
    parts += [f"draws-{cell.sampling_dtype}"] * (cell.sampling_dtype != "float64")
    parts += [f"net-{cell.network_dtype}"] * (cell.network_dtype != "float32")
    return Path(folder) / f"{'-'.join(parts)}-seed{cell.seed}.jsonl"


def _say_textless(results: Results, wanted: Sequence[Cell], folder: str | None) -> None:
    """Name the cells whose texts were asked for and will not come: they are not measured again."""
    files = [(cell, _samples_file(cell, folder)) for cell in wanted if results.has(cell)]
    without = [str(cell) for cell, file in files if file is not None and not file.exists()]
    if without:
        print(
            f"no texts in {folder} for {len(without)} cells, which were measured before: "
            f"{'; '.join(without)}; to get them, name another --output",
            flush=True,
        )


def _side_by_side(count: int, threads: int, work: tuple[Any, ...]) -> None:
    """Several processes on one file, each taking the cells that the others have not claimed."""
    # spawn: a forked process would inherit torch's thread pools in an unusable state
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(
        count, mp_context=context, initializer=torch.set_num_threads, initargs=(threads,)
    ) as pool:
        for done in [pool.submit(_worker, *work) for _ in range(count)]:
            done.result()


def _worker(protocol: Protocol, output: Path, wanted: Sequence[Cell], settings: Settings) -> None:
    _measure_missing(Results(protocol, output, settings.device), wanted, settings)
