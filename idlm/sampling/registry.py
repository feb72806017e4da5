"""Which sampler a process has."""

from __future__ import annotations

from idlm.errors import UserError
from idlm.processes import Absorbing, Process, Uniform
from idlm.sampling.ancestral import sample_ancestral
from idlm.sampling.base import Sampler
from idlm.sampling.uniform import sample_uniform

SAMPLERS: dict[str, Sampler] = {
    Absorbing.name: sample_ancestral,
    Uniform.name: sample_uniform,
}


def sampler_for(process: Process) -> Sampler:
    """The sampler of a process.

    Raises:
        UserError: if there is none.
    """
    if process.name not in SAMPLERS:
        raise UserError(
            f"the model's process is {process.name!r}, which has no sampler; "
            f"generate with a model of one of: {', '.join(sorted(SAMPLERS))}"
        )
    return SAMPLERS[process.name]
