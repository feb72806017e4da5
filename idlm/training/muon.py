"""Muon for the block matrices, AdamW for the rest, as one optimiser.

Teachers start on a plateau at the unigram entropy; Muon (Jordan et al. 2024; ``torch.optim.Muon``)
leaves it in a fraction of the updates AdamW needs (measured: docs/decisions.md). It orthogonalises
the momentum of a matrix, so embeddings, head, conditioning and vectors stay with AdamW.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.optim import AdamW, Muon, Optimizer


def block_matrices(network: nn.Module) -> list[nn.Parameter]:
    """The attention and MLP matrices of the transformer blocks, a DiT's or a GPT-2's."""
    return [
        p
        for name, p in network.named_parameters()
        if p.requires_grad
        and p.dim() == 2
        and (".blocks." in name or ".h." in name)
        and ".adaLN" not in name
        and ".latent." not in name
    ]


class MuonAdamW(Optimizer):
    """Two optimisers that step, schedule, save and load as one.

    Args:
        network: whose trainable parameters are split by :func:`block_matrices`.
        muon_lr: learning rate of the matrices (momentum 0.95).
        lr, betas: of AdamW for the rest.
        weight_decay: decoupled, of both.
    """

    def __init__(
        self,
        network: nn.Module,
        *,
        muon_lr: float,
        lr: float,
        betas: tuple[float, float],
        weight_decay: float,
    ) -> None:
        matrices = block_matrices(network)
        taken = {id(p) for p in matrices}
        rest = [p for p in network.parameters() if p.requires_grad and id(p) not in taken]
        self._parts: list[Optimizer] = [
            Muon(matrices, lr=muon_lr, weight_decay=weight_decay),
            AdamW(rest, lr=lr, betas=betas, eps=1e-8, weight_decay=weight_decay),
        ]
        # the groups are shared, so that schedulers and clipping see both
        super().__init__([group for part in self._parts for group in part.param_groups], {})

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Step both; ``closure`` runs once."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for part in self._parts:
            part.step()
        return loss

    def state_dict(self) -> dict[str, Any]:
        """The two states, in order."""
        return {"parts": [part.state_dict() for part in self._parts]}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore both and share their groups again."""
        for part, state in zip(self._parts, state_dict["parts"], strict=True):
            part.load_state_dict(state)
        self.param_groups = [group for part in self._parts for group in part.param_groups]
