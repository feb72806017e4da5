"""The published network once more, from its description alone (methods A.5, B.6).

Nothing is shared with ``idlm``: parameters are plain tensors by their published names, so a file
that this reads is one that the authors' code reads.
"""

from __future__ import annotations

import json
import math
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor


def names(config: dict) -> set[str]:
    """Every tensor a published file holds."""
    found = {f"sigma_map.mlp.{i}.{kind}" for i in (0, 2) for kind in ("weight", "bias")}
    found |= {"vocab_embed.embedding", "rotary_emb.inv_freq", "output_layer.norm_final.weight"}
    found |= {
        f"output_layer.{part}.{kind}"
        for part in ("linear", "adaLN_modulation")
        for kind in ("weight", "bias")
    }
    for i in range(config["n_blocks"]):
        parts = ["norm1.weight", "norm2.weight", "attn_qkv.weight", "attn_out.weight"]
        parts += [f"mlp.{j}.{kind}" for j in (0, 2) for kind in ("weight", "bias")]
        parts += ["adaLN_modulation.weight", "adaLN_modulation.bias"]
        found |= {f"blocks.{i}.{part}" for part in parts}
    return {f"backbone.{name}" for name in found}


def read(folder: Path) -> tuple[dict, dict[str, Tensor]]:
    """Config and tensors of a folder, with exactly the published names."""
    config = json.loads((folder / "config.json").read_text())
    weights = load_file(folder / "model.safetensors")
    assert weights.keys() == names(config)
    return config, {k.removeprefix("backbone."): v for k, v in weights.items()}


def logits(folder: Path, tokens: Tensor, sigma: Tensor) -> Tensor:
    """Raw logits ``[B, L, V]`` in float64."""
    config, stored = read(folder)
    w = {name: value.double() for name, value in stored.items()}
    # Duo's config has no such key: it always conditions
    sigma = sigma.double() if config.get("time_conditioning", True) else torch.zeros(len(sigma))

    def linear(x: Tensor, name: str) -> Tensor:
        y = x @ w[f"{name}.weight"].T
        return y + w[f"{name}.bias"] if f"{name}.bias" in w else y

    def norm(x: Tensor, name: str) -> Tensor:
        centred = x - x.mean(-1, keepdim=True)
        spread = (centred.square().mean(-1, keepdim=True) + 1e-5).sqrt()
        return centred / spread * w[f"{name}.weight"]

    def silu(x: Tensor) -> Tensor:
        return x / (1 + torch.exp(-x))

    def gelu(x: Tensor) -> Tensor:
        return 0.5 * x * (1 + torch.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))

    frequency = torch.exp(-math.log(10000) * torch.arange(128, dtype=torch.float64) / 128)
    angle = sigma[:, None] * frequency
    embedded = torch.cat([angle.cos(), angle.sin()], -1).double()
    c = silu(linear(silu(linear(embedded, "sigma_map.mlp.0")), "sigma_map.mlp.2"))
    x = w["vocab_embed.embedding"][tokens]
    batch, length, dim = x.shape
    heads = config["n_heads"]
    turn = torch.arange(length).double()[:, None] * w["rotary_emb.inv_freq"]
    turn = torch.cat([turn, turn], -1)

    def rotate(y: Tensor) -> Tensor:
        first, second = y.chunk(2, -1)
        return y * turn.cos() + torch.cat([-second, first], -1) * turn.sin()

    for i in range(config["n_blocks"]):
        block = f"blocks.{i}"
        parts = linear(c, f"{block}.adaLN_modulation")[:, None].chunk(6, -1)
        shift_a, scale_a, gate_a, shift_m, scale_m, gate_m = parts
        y = linear(norm(x, f"{block}.norm1") * (1 + scale_a) + shift_a, f"{block}.attn_qkv")
        q, k, v = y.view(batch, length, 3, heads, dim // heads).permute(2, 0, 3, 1, 4)
        scores = rotate(q) @ rotate(k).transpose(-1, -2) / math.sqrt(dim // heads)
        mixed = (scores.softmax(-1) @ v).transpose(1, 2).reshape(batch, length, dim)
        x = x + gate_a * linear(mixed, f"{block}.attn_out")
        y = norm(x, f"{block}.norm2") * (1 + scale_m) + shift_m
        x = x + gate_m * linear(gelu(linear(y, f"{block}.mlp.0")), f"{block}.mlp.2")
    shift, scale = linear(c, "output_layer.adaLN_modulation")[:, None].chunk(2, -1)
    return linear(norm(x, "output_layer.norm_final") * (1 + scale) + shift, "output_layer.linear")
