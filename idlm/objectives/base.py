"""What an objective is given and what it gives back."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import ClassVar, Literal, NamedTuple

import torch
from torch import Tensor

from idlm import random
from idlm.models.modeling import DiffusionLM
from idlm.random import Stream
from idlm.schedules import stratified_times

TimeDraws = Literal["independent", "tied"]


@dataclass(frozen=True)
class Draw:
    """Names the randomness of one micro-batch: same names, same numbers, on any topology.

    Attributes:
        sample: running number of each sequence in the whole run, int64 ``[B]``.
        batch_size: global batch size; sequence ``i`` sits in time stratum ``i mod batch_size``.
        seed: the run's seed.
        step: number of the update.
    """

    sample: Tensor
    batch_size: int
    seed: int
    step: int

    def uniform(self, *shape: int, stream: Stream) -> Tensor:
        """float64 uniforms ``[B, *shape]``."""
        return random.uniform(
            *shape, sample=self.sample, seed=self.seed, step=self.step, stream=stream
        )

    def normal(self, *shape: int, stream: Stream, dtype: torch.dtype | None = None) -> Tensor:
        """Standard normals ``[B, *shape]``, fp32 by default, four to a Philox block."""
        return random.dense_normal(
            *shape, sample=self.sample, seed=self.seed, step=self.step, stream=stream, dtype=dtype
        )

    def times(self, stream: Stream, *, permuted: bool = False) -> Tensor:
        """Stratified times ``[B]`` in fp32 (methods A.2).

        Args:
            stream: two draws from different streams have independent offsets in their strata.
            permuted: assign the strata by a permutation of the global batch. Without it a
                sequence has the same stratum in every draw, so two times differ by less than
                ``1 / batch_size`` (methods C.7.2).
        """
        stratum = self.sample % self.batch_size
        if permuted:
            order = random.permutation(self.batch_size, seed=self.seed, step=self.step)
            stratum = order.to(stratum.device)[stratum]
        noise = self.uniform(stream=stream)
        return stratified_times(stratum, self.batch_size, noise).float()


def two_times(draw: Draw, how: TimeDraws) -> tuple[Tensor, Tensor]:
    """Times of the student's input and of a state that is noised from scratch, each ``[B]``."""
    return draw.times(Stream.TIME), draw.times(Stream.TIME_2, permuted=how == "independent")


class Networks(NamedTuple):
    """The three networks of a distillation."""

    teacher: DiffusionLM
    student: DiffusionLM
    fake: DiffusionLM


@dataclass
class LossSum:
    """A loss as a sum: the caller divides by the token count of the whole update.

    Attributes:
        total: scalar in nats, summed over tokens and sequences, with gradient.
        tokens: how many tokens the sum stands for (all positions, scored or not).
        logs: scalars to show, each already a mean over this micro-batch.
        asked: positions that the student answered, the weight of its mean entropy; ``tokens`` if
            not given.
    """

    total: Tensor
    tokens: int
    logs: dict[str, Tensor] = field(default_factory=dict)
    asked: int | None = None

    @property
    def mean(self) -> Tensor:
        """Nats per token."""
        return self.total / self.tokens


class DistillationObjective(ABC):
    """An alternating objective, as the distillation module runs it.

    Attributes:
        processes: names of the processes it is defined for, see :mod:`idlm.objectives.pairing`.
    """

    processes: ClassVar[tuple[str, ...]] = ()

    @abstractmethod
    def auxiliary_loss(self, networks: Networks, tokens: Tensor, draw: Draw) -> LossSum:
        """Loss of the fake model; no gradient reaches teacher or student."""

    @abstractmethod
    def student_loss(self, networks: Networks, tokens: Tensor, draw: Draw) -> LossSum:
        """Loss of the student; no gradient reaches teacher or fake model."""


@contextmanager
def frozen(*networks: DiffusionLM) -> Iterator[None]:
    """Let gradient pass through networks to their inputs, and leave none on their parameters."""
    parameters = [p for network in networks for p in network.parameters() if p.requires_grad]
    try:
        for parameter in parameters:
            parameter.requires_grad_(False)
        yield
    finally:
        for parameter in parameters:
            parameter.requires_grad_(True)


def row_weights(weight: Tensor, rows: Tensor) -> Tensor:
    """Weights per sequence ``[B]`` spread over the True positions of ``rows`` ``[B, L]``."""
    return weight.unsqueeze(-1).expand(rows.shape)[rows]


def mean(values: Tensor) -> Tensor:
    """Mean of ``[N]`` for the logs; NaN where nothing is scored, which averages leave out."""
    return values.mean()
