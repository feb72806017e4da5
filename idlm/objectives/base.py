"""What an objective is given and what it gives back."""

from __future__ import annotations

import copy
from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, ClassVar, Literal, NamedTuple, cast

import torch
from torch import Tensor, nn

from idlm import random
from idlm.models.dit import Latent
from idlm.models.modeling import DiffusionLM
from idlm.random import Stream
from idlm.schedules import stratified_times

if TYPE_CHECKING:
    from torch.optim.swa_utils import AveragedModel

TimeDraws = Literal["independent", "tied"]
Trains = Literal["alternating", "jointly", "student"]


@dataclass(frozen=True)
class Draw:
    """Names the randomness of one micro-batch: same names, same numbers, on any topology.

    Attributes:
        sample: running number of each sequence in the whole run, int64 ``[B]``.
        batch_size: global batch size; sequence ``i`` sits in time stratum ``i mod batch_size``.
        seed: the run's seed.
        step: number of the update.
        training: whether an update follows; False where a loss is only measured.
        own_strata: whether the strata are those of these rows alone, as after :meth:`rows`.
    """

    sample: Tensor
    batch_size: int
    seed: int
    step: int
    training: bool = True
    own_strata: bool = False

    def uniform(self, *shape: int, stream: Stream) -> Tensor:
        """float64 uniforms ``[B, *shape]``."""
        return random.uniform(
            *shape, sample=self.sample, seed=self.seed, step=self.step, stream=stream
        )

    def normal(
        self, *shape: int, stream: Stream, dtype: torch.dtype | None = None, first: int = 0
    ) -> Tensor:
        """Standard normals ``[B, *shape]``, fp32 by default, four to a Philox block.

        Those from row ``first`` on of a longer draw, see :func:`idlm.random.dense_normal`.
        """
        names: dict[str, Any] = {"sample": self.sample, "seed": self.seed, "step": self.step}
        return random.dense_normal(*shape, **names, stream=stream, dtype=dtype, first=first)

    def latent(self, model: DiffusionLM, length: int) -> Latent | None:
        """A fresh latent for every sequence; None for a network without."""
        return model.sample_latent(self.sample, length, seed=self.seed, step=self.step)

    def branch(self, number: int) -> Draw:
        """Other randomness for the same sequences: for a second draw of a kind in one update.

        Args:
            number: 1 or more, a number of its own for each further draw.
        """
        # odd multiples of the golden ratio's 64 bits: seeds that nobody counts up to
        return replace(self, seed=(self.seed + number * 0x9E3779B97F4A7C15) % (1 << 64))

    def rows(self, sample: Tensor) -> Draw:
        """The draw of some of the sequences: their own numbers, and strata that cover [0, 1] alone.

        In the strata of the global batch the rows of a micro batch are neighbours: the times of a
        part would span a sliver of [0, 1], and a mean over it would be one over that sliver.

        Args:
            sample: running numbers of the chosen sequences, int64 ``[R]``.
        """
        return replace(self, sample=sample, own_strata=True)

    def strata(self, *, permuted: bool = False) -> tuple[Tensor, int]:
        """The time stratum of each sequence, int64 ``[B]``, and how many strata there are.

        Args:
            permuted: assign them by a permutation, see :meth:`times`.
        """
        if self.own_strata:
            count = self.sample.shape[0]
            stratum = torch.arange(count, device=self.sample.device)
        else:
            count = self.batch_size
            stratum = self.sample % count
        if permuted:
            stratum = self.permutation(count).to(stratum.device)[stratum]
        return stratum, count

    def permutation(self, count: int) -> Tensor:
        """A permutation of ``range(count)``, the same for all parts that ask for that count."""
        return random.permutation(count, seed=self.seed, step=self.step)

    def times(self, stream: Stream, *, permuted: bool = False) -> Tensor:
        """Stratified times ``[B]`` in fp32 (methods A.2).

        Args:
            stream: two draws from different streams have independent offsets in their strata.
            permuted: assign the strata by a permutation of the global batch, after :meth:`rows`
                of those rows alone. Without it a sequence has the same stratum in every draw, so
                two times differ by less than one over the number of strata (methods C.7.2).
        """
        stratum, count = self.strata(permuted=permuted)
        return stratified_times(stratum, count, self.uniform(stream=stream)).float()


def two_times(draw: Draw, how: TimeDraws) -> tuple[Tensor, Tensor]:
    """Times of the student's input and of a state that is noised from scratch, each ``[B]``."""
    return draw.times(Stream.TIME), draw.times(Stream.TIME_2, permuted=how == "independent")


def matching_times(draw: Draw, target_steps: int) -> tuple[Tensor, Tensor]:
    """t = min(1, s + U(0, 1/k)) and s ~ U(0, 1), each ``[B]``, s stratified over the batch.

    Of moment matching (methods D.2, E.1); k = ``target_steps``, the number of sampling steps.
    """
    s = draw.times(Stream.TIME)
    delta = draw.uniform(stream=Stream.TIME_2).float() / target_steps
    return (s + delta).clamp(max=1.0), s


class Networks(NamedTuple):
    """The networks of a distillation.

    Attributes:
        teacher: frozen.
        student: the generator.
        auxiliary: what the objective trains beside the student, if anything: a fake model in most
            cases, see :meth:`DistillationObjective.make_auxiliary`.

    For continuous data, teacher and student are :class:`idlm.models.continuous.ContinuousDenoiser`.
    """

    teacher: DiffusionLM
    student: DiffusionLM
    auxiliary: nn.Module | None = None

    @property
    def fake(self) -> DiffusionLM:
        """The auxiliary network, where it is a denoiser that follows the student."""
        if self.auxiliary is None:
            raise RuntimeError("this objective has no fake model")
        return cast(DiffusionLM, self.auxiliary)


@dataclass
class LossSum:
    """A loss as a sum: the caller divides by the token count of the whole update.

    Attributes:
        total: scalar, summed over tokens and sequences, with gradient; in nats unless the objective
            says otherwise (squared distances of moment matching, SDTT's ``mse`` and ``tvd``, a
            GAN's loss).
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
        """``total`` per token."""
        return self.total / self.tokens


class DistillationObjective(ABC):
    """A method, as the distillation module runs it.

    Attributes:
        processes: names of the processes it is defined for, see :mod:`idlm.objectives.pairing`.
        trains: what an update changes. ``alternating``: the auxiliary network by
            :meth:`auxiliary_loss`, then the student by :meth:`student_loss`, in turns;
            ``jointly``: both by :meth:`student_loss`, with one optimiser; ``student``: the student
            alone, and there is no auxiliary network.
        latent: sizes of the student's latent (vector, per position) unless others are asked for.
        fake_per_student: auxiliary updates before each student update unless others are asked for;
            an alternating method's alone.
        changes_teacher: whether :meth:`after_student_update` may change the teacher's weights,
            which are then part of every checkpoint.
        shardable: whether it runs under FSDP: each of its losses calls ``features`` of the same
            networks equally often in every process, whatever the batch holds, because each call
            gathers weights from all of them.
    """

    processes: ClassVar[tuple[str, ...]] = ()
    trains: ClassVar[Trains] = "alternating"
    latent: ClassVar[tuple[int, int]] = (64, 64)
    fake_per_student: ClassVar[int] = 1
    changes_teacher: ClassVar[bool] = False
    shardable: ClassVar[bool] = False

    def check(self, teacher: DiffusionLM, student: DiffusionLM) -> None:  # noqa: B027
        """Refuse networks that the method cannot work with; the process is checked before.

        Raises:
            UserError: naming what does not fit.
        """

    def make_auxiliary(self, teacher: DiffusionLM, student: DiffusionLM) -> nn.Module | None:
        """The network that is trained beside the student, new for every run.

        By default a fake model, a copy of the teacher, for an alternating method, and none else.
        """
        return copy.deepcopy(teacher) if self.trains == "alternating" else None

    def auxiliary_loss(self, networks: Networks, tokens: Tensor, draw: Draw) -> LossSum:
        """Loss of the auxiliary network; no gradient reaches teacher or student.

        Only an alternating method has one.
        """
        raise RuntimeError(f"{type(self).__name__} has no auxiliary updates")

    @abstractmethod
    def student_loss(self, networks: Networks, tokens: Tensor, draw: Draw) -> LossSum:
        """Loss of the student; no gradient reaches teacher or, if alternating, auxiliary network.

        Its logs hold ``student_entropy``, in nats, where the student predicts tokens.
        """

    def after_student_update(  # noqa: B027
        self, networks: Networks, average: AveragedModel, updates: int
    ) -> None:
        """Called when ``updates`` student updates have been made, the last one just now.

        Args:
            networks: of the run.
            average: the student's EMA.
            updates: how many student updates there were so far, from 1.
        """

    def state_dict(self) -> dict[str, Any]:
        """What a resumed run needs beside the networks."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:  # noqa: B027
        """Take back what :meth:`state_dict` gave."""


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


@contextmanager
def fresh_casts(network: nn.Module) -> Iterator[None]:
    """Under autocast, keep no casts of the weights.

    For weights that are other tensors at every call: a cached cast would never be used again, and
    all of them would stay alive until the trainer leaves autocast, at the end of the whole update.
    And for a pass without gradient before one with it: PyTorch 2.9 would use the first one's casts
    again, through which no gradient comes back.

    Args:
        network: tells the device.
    """
    device = next(network.parameters()).device.type
    if not torch.is_autocast_enabled(device):
        yield
        return
    with torch.autocast(device, torch.get_autocast_dtype(device), cache_enabled=False):
        yield


def row_weights(weight: Tensor, rows: Tensor) -> Tensor:
    """Weights per sequence ``[B]`` spread over the True positions of ``rows`` ``[B, L]``."""
    return weight.unsqueeze(-1).expand(rows.shape)[rows]


def mean(values: Tensor) -> Tensor:
    """Mean of ``[N]`` for the logs; NaN where nothing is scored, which averages leave out."""
    return values.mean()
