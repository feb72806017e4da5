"""Which sampler a process has."""

from __future__ import annotations

from idlm.errors import UserError
from idlm.processes import Absorbing, Process, Uniform, process_class, same_definition
from idlm.sampling.ancestral import sample_ancestral
from idlm.sampling.base import FLOAT32, FLOAT64, Sampler
from idlm.sampling.float32 import sample_float32
from idlm.sampling.uniform import sample_uniform

SAMPLERS: dict[str, Sampler] = {
    Absorbing.name: sample_ancestral,
    Uniform.name: sample_uniform,
}


def register(process: str, sampler: Sampler) -> None:
    """Give a process of your own the sampler of its models.

    For another sampler on a process that has one, see ``sampler`` of :func:`idlm.generate`. A
    function that is defined again, as by a notebook's cell, takes its own place.

    Args:
        process: name of a process that :func:`idlm.processes.register` made known.
        sampler: what writes the open positions of a batch.

    Raises:
        UserError: if the process is unknown or has a sampler, or this is none.
    """
    process_class(process)
    if not callable(sampler):
        raise UserError(f"the sampler {sampler!r} cannot be called; see idlm.sampling.Sampler")
    taken = SAMPLERS.get(process)
    if taken is not None and not same_definition(taken, sampler):
        raise UserError(
            f"the process {process!r} has a sampler; give another to idlm.generate as sampler"
        )
    SAMPLERS[process] = sampler


def sampler_for(process: Process, sampling_dtype: str = FLOAT64) -> Sampler:
    """The sampler of a process.

    Args:
        process: of the model.
        sampling_dtype: of the draws; "float32" is :mod:`idlm.sampling.float32`.

    Raises:
        UserError: if there is none.
    """
    if sampling_dtype == FLOAT32 and process.name != Absorbing.name:
        raise UserError(
            f"sampling_dtype is {sampling_dtype!r}, which is for the absorbing process, but the "
            f"model's is {process.name}; leave sampling_dtype out"
        )
    if process.name not in SAMPLERS:
        raise UserError(
            f"the model's process is {process.name!r}, which has no sampler; "
            f"generate with a model of one of: {', '.join(sorted(SAMPLERS))}"
        )
    return sample_float32 if sampling_dtype == FLOAT32 else SAMPLERS[process.name]
