"""Generation over the processes of ``accelerate launch`` or ``torchrun``: the same samples, sooner.

Sample ``i`` is a function of (seed, i), so the processes take runs of consecutive samples and need
not talk while they generate. What they exchange, Python objects at the beginning and the end, goes
over gloo: it also works without GPUs and when several processes share one.
"""

from __future__ import annotations

import os
import secrets
import traceback
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.nn.functional as F

from idlm.devices import pick_device
from idlm.errors import UserError
from idlm.models.modeling import DiffusionLM
from idlm.sampling.generate import GenerationOutput, generate
from idlm.sampling.requests import blank_id

T = TypeVar("T")

# gloo's half an hour would end a run in which one process has that much more to write; a process
# that dies closes its connections, which ends the others at once.
_TIMEOUT = timedelta(days=30)
# That is no time to wait for a process that never came, which closes no connection.
_ARRIVAL = timedelta(minutes=10)


@dataclass(frozen=True)
class Processes:
    """The processes of one launch; a single one without a launcher.

    Attributes:
        index: number of this process; 0 is the main one.
        count: how many there are.
        device: where this process computes.
    """

    index: int
    count: int
    device: torch.device

    def gather(self, value: T) -> list[T]:
        """The value of every process, in order, on every process; values are pickled."""
        if self.count == 1:
            return [value]
        from accelerate.utils import gather_object

        return gather_object([value])

    def together(self, work: Callable[[], T]) -> T:
        """Do ``work`` in every process, and fail in all of them if it fails in one.

        Otherwise the others would wait for the one that failed.

        Returns:
            This process's own result.

        Raises:
            UserError: of the first process that raised one.
            RuntimeError: with the traceback of the first process that failed otherwise.
        """
        if self.count == 1:
            return work()
        failure: Exception | None = None
        result: list[T] = []
        try:
            result.append(work())
        except UserError as error:
            failure = error
        except Exception:  # noqa: BLE001 - told to every process and raised there
            failure = RuntimeError(f"process {self.index} failed:\n{traceback.format_exc()}")
        for known in self.gather(failure):
            if known is not None:
                raise known
        return result[0]


@contextmanager
def join(count: int, device: str | None = None) -> Iterator[Processes]:
    """Meet the other processes of the launch, and part from them at the end.

    Args:
        count: processes in the launch, 1 without a launcher.
        device: cpu, cuda or cuda:N; by default a GPU if there is one. With several processes each
            takes the GPU of its local rank.

    Raises:
        UserError: if the device is unknown, not here, or named by number for several processes;
            if the processes cannot meet.
    """
    if count == 1:
        yield Processes(0, 1, pick_device(device))
        return
    from accelerate import PartialState

    on_cpu = device == "cpu" or not torch.cuda.is_available()
    ours = not torch.distributed.is_initialized()
    try:
        if ours and "RANK" in os.environ:
            _arrive(count)
        with warnings.catch_warnings():
            # said by every process: a share of the cores each is what is wanted here
            warnings.filterwarnings("ignore", message="OMP_NUM_THREADS/MKL_NUM_THREADS unset")
            state = PartialState(cpu=on_cpu, backend="gloo", timeout=_TIMEOUT)
    except (ValueError, RuntimeError) as error:
        reason = str(error).strip().split("\n")[0]
        raise UserError(
            f"the environment tells of {count} processes, which cannot meet ({reason}); start them "
            "with accelerate launch or torchrun, or unset WORLD_SIZE for one process"
        ) from error
    index, count = state.process_index, state.num_processes
    here = torch.device("cpu") if on_cpu else state.device
    processes = Processes(index, count, here)
    try:
        processes.together(lambda: check_device(device, count))
        yield processes
    finally:
        if ours:
            state.destroy_process_group()


def _arrive(count: int) -> None:
    """Begin the process group when every process of the launch is there.

    Raises:
        RuntimeError: if they are not all there in time.
    """
    store, index, _ = next(torch.distributed.rendezvous("env://", timeout=_ARRIVAL))
    # under torchrun the store outlives a group: its processes may meet again
    store.set(f"idlm/{index}", "here")
    store.wait([f"idlm/{other}" for other in range(count)], _ARRIVAL)
    torch.distributed.init_process_group(
        "gloo", store=store, rank=index, world_size=count, timeout=_TIMEOUT
    )


def check_device(name: str | None, count: int) -> None:
    """Refuse a device that is not here, or that is only one for several processes.

    Args:
        name: as the user gave it; None where none was.
        count: of processes.

    Raises:
        UserError: naming the device.
    """
    if pick_device(name).index is not None:
        raise UserError(
            f"device {name!r} is one device and there are {count} processes; give cpu or cuda, "
            "and every process takes its own"
        )


def share(total: int, index: int, count: int) -> range:
    """The consecutive samples of process ``index`` of ``count``; sizes differ by one at most."""
    return range(index * total // count, (index + 1) * total // count)


def generate_sharded(
    processes: Processes,
    model: DiffusionLM,
    num_samples: int,
    length: int | None = None,
    steps: int = 16,
    *,
    prompt: Sequence[Any] | None = None,
    infill: Sequence[Any] | None = None,
    seed: int | None = None,
    **settings: Any,
) -> GenerationOutput:
    """What :func:`idlm.generate` returns, made by all processes together.

    Args:
        processes: of :func:`join`.
        model: the same in every process, each on its own device.
        num_samples: N, over all processes; may be fewer than there are processes.
        length: tokens per sample.
        steps: sampler steps.
        prompt: None, or a list of N prompts.
        infill: None, or a list of N infills.
        seed: of the whole call; the main process draws one if not given.
        settings: further arguments of :func:`idlm.generate`; ``callback`` sees the samples of its
            own process.

    Returns:
        All N samples, on every process; ``nfe`` and ``seconds`` are the largest of any process.

    Raises:
        UserError: for a request outside what the model can do, on every process.
        RuntimeError: on every process, if one failed.
    """
    if seed is None:
        seed = processes.gather(secrets.randbits(31))[0]
    mine = share(num_samples, processes.index, processes.count)

    def work() -> GenerationOutput | None:
        if num_samples > 0 and not mine:
            return None
        return generate(
            model,
            min(num_samples, len(mine)),  # a number below 1 is generate's to refuse
            length,
            steps,
            prompt=None if prompt is None else list(prompt[mine.start : mine.stop]),
            infill=None if infill is None else list(infill[mine.start : mine.stop]),
            seed=seed,
            first_index=mine.start,
            **settings,
        )

    parts = processes.gather(processes.together(work))
    return _merged([p for p in parts if p is not None], blank_id(model.process))


def _merged(parts: Sequence[GenerationOutput], blank: int) -> GenerationOutput:
    """All parts as one; behind the end of a short infill stands ``blank``, as in each part."""
    width = max(part.tokens.shape[1] for part in parts)
    nfe = max(part.nfe for part in parts)
    written = max(part.tokens_per_call * part.nfe for part in parts)
    return GenerationOutput(
        tokens=torch.cat(
            [F.pad(p.tokens, (0, width - p.tokens.shape[1]), value=blank) for p in parts]
        ),
        nfe=nfe,
        tokens_per_call=written / nfe,
        seconds=max(part.seconds for part in parts),
        seed=parts[0].seed,
        lengths=torch.cat([part.lengths for part in parts]),
    )
