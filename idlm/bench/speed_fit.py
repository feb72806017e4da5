"""How many sequences of a distillation fit into a device's memory.

The peak of a training grows with the batch along a straight line. Two batches, each in a process of
its own, give the line; on CUDA the batch that it promises is then run under that limit.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch

from idlm.bench.speed_measure import Setting, peak
from idlm.bench.speed_run import LossCase
from idlm.bench.store import Record
from idlm.training.loop import average_weights

GIGABYTES = (24, 80)
_HEADROOM = 0.95  # the CUDA context and fragments take the rest


@dataclass(frozen=True)
class FitCase:
    """The largest batch of a fake and a student update, with optimisers and EMA.

    Attributes:
        loss: network, objective and length; its batch is the smaller one of the line.
        gigabytes: sizes of memory, in 10^9 bytes.
    """

    loss: LossCase
    gigabytes: tuple[int, ...] = GIGABYTES

    def batches(self) -> tuple[LossCase, LossCase]:
        """The two cases that give the line."""
        return self.loss, replace(self.loss, batch=2 * self.loss.batch)


def training_bytes(case: LossCase, setting: Setting) -> int | None:
    """Bytes at the peak of two pairs of updates over an empty process; None where not known.

    Networks, gradients, two AdamW optimisers and the student's average are in it. Call it in a
    fresh process.
    """
    return peak(lambda: _train(case, setting), setting)


def fits(case: LossCase, setting: Setting, gigabytes: int) -> bool:
    """Whether a batch trains within that much of a GPU's memory; call it in a fresh process."""
    total = torch.cuda.get_device_properties(0).total_memory
    torch.cuda.set_per_process_memory_fraction(min(1.0, gigabytes * 1e9 / total))
    try:
        _train(case, setting)
    except torch.cuda.OutOfMemoryError:
        return False
    return True


def _train(case: LossCase, setting: Setting) -> None:
    update, networks = case.updates(setting)
    trained = (networks.fake, networks.student)
    optimizers = [torch.optim.AdamW(n.parameters(), lr=1e-6, fused=True) for n in trained]
    average = average_weights(networks.student, 0.999)
    for _ in range(2):  # an optimiser makes its state in the first step
        update(False, optimizers)
        average.update_parameters(networks.student)
    setting.wait()


def largest(batches: tuple[int, int], peaks: tuple[int, int], gigabytes: int) -> int:
    """Sequences whose training stays within a memory, by the line through two peaks; 0 for none.

    Raises:
        ValueError: if the larger batch took no more memory: there is no line to follow.
    """
    slope = (peaks[1] - peaks[0]) / (batches[1] - batches[0])
    if slope <= 0:
        raise ValueError(
            f"the peak was {peaks[0]} bytes with {batches[0]} sequences and {peaks[1]} with "
            f"{batches[1]}; measure larger batches"
        )
    fixed = peaks[0] - slope * batches[0]
    return max(0, int((_HEADROOM * gigabytes * 1e9 - fixed) / slope))


def fit_record(case: FitCase, peaks: tuple[int, int]) -> Record:
    """What a case's two peaks say.

    Args:
        case: what was measured.
        peaks: bytes with each of :meth:`FitCase.batches`.
    """
    small, large = case.batches()
    batches = (small.batch, large.batch)
    slope = (peaks[1] - peaks[0]) / (batches[1] - batches[0])
    return {
        "case": "fit",
        "objective": small.objective,
        "network": small.network.name,
        "vocab_size": small.network.vocab,
        "length": small.length,
        "batches": list(batches),
        "peak_bytes": list(peaks),
        "bytes_per_sequence": slope,
        "largest_batch": {str(size): largest(batches, peaks, size) for size in case.gigabytes},
    }
