"""Entropies and divergences of rows of log-probabilities, in nats."""

from __future__ import annotations

import math

import torch
from torch import Tensor


def log_mean_exp(values: Tensor, dim: int) -> Tensor:
    """LME: the logarithm of the mean of exp(values) over one dimension."""
    return torch.logsumexp(values, dim) - math.log(values.shape[dim])


def row_dot(a: Tensor, b: Tensor) -> Tensor:
    """<a, b> of rows ``[..., V]``, ``[...]``, without a table of their products."""
    with torch.autocast(a.device.type, enabled=False):  # which would sum in bf16
        return torch.linalg.vecdot(a, b)


def entropy(log_p: Tensor) -> Tensor:
    """Entropy of finite log-probabilities ``[..., V]``, without gradient, ``[...]``."""
    with torch.no_grad():
        return -row_dot(log_p.exp(), log_p)


def kl(log_p: Tensor, log_q: Tensor) -> Tensor:
    """KL(p || q), ``[...]`` for finite log-probabilities ``[..., V]``.

    ``log_q`` may be a mean of log-probabilities: what comes out is the mean of the divergences.
    """
    return (log_p.exp() * (log_p - log_q)).sum(-1)


def divergence(kind: str, log_student: Tensor, log_teacher: Tensor) -> Tensor:
    """How far the student's distribution is from the teacher's.

    Args:
        kind: ``kl-bwd`` for KL(student || teacher) and ``kl-fwd`` for KL(teacher || student), in
            nats; ``mse`` for the sum of squared differences of probabilities, ``tvd`` for half the
            sum of their absolute differences.
        log_student: natural-log probabilities ``[..., V]``, finite.
        log_teacher: alike.

    Returns:
        ``[...]``, never negative.

    Raises:
        ValueError: for another kind.
    """
    if kind == "kl-bwd":
        return kl(log_student, log_teacher)
    if kind == "kl-fwd":
        return kl(log_teacher, log_student)
    difference = log_student.exp() - log_teacher.exp()
    if kind == "mse":
        return difference.square().sum(-1)
    if kind == "tvd":
        return 0.5 * difference.abs().sum(-1)
    raise ValueError(f"kind is {kind!r}; choose one of kl-bwd, kl-fwd, mse, tvd")
