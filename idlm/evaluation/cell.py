"""A cell: what is generated for one number of a frontier."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from idlm.sampling.base import GREEDY
from idlm.sampling.generate import SAMPLING_DTYPE
from idlm.sampling.orders import CERTAINTY

ANCESTRAL = "ancestral"
# name in a protocol: arguments of idlm.generate
SAMPLERS: dict[str, dict[str, str]] = {
    ANCESTRAL: {},
    GREEDY: {"tail": GREEDY},
    **{order: {"order": order} for order in CERTAINTY},
}
NETWORK_DTYPES = ("float32", "bfloat16", "float16")


@dataclass(frozen=True)
class Cell:
    """What is generated for one number of the frontier.

    Attributes:
        label: name of the model in tables and plots.
        checkpoint: folder, bundled name or hub id.
        steps: sampler steps.
        temperature: divides the logits of the clean-token prediction.
        top_p: nucleus of the clean-token prediction.
        seed: of the whole set of samples.
        num_samples: sequences.
        length: tokens per sequence.
        sampler: a name of :data:`SAMPLERS`: "ancestral"; "greedy", the greedy tail of the uniform
            process; or an unmasking order.
        sampling_dtype: of the categorical draws, "float64" or the research option "float32".
        network_dtype: of the generator's weights, a name of :data:`NETWORK_DTYPES`.
        revision: hub revision of the checkpoint.
    """

    label: str
    checkpoint: str
    steps: int
    temperature: float = 1.0
    top_p: float = 1.0
    seed: int = 0
    num_samples: int = 64
    length: int = 1024
    sampler: str = ANCESTRAL
    sampling_dtype: str = SAMPLING_DTYPE
    network_dtype: str = "float32"
    revision: str | None = None

    def key(self) -> tuple[Any, ...]:
        """What tells the cells of one frontier apart."""
        fields = asdict(self)
        shared = ("checkpoint", "num_samples", "length", "revision")
        return tuple(value for name, value in fields.items() if name not in shared)

    def __str__(self) -> str:
        plain = {"sampler": ANCESTRAL, "sampling_dtype": SAMPLING_DTYPE, "network_dtype": "float32"}
        other = [f"{getattr(self, k)}, " for k, usual in plain.items() if getattr(self, k) != usual]
        nucleus = f"top-p {self.top_p:g}, " if self.top_p < 1.0 else ""
        return (
            f"{self.label}, {self.steps} steps, T={self.temperature:g}, {nucleus}"
            f"{''.join(other)}seed {self.seed}"
        )
