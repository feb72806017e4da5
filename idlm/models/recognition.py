"""The recognition network of VADD: which latent explains the tokens behind the masks.

Axes as in :mod:`idlm.models.dit`; G is the size of the student's latent vector.
"""

from __future__ import annotations

import math
from typing import NamedTuple, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from idlm.errors import UserError
from idlm.models.attention import check_backend, rotary_tables
from idlm.models.config import DiffusionConfig
from idlm.models.dit import Block, DiT, LayerNorm, Rotary, VocabEmbed
from idlm.models.modeling import DiffusionLM


class Posterior(NamedTuple):
    """r(z | x0, x_t): a Gaussian with diagonal covariance.

    Attributes:
        mean: ``[B, G]``.
        log_std: log of its standard deviations, ``[B, G]``.
    """

    mean: Tensor
    log_std: Tensor

    def sample(self, noise: Tensor) -> Tensor:
        """K latents each, a differentiable function of mean and deviation, ``[B, K, G]``.

        Args:
            noise: standard normal, ``[B, K, G]``.
        """
        return self.mean.unsqueeze(1) + self.log_std.exp().unsqueeze(1) * noise

    def kl(self) -> Tensor:
        """KL(r || N(0, I)) of each dimension in nats, ``[B, G]``; their sum is that of r."""
        return 0.5 * (self.mean**2 + torch.expm1(2 * self.log_std)) - self.log_std

    def log_weight(self, z: Tensor) -> Tensor:
        """log p(z) - log r(z) in nats, ``[B, K]``, for z ``[B, K, G]`` and the prior N(0, I)."""
        distance = (z - self.mean.unsqueeze(1)) * torch.exp(-self.log_std).unsqueeze(1)
        return (0.5 * (distance**2 - z**2) + self.log_std.unsqueeze(1)).sum(-1)


class Recognition(nn.Module):
    """r_phi(z | x0, x_t) of VADD (arXiv 2505.17384): a transformer as large as the denoiser.

    Its input is one sequence, the clean tokens x0. Where x_t is masked enters through one learned
    vector whose adaLN acts at the masked positions only; without it the posterior collapses, as the
    authors report. Only training uses this network.

    The paper's text was not available in full; ours are: all other modulation is one learned vector
    for all positions and times (x_t tells r what it needs of t); the output is a linear map of the
    features' mean over the masked positions; and where nothing is masked r is the prior, which is
    the exact posterior there and spares the bound a cost of w(t) times its KL.

    Args:
        config: of the student; ``latent_global`` is G.

    Raises:
        UserError: if the student has no latent vector.
    """

    def __init__(self, config: DiffusionConfig) -> None:
        super().__init__()
        if not config.latent_global:
            raise UserError(
                "latent_global is 0, so there is no latent vector to recognise; give the student "
                "one, for instance latent_global 64"
            )
        dim, cond, size = config.hidden_dim, config.cond_dim, config.latent_global
        self.vocab_embed = VocabEmbed(config.vocab_size, dim)
        self.rotary_emb = Rotary(dim // config.n_heads)
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.n_blocks))
        self.condition = nn.Parameter(torch.randn(cond))
        self.mask = nn.Parameter(torch.randn(cond))
        # zero: the blocks start as the student's, masked or not
        self.mask_modulation = nn.ModuleList(
            nn.Linear(cond, 6 * dim, bias=False) for _ in range(config.n_blocks)
        )
        for rows in self.mask_modulation:
            nn.init.zeros_(cast(nn.Linear, rows).weight)
        self.norm_final = LayerNorm(dim)
        # The means must tell sequences apart from the first update on: where z says nothing and
        # the student does not listen either, neither of them has a gradient.
        self.output = nn.Linear(dim, 2 * size)
        nn.init.zeros_(self.output.weight)
        nn.init.zeros_(self.output.bias)
        nn.init.normal_(self.output.weight[:size], std=1 / math.sqrt(dim))
        self.gradient_checkpointing = False

    @classmethod
    def from_student(cls, student: DiffusionLM) -> Recognition:
        """A network that starts from the student's embedding and blocks.

        Args:
            student: a denoiser with a latent vector, trained or fresh; it is not changed.
        """
        recognition = cls(student.config).to(device=student.device, dtype=student.dtype)
        backbone: DiT = student.backbone
        own = recognition.state_dict()
        weights = {
            name: value
            for name, value in backbone.state_dict().items()
            if name in own and own[name].shape == value.shape
        }
        weights["norm_final.weight"] = backbone.output_layer.norm_final.weight
        with torch.no_grad():
            # what the student is told of a clean sequence
            none = torch.zeros(1, device=student.device)
            weights["condition"] = F.silu(backbone.sigma_map(none))[0]
        recognition.load_state_dict(weights, strict=False)
        return recognition

    def set_attention(self, backend: str) -> None:
        """Choose ``auto``, ``sdpa`` or ``flash`` for every block.

        Raises:
            UserError: for another name, or flash-attn that is not installed.
        """
        check_backend(backend)
        for block in self.blocks:
            cast(Block, block).attention = backend

    def set_gradient_checkpointing(self, enabled: bool) -> None:
        """Recompute each block in the backward pass instead of keeping its activations."""
        self.gradient_checkpointing = enabled

    def forward(self, x0: Tensor, masked: Tensor) -> Posterior:
        """The posterior of each sequence's latent.

        Args:
            x0: clean tokens, int64 ``[B, L]``.
            masked: True where x_t is the mask, bool ``[B, L]``.
        """
        x, inside = self.vocab_embed(x0), masked.unsqueeze(-1)
        cos, sin = rotary_tables(self.rotary_emb.inv_freq, x.shape[1])
        mark = F.silu(self.mask)

        def step(x: Tensor, block: Block, rows: nn.Linear) -> Tensor:
            modulation = block.adaLN_modulation(self.condition) + inside * rows(mark)
            return block(x, modulation, cos, sin)

        for block, rows in zip(self.blocks, self.mask_modulation, strict=True):
            if self.gradient_checkpointing and self.training:
                x = checkpoint(step, x, block, rows, use_reentrant=False)
            else:
                x = step(x, cast(Block, block), cast(nn.Linear, rows))
        with torch.autocast(x.device.type, enabled=False):
            features = self.norm_final(x) * inside
            pooled = features.sum(1) / inside.sum(1).clamp(min=1)
            out = self.output(pooled.to(self.output.weight.dtype)) * inside.any(1)
        return Posterior(*out.chunk(2, -1))
