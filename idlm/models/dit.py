"""The diffusion transformer of MDLM and Duo, with the published parameter names and shapes.

Axes: B batch, L length, D hidden_dim, C cond_dim, V vocab_size (methods A.5). One file, and so a
long one: the network is read beside its published namesake, part by part.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from idlm.errors import UserError
from idlm.models.attention import attend, rotary_tables, rotate
from idlm.models.config import DiffusionConfig

_FREQUENCIES = 256


class Latent(NamedTuple):
    """epsilon, the generator's noise input; a part that the network lacks is ``None``.

    Attributes:
        vector: global Gaussian vector ``[B, G]``, enters every adaLN.
        position: Gaussian noise per position ``[B, L, P]``, added to the embedding of masks, or of
            every token where the process has no mask.
    """

    vector: Tensor | None
    position: Tensor | None


class Embedded:
    """States that are embedded already: given in place of tokens, they enter the first block.

    Relaxed states are embedded in pieces (:meth:`idlm.models.DiffusionLM.embedder`), because of
    ``[B, L, V]`` scores a network needs no more than ``[B, L, D]``.

    Args:
        states: ``[B, L, D]``, floating point.

    Raises:
        UserError: for another type or number of dimensions.
    """

    # not a tuple or a dataclass: FSDP looks into those for tensors with gradient, and would reduce
    # the embedding's gradient when that of the states is known, before it has been made

    def __init__(self, states: Tensor) -> None:
        if states.dim() != 3 or not states.is_floating_point():
            raise UserError(
                f"embedded states are {states.dtype} of shape {tuple(states.shape)}; pass floating "
                "point [B, L, D], as the network's embedder() makes them"
            )
        self.states = states


class LayerNorm(nn.Module):
    """Layer norm without bias, computed in fp32 at least (eps 1e-5)."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(dim))

    def forward(self, x: Tensor) -> Tensor:
        wide = x if x.dtype == torch.float64 else x.float()
        return F.layer_norm(wide, wide.shape[-1:]) * self.weight


class VocabEmbed(nn.Module):
    """The token embedding, a bare parameter as published."""

    def __init__(self, vocab_size: int, dim: int) -> None:
        super().__init__()
        self.embedding = nn.Parameter(torch.empty(vocab_size, dim))
        nn.init.kaiming_uniform_(self.embedding, a=math.sqrt(5))

    def forward(self, tokens: Tensor) -> Tensor:
        """Look up integer states ``[B, L]``, or mix by softmax of float states ``[B, L, V]``."""
        if tokens.is_floating_point():
            # Duo's relaxed input; full precision because the mixture is nearly one-hot (B.6)
            with torch.autocast(tokens.device.type, enabled=False):
                mixture = torch.softmax(tokens.to(self.embedding.dtype), -1)
                # one product of two matrices, where matmul may make one for each sequence
                return (mixture.flatten(0, -2) @ self.embedding).view(*tokens.shape[:-1], -1)
        return self.embedding[tokens]


class SigmaMap(nn.Module):
    """Sinusoidal embedding of sigma, cosine first, through a two-layer MLP."""

    def __init__(self, cond_dim: int) -> None:
        super().__init__()
        self.mlp = nn.Sequential(
            nn.Linear(_FREQUENCIES, cond_dim), nn.SiLU(), nn.Linear(cond_dim, cond_dim)
        )

    def forward(self, sigma: Tensor) -> Tensor:
        half = _FREQUENCIES // 2
        dtype = next(self.mlp.parameters()).dtype
        index = torch.arange(half, device=sigma.device, dtype=torch.float32)
        frequency = torch.exp(-math.log(10000.0) * index / half)
        angle = sigma.to(torch.promote_types(dtype, torch.float32)).unsqueeze(-1) * frequency
        return self.mlp(torch.cat([angle.cos(), angle.sin()], dim=-1).to(dtype))


class Rotary(nn.Module):
    """Holds ``inv_freq`` (base 10000), a buffer that published checkpoints carry."""

    inv_freq: Tensor

    def __init__(self, dim: int) -> None:
        super().__init__()
        # the published order of operations: a file without the buffer gives the same bits
        self.register_buffer("inv_freq", 1.0 / 10000.0 ** (torch.arange(0, dim, 2).float() / dim))

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Rotary:
        """Never below fp32: half precision would move the angles at position 1000 by radians."""
        kept = self.inv_freq
        super()._apply(fn, recurse)
        if self.inv_freq.dtype in (torch.float16, torch.bfloat16):
            self.inv_freq = kept.to(self.inv_freq.device)
        return self


class Block(nn.Module):
    """Attention and MLP, each modulated and gated by adaLN."""

    def __init__(self, config: DiffusionConfig) -> None:
        super().__init__()
        dim = config.hidden_dim
        self.n_heads = config.n_heads
        self.norm1 = LayerNorm(dim)
        self.attn_qkv = nn.Linear(dim, 3 * dim, bias=False)
        self.attn_out = nn.Linear(dim, dim, bias=False)
        self.norm2 = LayerNorm(dim)
        self.mlp = nn.Sequential(
            nn.Linear(dim, 4 * dim), nn.GELU(approximate="tanh"), nn.Linear(4 * dim, dim)
        )
        self.adaLN_modulation = nn.Linear(config.cond_dim, 6 * dim)
        nn.init.zeros_(self.adaLN_modulation.weight)
        nn.init.zeros_(self.adaLN_modulation.bias)
        self.dropout = nn.Dropout(config.dropout)
        self.attention = "auto"

    def forward(
        self, x: Tensor, modulation: Tensor, cos: Tensor, sin: Tensor, at: Tensor | None = None
    ) -> Tensor:
        """States ``[B, L, D]`` after the block, or those at positions ``at``.

        Args:
            x: states ``[B, L, D]``.
            modulation: of adaLN and latent, ``[B, 6D]``, or each position's own, ``[B, L, 6D]``.
            cos: of :func:`~idlm.models.attention.rotary_tables`.
            sin: alike.
            at: int64 ``[B, M]``: make only these states, ``[B, M, D]``. They look at every
                position, and what follows the attention knows one position alone.
        """
        modulation = modulation.unsqueeze(1) if modulation.dim() == 2 else modulation
        shift, scale, *_ = modulation.chunk(6, -1)
        y = self.norm1(x) * (1 + scale) + shift
        batch, length, dim = y.shape
        qkv = self.attn_qkv(y.to(x.dtype))
        q, k, v = qkv.view(batch, length, 3, self.n_heads, dim // self.n_heads).unbind(2)
        # rotate in the tables' precision, attend in the projections'
        k = rotate(k, cos, sin).to(v.dtype)
        if at is not None:
            x, q, cos, sin = take_positions(x, at), take_positions(q, at), cos[at], sin[at]
            modulation = take_positions(modulation.expand(-1, length, -1), at)
        q = rotate(q, cos, sin).to(v.dtype)
        mixed = attend(q, k, v, backend=self.attention).flatten(2)
        _, _, gate, shift, scale, mlp_gate = modulation.chunk(6, -1)
        x = x + gate * self.dropout(self.attn_out(mixed))
        y = self.norm2(x) * (1 + scale) + shift
        return x + mlp_gate * self.dropout(self.mlp(y.to(x.dtype)))


def take_positions(x: Tensor, at: Tensor) -> Tensor:
    """Entries ``[B, M, ...]`` of ``[B, L, ...]`` at positions ``[B, M]``."""
    row = torch.arange(len(at), device=at.device).unsqueeze(1)
    return x[row, at]


class Projection(nn.Linear):
    """A linear layer with very many outputs: without gradient, on a CPU, some at a time.

    MKL makes a table of 50,258 columns a quarter to a third faster in parts of 1,024.
    """

    columns = 1024

    def forward(self, x: Tensor) -> Tensor:
        if torch.is_grad_enabled() or x.device.type != "cpu" or self.out_features <= self.columns:
            return super().forward(x)
        parts = zip(self.weight.split(self.columns), self.bias.split(self.columns), strict=True)
        return torch.cat([F.linear(x, *part) for part in parts], -1)


class OutputLayer(nn.Module):
    """Final norm, its modulation, and the vocabulary projection (the head)."""

    def __init__(self, config: DiffusionConfig) -> None:
        super().__init__()
        self.norm_final = LayerNorm(config.hidden_dim)
        self.linear = Projection(config.hidden_dim, config.vocab_size)
        self.adaLN_modulation = nn.Linear(config.cond_dim, 2 * config.hidden_dim)
        for parameter in (*self.linear.parameters(), *self.adaLN_modulation.parameters()):
            nn.init.zeros_(parameter)


class LatentMap(nn.Module):
    """Where epsilon enters: zero-initialised, so that a loaded teacher is reproduced exactly.

    The global vector adds its own rows to every adaLN instead of sharing the published ones:
    with ``time_conditioning`` off those have only ever seen one conditioning vector, and pass
    nothing in the other directions.
    """

    def __init__(self, config: DiffusionConfig) -> None:
        super().__init__()
        dim, hidden = config.hidden_dim, config.cond_dim
        self.embed: nn.Linear | None = None
        self.position: nn.Linear | None = None
        if config.latent_global:
            self.embed = nn.Linear(config.latent_global, hidden)
            self.blocks = nn.ModuleList(
                nn.Linear(hidden, 6 * dim, bias=False) for _ in range(config.n_blocks)
            )
            self.output = nn.Linear(hidden, 2 * dim, bias=False)
            for layer in (*self.blocks, self.output):
                nn.init.zeros_(layer.weight)
        if config.latent_position:
            self.position = nn.Linear(config.latent_position, dim, bias=False)
            nn.init.zeros_(self.position.weight)

    def wake(self, scale: float) -> None:
        """Give the silent layers first weights N(0, scale^2 / inputs), from torch's generator."""
        silent = [] if self.embed is None else [*self.blocks, self.output]
        for layer in (*silent, *([] if self.position is None else [self.position])):
            weight = cast(nn.Linear, layer).weight
            nn.init.normal_(weight, std=scale / math.sqrt(weight.shape[1]))

    def modulations(self, vector: Tensor) -> list[Tensor]:
        """What the global vector ``[B, G]`` adds to each block's modulation, output last."""
        assert self.embed is not None  # the caller checks the configuration
        hidden = F.silu(self.embed(vector.to(self.embed.weight.dtype)))
        return [layer(hidden) for layer in (*self.blocks, self.output)]


class DiT(nn.Module):
    """The backbone: states, sigma and latent in, features after the final norm out."""

    blocks: nn.ModuleList
    output_layer: OutputLayer

    def __init__(self, config: DiffusionConfig, *, mask_id: int | None = None) -> None:
        super().__init__()
        self.time_conditioning = config.time_conditioning
        self.mask_id = mask_id
        self.vocab_embed = VocabEmbed(config.vocab_size, config.hidden_dim)
        self.sigma_map = SigmaMap(config.cond_dim)
        self.rotary_emb = Rotary(config.hidden_dim // config.n_heads)
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.n_blocks))
        self.output_layer = OutputLayer(config)
        has_latent = config.latent_global or config.latent_position
        self.latent = LatentMap(config) if has_latent else None
        self.gradient_checkpointing = False

    def forward(
        self,
        tokens: Tensor | Embedded,
        sigma: Tensor,
        latent: Latent | None,
        at: Tensor | None = None,
    ) -> Tensor:
        """Features ``[B, L, D]`` ready for the head.

        Args:
            tokens: states ``[B, L]``, float scores ``[B, L, V]`` of a relaxed state, or its
                embedding.
            sigma: ``[B]``; ignored when the network has no time conditioning.
            latent: epsilon, or ``None`` for a network without.
            at: int64 ``[B, M]``: only these positions' features, ``[B, M, D]``. The last block
                then makes queries, attends and runs its MLP for them alone.
        """
        if not self.time_conditioning:
            sigma = torch.zeros_like(sigma)
        c = F.silu(self.sigma_map(sigma))
        x = self._embedding(tokens)
        extra: list[Any] = [None] * (len(self.blocks) + 1)
        if latent is not None and self.latent is not None:
            if latent.position is not None and self.latent.position is not None:
                noise = self.latent.position(latent.position.to(x.dtype))
                if self.mask_id is not None:
                    noise = noise * _masked(tokens, self.mask_id).unsqueeze(-1)
                x = x + noise
            if latent.vector is not None:
                extra = list(self.latent.modulations(latent.vector))
        cos, sin = rotary_tables(self.rotary_emb.inv_freq, x.shape[1])
        places = [None] * (len(self.blocks) - 1) + [at]
        for module, more, where in zip(self.blocks, extra[:-1], places, strict=True):
            block = cast(Block, module)
            modulation = block.adaLN_modulation(c)
            modulation = modulation if more is None else modulation + more
            if self.gradient_checkpointing and self.training:
                x = checkpoint(block, x, modulation, cos, sin, where, use_reentrant=False)
            else:
                x = block(x, modulation, cos, sin, where)
        modulation = self.output_layer.adaLN_modulation(c)
        modulation = modulation if extra[-1] is None else modulation + extra[-1]
        shift, scale = modulation.unsqueeze(1).chunk(2, -1)
        return self.output_layer.norm_final(x) * (1 + scale) + shift

    def _embedding(self, tokens: Tensor | Embedded) -> Tensor:
        """Tokens ``[B, L]``, scores or embedded states as hidden states ``[B, L, D]``."""
        if not isinstance(tokens, Embedded):
            return self.vocab_embed(tokens)
        size = self.vocab_embed.embedding.shape[1]
        if tokens.states.shape[-1] != size:
            raise UserError(
                f"embedded states have shape {tuple(tokens.states.shape)}, but this network's have "
                f"{size} numbers per position; embed them by the network's own embedder()"
            )
        return tokens.states


def _masked(tokens: Tensor | Embedded, mask_id: int) -> Tensor:
    """Where tokens ``[B, L]`` are masks, which a relaxed state does not say."""
    if isinstance(tokens, Embedded) or tokens.is_floating_point():
        raise UserError(
            "a relaxed state does not say where it is masked, but this network adds a latent "
            "at every mask; pass tokens, or take a network of the uniform process"
        )
    return tokens == mask_id
