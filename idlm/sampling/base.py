"""What every sampler takes and what a step callback sees."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from idlm.errors import UserError
from idlm.models.dit import Latent
from idlm.models.modeling import DiffusionLM

# A sampler's head runs on so many positions at once that a table of float64 has this many entries:
# 128 MiB, 333 positions of GPT-2's vocabulary.
ENTRIES = 1 << 24
RANDOM = "random"
ANCESTRAL, GREEDY = TAILS = ("ancestral", "greedy")
FLOAT64, FLOAT32 = SAMPLING_DTYPES = ("float64", "float32")


@dataclass(frozen=True)
class StepState:
    """What a step callback sees, after the step.

    Attributes:
        step: number of the step within its window, from 0.
        steps: how many steps a window has, a greedy tail included.
        tokens: states ``[B, L]`` of the rows being written, clamped tokens included; the mask id
            where a position is still masked, or V without a mask where no window has begun.
        revealed: positions revealed in this step, bool ``[B, L]``; the uniform process redraws
            every position that is not given in every step.
        nfe: network calls of this batch so far.
        sample: running numbers of the rows, int64 ``[B]``.
        probabilities: the distributions that the tokens of ``revealed.nonzero()`` were drawn from,
            after temperature and nucleus, float64 ``[R, V]``; ``None`` unless asked for.
        window: number of the semi-autoregressive window, 0 without windows.
    """

    step: int
    steps: int
    tokens: Tensor
    revealed: Tensor
    nfe: int
    sample: Tensor
    probabilities: Tensor | None = None
    window: int = 0


Callback = Callable[[StepState], None]


@dataclass(frozen=True)
class Settings:
    """How to sample, the same for every row.

    Attributes:
        steps: N, network calls per window at most.
        seed: of the whole call.
        temperature: divides the logits of the clean-token prediction.
        top_p: nucleus of the clean-token prediction, after the temperature.
        order: which positions reveal first, a name of :data:`idlm.sampling.orders.ORDERS`.
        tail: how the uniform process ends, a name of :data:`TAILS`.
        sampling_dtype: of the categorical draws, a name of :data:`SAMPLING_DTYPES`.
        probabilities: whether callbacks get the distributions that tokens were drawn from.
    """

    steps: int
    seed: int
    temperature: float = 1.0
    top_p: float = 1.0
    order: str = RANDOM
    probabilities: bool = False
    tail: str = ANCESTRAL
    sampling_dtype: str = FLOAT64

    @property
    def rounds(self) -> int:
        """Steps of a window, the call of a greedy tail included."""
        return self.steps + (self.tail == GREEDY)


def compile_for_sampling(model: DiffusionLM) -> None:
    """Compile the backbone in place for many samples of one length.

    The first call for each shape takes the compiler's time, up to torch's limit of shapes. On CUDA
    the backbone is captured in a CUDA graph and replayed at every step (``reduce-overhead``).

    Raises:
        UserError: on a CPU without a C++ compiler, which compiling for it needs.
    """
    if model.device.type == "cuda":
        model.compile_backbone(mode="reduce-overhead", dynamic=False)
        return
    compilers = [os.environ.get("CXX"), "g++", "clang++"]
    if not any(shutil.which(name) for name in compilers if name):
        raise UserError(
            "compiling for a CPU needs a C++ compiler, and neither $CXX nor g++ nor clang++ is "
            "here; install one, or sample without compiling"
        )
    model.compile_backbone(dynamic=False)


def features_of(model: DiffusionLM, tokens: Tensor, sigma: Tensor, latent: Latent | None) -> Tensor:
    """The network's features ``[B, L, D]``, to be used up before the next call.

    A compiled network may be a CUDA graph, which writes to the same memory at every call.
    """
    if model.compiled:
        torch.compiler.cudagraph_mark_step_begin()
    return model.features(tokens, sigma, latent)


def features_at(
    model: DiffusionLM, tokens: Tensor, sigma: Tensor, latent: Latent | None, asked: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Features ``[R, D]`` at the positions that are asked for, and where these are.

    The last block works for these alone: with 64 of 1024 positions a call, a network of twelve
    blocks is done after little more than eleven. A compiled network, which wants one shape for all
    steps, works for all of them.

    Args:
        model: who is called.
        tokens: states ``[B, L]``.
        sigma: ``[B]``.
        latent: epsilon.
        asked: bool ``[B, L]``. On the host, where a plan is, nothing waits for the device.

    Returns:
        Features; row and position of each, int64 ``[R]``, on the model's device.
    """
    found = asked.nonzero()
    row, place = found.to(tokens.device, non_blocking=True).unbind(1)
    width = int(asked.sum(1).max())
    # features that somebody put in place of the network's own know no positions
    own = "features" not in vars(model)
    if model.compiled or not own or width == asked.shape[1]:
        return features_of(model, tokens, sigma, latent)[row, place], row, place
    slot = (asked.cumsum(1) - 1)[asked]
    at = found.new_zeros(len(asked), width).index_put((found[:, 0], slot), found[:, 1])
    hidden = model.features(tokens, sigma, latent, at=at.to(tokens.device, non_blocking=True))
    return hidden[row, slot.to(tokens.device, non_blocking=True)], row, place


def calling(model: DiffusionLM, asked: Tensor) -> Tensor:
    """Numbers of the rows that a call is made for, int64 ``[R]``.

    A row that asks for nothing costs no backbone: with as many steps as tokens that is every third
    row. A compiled network takes every row, if any, since it wants one shape for all steps.

    Args:
        model: who is called.
        asked: how many positions each row asks for, or whether it does, ``[B]``.
    """
    rows = asked.nonzero().squeeze(1)
    return torch.arange(len(asked), device=asked.device) if model.compiled and len(rows) else rows


class Sampler(Protocol):
    """Writes the open positions of a batch; the seam between a process and ``generate``."""

    def __call__(
        self,
        model: DiffusionLM,
        tokens: Tensor,
        write: Tensor,
        sample: Tensor,
        settings: Settings,
        *,
        window: int = 0,
        callback: Callback | None = None,
    ) -> tuple[Tensor, int]:
        """Sample clean tokens where ``write`` is True and leave the others as they are.

        Args:
            model: in eval mode.
            tokens: int64 ``[B, L]`` on the model's device; ignored where ``write`` is True.
            write: bool ``[B, L]``.
            sample: running numbers of the rows, int64 ``[B]``. Every random number depends on
                (seed, step, sample) alone, so that a row does not depend on its batch.
            settings: steps, seed, temperature, nucleus, order and tail.
            window: its step i draws the random numbers of step ``window * settings.rounds + i``.
            callback: called after every step.

        Returns:
            Clean tokens int64 ``[B, L]``, and the number of network calls made.
        """
        ...
