"""What every diffusion process over tokens can answer."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import ClassVar

import torch
from torch import Tensor

from idlm.errors import UserError
from idlm.schedules import Schedule


class Process(ABC):
    """How clean tokens become noise and back.

    Built as ``kind(vocab_size, schedule)``; one of your own becomes known by
    :func:`idlm.processes.register`. The forward process keeps each token with probability alpha_t
    and otherwise replaces it by a draw from the prior, independently per position (methods 0).

    Attributes:
        name: how configs and checkpoints call it.
        has_mask: whether V counts a mask beside the tokenizer's tokens. A network of a process
            without one is told the time unless asked otherwise.
        schedule: alpha_t.
        vocab_size: number of states V, the mask included where there is one.
        mask_id: the mask's state; None for a process without.
    """

    name: str
    has_mask: ClassVar[bool] = False
    mask_id: int | None = None

    def __init__(self, schedule: Schedule, vocab_size: int) -> None:
        if vocab_size < 2:
            raise UserError(f"vocab_size is {vocab_size}; a process needs at least two states")
        self.schedule = schedule
        self.vocab_size = vocab_size

    @abstractmethod
    def prior(self, shape: tuple[int, ...], like: Tensor, noise: Tensor | None = None) -> Tensor:
        """Tokens of pure noise, int64 of ``shape`` on the device of ``like``.

        Args:
            shape: of the result.
            like: a tensor on the device that is wanted.
            noise: uniforms in ``[0, 1)``, float64 of ``shape``, which decide the tokens; torch's
                own generator does when they are left out.
        """

    @abstractmethod
    def corrupt(self, x0: Tensor, t: Tensor, noise: Tensor) -> Tensor:
        """Draw z_t ~ q(z_t | x0) for tokens ``[B, L]``, times ``[B]`` and uniforms ``[B, L]``."""

    @abstractmethod
    def log_probs(self, logits: Tensor, z_t: Tensor) -> Tensor:
        """log p(x0 | z_t), natural log, from raw logits ``[B, L, V]`` and states ``[B, L]``."""

    @abstractmethod
    def nll_per_token(self, log_probs: Tensor, x0: Tensor, z_t: Tensor, t: Tensor) -> Tensor:
        """Integrand of the continuous-time NELBO in nats, ``[B, L]``."""

    @abstractmethod
    def posterior(self, x0: Tensor, z_t: Tensor, s: Tensor, t: Tensor) -> Tensor:
        """q(z_s | x0, z_t) for s < t as probabilities ``[B, L, V]``."""


def column(t: Tensor, like: Tensor) -> Tensor:
    """Times ``[B]`` or ``[B, 1]`` as ``[B, 1]`` in the floating dtype of ``like``."""
    return t.reshape(-1, 1).to(like.dtype if like.is_floating_point() else t.dtype)


def as_probabilities(x0: Tensor, vocab_size: int) -> Tensor:
    """Tokens ``[B, L]`` as one-hot rows, probabilities ``[B, L, V]`` as they are, in float64."""
    if x0.is_floating_point():
        return x0.double()
    return torch.nn.functional.one_hot(x0, vocab_size).double()
