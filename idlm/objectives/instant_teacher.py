"""The teacher as a function of its weights, for instant moment matching.

Two things are asked of it: the gradient of a loss, and the derivative of its outputs along a
direction in weight space. The second is forward-mode differentiation, which costs about two forward
passes and keeps no graph.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch import distributed as dist
from torch.func import functional_call, jvp
from torch.nn.attention import SDPBackend, sdpa_kernel

from idlm.errors import UserError
from idlm.models.dit import Block
from idlm.objectives.base import fresh_casts

Weights = dict[str, Tensor]


class WeightSpace:
    """A frozen network whose weights are an argument.

    Args:
        network: in eval mode, with whole weights in fp32 or float64.

    Attributes:
        weights: by name, without gradient.

    Raises:
        UserError: if derivatives in its weights would be wrong or too coarse.
    """

    def __init__(self, network: nn.Module) -> None:
        self.network = network
        self.weights: Weights = {name: p.detach() for name, p in network.named_parameters()}
        _check(network)

    def call(self, method: str, weights: Weights, *inputs: Any) -> Tensor:
        """``network.method(*inputs)`` with other weights."""
        named = {f"network.{name}": weight for name, weight in weights.items()}
        return functional_call(_Method(self.network, method), named, inputs)

    def gradient(self, loss: Callable[[Weights], Tensor]) -> Weights:
        """d loss / d weights at the network's own; zeros for weights that do not enter."""
        weights = {name: w.detach().requires_grad_() for name, w in self.weights.items()}
        with torch.enable_grad(), _uncompiled(), fresh_casts(self.network):
            value = loss(weights)
        found = torch.autograd.grad(
            value, list(weights.values()), allow_unused=True, materialize_grads=True
        )
        return dict(zip(weights, found, strict=True))

    def derivative(
        self, fn: Callable[..., Tensor], direction: Weights, *inputs: tuple[Tensor, Tensor]
    ) -> tuple[Tensor, Tensor]:
        """fn(weights, *inputs) and d/de fn(weights + e direction, *inputs + e tangents) at e = 0.

        Args:
            fn: uses the network through :meth:`call`.
            direction: by name, like :attr:`weights`.
            inputs: further arguments of ``fn``, each with its tangent.
        """
        values = (self.weights, *(value for value, _ in inputs))
        tangents = (direction, *(tangent for _, tangent in inputs))
        with ExitStack() as stack:
            for context in (torch.no_grad(), _uncompiled(), _plain_attention(self.network)):
                stack.enter_context(context)
            stack.enter_context(fresh_casts(self.network))
            return cast(tuple[Tensor, Tensor], jvp(fn, values, tangents))


class SecondMoment:
    """v, the running mean of the teacher's squared gradients, and Lambda g = g / (sqrt v + eps).

    Lambda g is the direction of one step of Adam (beta1 = 0) from the teacher. The squares of an
    update are collected while it runs and enter v when it is over, averaged over its micro batches
    and over all processes: so v is the same on each of them, and depends on nothing but earlier
    updates. As in Adam, v then takes in the gradient that it scales, with weight 1 - beta2: a
    weight that hardly ever has a gradient, such as the embedding of a rare token, would be moved
    without bound otherwise. That makes Lambda depend a little on batch A, never on B, which leaves
    a bias of (1 - beta2) / 2 times the skewness of g, in standard deviations of g.

    Args:
        beta2: decay per update; v is corrected for its start as in Adam.
        eps: Adam's, in units of g.
    """

    def __init__(self, beta2: float, eps: float = 1e-8) -> None:
        self.beta2 = beta2
        self.eps = eps
        self.mean: Weights = {}
        self.updates = 0
        self._sum: Weights = {}
        self._count = 0

    def observe(self, gradient: Weights) -> None:
        """Collect the squares of one gradient of the update that is running."""
        for name, g in gradient.items():
            if name in self._sum:
                self._sum[name].addcmul_(g, g)
            else:
                self._sum[name] = g * g
        self._count += 1

    def end_update(self) -> None:
        """Let what was collected enter v; every process of a run has to call it."""
        if not self._count:
            return
        count = torch.tensor(float(self._count), device=next(iter(self._sum.values())).device)
        for total in (*self._sum.values(), count):
            if dist.is_available() and dist.is_initialized():
                dist.all_reduce(total)
        for name, total in self._sum.items():
            square = total / count
            old = self.mean.get(name, torch.zeros_like(square)).to(square.device)
            self.mean[name] = torch.lerp(old, square, 1.0 - self.beta2)
        self.updates += 1
        self._sum, self._count = {}, 0

    def precondition(self, gradient: Weights) -> Weights:
        """Lambda g."""
        fresh = 1.0 - self.beta2
        correction = 1.0 - self.beta2 ** (self.updates + 1)
        out: Weights = {}
        for name, g in gradient.items():
            v = fresh * g * g
            if name in self.mean:
                v.add_(self.mean[name].to(g), alpha=self.beta2)
            out[name] = g / (v.div_(correction).sqrt_() + self.eps)
        return out

    def state_dict(self) -> dict[str, Any]:
        """v and the number of updates it stands for."""
        return {"updates": self.updates, "second_moment": dict(self.mean)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take back what :meth:`state_dict` gave."""
        self.updates = state["updates"]
        self.mean = dict(state["second_moment"])


class _Method(nn.Module):
    """Makes a method of a network the forward pass, which is what ``functional_call`` runs."""

    def __init__(self, network: nn.Module, method: str) -> None:
        super().__init__()
        self.network = network
        self.method = method

    def forward(self, *inputs: Any) -> Tensor:
        return getattr(self.network, self.method)(*inputs)


def _uncompiled() -> Any:
    """A compiled network runs as it is written: the compiler cannot trace replaced weights."""
    return torch.compiler.set_stance("force_eager")


@contextmanager
def _plain_attention(network: nn.Module) -> Iterator[None]:
    """Attention by matrix products: no fused kernel has a forward-mode derivative.

    Neither PyTorch's flash, memory-efficient and cuDNN kernels nor the flash-attn package define
    one (nor a second derivative, by which the two backward passes of the usual trick could
    replace it). No graph is kept, so the tables ``[B, H, L, L]`` live for one block at a time.
    """
    blocks = [module for module in network.modules() if isinstance(module, Block)]
    before = [block.attention for block in blocks]
    try:
        for block in blocks:
            block.attention = "sdpa"
        with sdpa_kernel(SDPBackend.MATH):
            yield
    finally:
        for block, backend in zip(blocks, before, strict=True):
            block.attention = backend


def _check(network: nn.Module) -> None:
    for name, weight in network.named_parameters():
        if weight.dtype not in (torch.float32, torch.float64):
            raise UserError(
                f"the teacher's weight {name} is {weight.dtype}, but instant moment matching "
                "differentiates in the weights; load the teacher in float32 (with precision "
                "bf16-mixed the passes are still bf16)"
            )
        if hasattr(weight, "placements") or not weight.numel():
            raise UserError(
                f"the teacher's weight {name} is sharded over processes, but instant moment "
                "matching differentiates in whole weights; choose --trainer.strategy ddp"
            )
    for module in network.modules():
        if isinstance(module, nn.Dropout) and module.training and module.p:
            raise UserError(
                f"the teacher is in training mode with dropout {module.p}, which would be noise "
                "in the moments; call teacher.eval()"
            )
