"""The network against a second, plain implementation, and against the published shapes."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from idlm.errors import UserError
from idlm.models import DiffusionConfig, DiffusionLM
from idlm.models.attention import attend, rotary_tables, rotate
from idlm.models.dit import Embedded, Latent, Projection

Make = Callable[..., DiffusionLM]

BLOCK_SHAPES = {
    "norm1.weight": (768,),
    "attn_qkv.weight": (2304, 768),
    "attn_out.weight": (768, 768),
    "norm2.weight": (768,),
    "mlp.0.weight": (3072, 768),
    "mlp.0.bias": (3072,),
    "mlp.2.weight": (768, 3072),
    "mlp.2.bias": (768,),
    "adaLN_modulation.weight": (4608, 128),
    "adaLN_modulation.bias": (4608,),
}
PUBLISHED_SHAPES = {
    "vocab_embed.embedding": (50258, 768),
    "sigma_map.mlp.0.weight": (128, 256),
    "sigma_map.mlp.0.bias": (128,),
    "sigma_map.mlp.2.weight": (128, 128),
    "sigma_map.mlp.2.bias": (128,),
    "rotary_emb.inv_freq": (32,),
    "output_layer.norm_final.weight": (768,),
    "output_layer.linear.weight": (50258, 768),
    "output_layer.linear.bias": (50258,),
    "output_layer.adaLN_modulation.weight": (1536, 128),
    "output_layer.adaLN_modulation.bias": (1536,),
    **{f"blocks.{i}.{k}": shape for i in range(12) for k, shape in BLOCK_SHAPES.items()},
}


def test_names_and_shapes_of_the_default_size_are_the_published_ones() -> None:
    with torch.device("meta"):
        model = DiffusionLM(DiffusionConfig())
    shapes = {name: tuple(value.shape) for name, value in model.state_dict().items()}
    assert shapes == {f"backbone.{name}": shape for name, shape in PUBLISHED_SHAPES.items()}
    assert sum(p.numel() for p in model.parameters() if p.requires_grad) == 169_627_218


def mixture(scores: Tensor, table: Tensor) -> Tensor:
    """softmax(scores) times the table, number by number."""
    weight = torch.exp(scores) / torch.exp(scores).sum(-1, keepdim=True)
    return (weight.unsqueeze(-1) * table).sum(-2)


def test_a_relaxed_state_at_a_corner_is_the_token_itself(make: Make, tokens: Tensor) -> None:
    model = make()
    embed = model.backbone.vocab_embed
    corner = 1000.0 * torch.nn.functional.one_hot(tokens, 13).float()
    assert torch.equal(embed(corner), embed(tokens))
    sigma = torch.zeros(2)
    whole, plain = (model.features(state, sigma) for state in (corner, tokens))
    torch.testing.assert_close(whole, plain, rtol=0, atol=1e-6)  # the noise of the mask is not in


@pytest.mark.parametrize("autocast", [False, True])
def test_a_relaxed_state_is_the_mixture_of_its_tokens_in_full_precision(
    make: Make, autocast: bool
) -> None:
    """Also under bf16 autocast, where a product of matrices would round to three digits."""
    embed = make(std=1.0).backbone.vocab_embed
    scores = 3 * torch.randn(2, 5, 13, generator=torch.Generator().manual_seed(1))
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        found = embed(scores)
    assert found.dtype == torch.float32
    expected = mixture(scores.double(), embed.embedding.double())
    torch.testing.assert_close(found.double(), expected, rtol=1e-5, atol=1e-6)  # fp32


def test_the_gradient_of_a_relaxed_state_equals_finite_differences(make: Make) -> None:
    """Of scores and table, and of the scores through the whole network."""
    model = make(std=0.5, vocab_size=4).double()
    embed = model.backbone.vocab_embed
    scores = torch.randn(1, 2, 4, generator=torch.Generator().manual_seed(1)).double()

    def looked_up(scores: Tensor, table: Tensor) -> Tensor:
        return torch.func.functional_call(embed, {"embedding": table}, (scores,))

    inputs = (scores.requires_grad_(), embed.embedding.detach().clone().requires_grad_())
    assert torch.autograd.gradcheck(looked_up, inputs)  # fp64, to 1e-5
    sigma = torch.zeros(1).double()
    assert torch.autograd.gradcheck(lambda x: model.features(x, sigma), (scores,))


def test_a_state_embedded_in_pieces_gives_the_features_of_its_scores(make: Make) -> None:
    model = make(std=0.5, process="uniform", vocab_size=13, latent_position=3).double()
    scores = 3 * torch.randn(2, 5, 13, generator=torch.Generator().manual_seed(1)).double()
    sigma, latent = torch.ones(2).double(), Latent(None, torch.randn(2, 5, 3).double())
    embed = model.embedder()
    pieces = torch.cat([embed(scores[:, :3]), embed(scores[:, 3:])], 1)
    torch.testing.assert_close(pieces, mixture(scores, model.backbone.vocab_embed.embedding))
    found = model.features(Embedded(pieces), sigma, latent)
    torch.testing.assert_close(found, model.features(scores, sigma, latent))  # fp64
    at = torch.tensor([[4, 0], [1, 1]])
    some = model.features(Embedded(pieces), sigma, latent, at)
    torch.testing.assert_close(some, found[torch.arange(2).unsqueeze(1), at])
    # and so does a generator that draws its own noise, as many rows as there are
    assert model.features(Embedded(pieces), sigma).shape == found.shape


def test_embedded_states_that_do_not_fit_are_refused(make: Make) -> None:
    model, sigma = make(latent_position=3), torch.zeros(2)
    for states in (torch.zeros(2, 16), torch.zeros(2, 5, 16, dtype=torch.int64)):
        with pytest.raises(UserError, match=r"embedded states are torch\..* pass floating point"):
            Embedded(states)
    with pytest.raises(UserError, match=r"shape \(2, 5, 13\), but this network's have 16 numbers"):
        model.features(Embedded(torch.zeros(2, 5, 13)), sigma)
    for relaxed in (Embedded(torch.zeros(2, 5, 16)), torch.zeros(2, 5, 13)):
        with pytest.raises(UserError, match="does not say where it is masked"):
            model.features(relaxed, sigma)


def spread(x: Tensor) -> float:
    """Root mean square."""
    return float(x.square().mean().sqrt())


def layer_norm(x: Tensor, weight: Tensor) -> Tensor:
    centred = x - x.mean(-1, keepdim=True)
    variance = (centred**2).mean(-1, keepdim=True)
    return centred / torch.sqrt(variance + 1e-5) * weight


def plain_logits(model: DiffusionLM, tokens: Tensor, sigma: Tensor) -> Tensor:
    """The published forward pass (methods A.5), written with loops over heads and positions."""
    w = {k.removeprefix("backbone."): v.double() for k, v in model.state_dict().items()}
    heads, dim = model.config.n_heads, model.config.hidden_dim
    size = dim // heads
    freq = torch.tensor([math.exp(-math.log(10000) * i / 128) for i in range(128)]).double()
    angle = sigma.double()[:, None] * freq
    h = torch.cat([angle.cos(), angle.sin()], -1) @ w["sigma_map.mlp.0.weight"].T
    h = h + w["sigma_map.mlp.0.bias"]
    h = h * torch.sigmoid(h)
    h = h @ w["sigma_map.mlp.2.weight"].T + w["sigma_map.mlp.2.bias"]
    c = h * torch.sigmoid(h)

    def turn(vectors: Tensor) -> Tensor:  # [B, L, size], pairs (j, j + size/2)
        out = vectors.clone()
        for position in range(vectors.shape[1]):
            for j in range(size // 2):
                a = position * 10000.0 ** (-2 * j / size)
                first, second = vectors[:, position, j], vectors[:, position, j + size // 2]
                out[:, position, j] = first * math.cos(a) - second * math.sin(a)
                out[:, position, j + size // 2] = second * math.cos(a) + first * math.sin(a)
        return out

    x = w["vocab_embed.embedding"][tokens]
    for i in range(model.config.n_blocks):
        p = f"blocks.{i}."
        six = c @ w[p + "adaLN_modulation.weight"].T + w[p + "adaLN_modulation.bias"]
        shift_a, scale_a, gate_a, shift_m, scale_m, gate_m = (
            six[:, None, k * dim : (k + 1) * dim] for k in range(6)
        )
        y = layer_norm(x, w[p + "norm1.weight"]) * (1 + scale_a) + shift_a
        qkv = y @ w[p + "attn_qkv.weight"].T
        mixed = []
        for head in range(heads):
            q, k, v = (
                qkv[..., part * dim + head * size : part * dim + (head + 1) * size]
                for part in range(3)
            )
            scores = turn(q) @ turn(k).transpose(1, 2) / math.sqrt(size)
            mixed.append(torch.softmax(scores, -1) @ v)
        x = x + gate_a * (torch.cat(mixed, -1) @ w[p + "attn_out.weight"].T)
        y = layer_norm(x, w[p + "norm2.weight"]) * (1 + scale_m) + shift_m
        y = y @ w[p + "mlp.0.weight"].T + w[p + "mlp.0.bias"]
        y = 0.5 * y * (1 + torch.tanh(math.sqrt(2 / math.pi) * (y + 0.044715 * y**3)))
        x = x + gate_m * (y @ w[p + "mlp.2.weight"].T + w[p + "mlp.2.bias"])
    p = "output_layer."
    two = c @ w[p + "adaLN_modulation.weight"].T + w[p + "adaLN_modulation.bias"]
    x = layer_norm(x, w[p + "norm_final.weight"]) * (1 + two[:, None, dim:]) + two[:, None, :dim]
    return x @ w[p + "linear.weight"].T + w[p + "linear.bias"]


@pytest.mark.parametrize("conditioned", [False, True])
def test_the_forward_pass_is_the_published_one(
    make: Make, tokens: Tensor, conditioned: bool
) -> None:
    model = make(time_conditioning=conditioned)
    sigma = torch.tensor([0.3, 4.0])
    reference = plain_logits(model, tokens, sigma if conditioned else torch.zeros(2))
    assert float(reference.std()) > 0.3
    with torch.no_grad():
        narrow = model(tokens, timesteps=sigma).logits
        wide = model.double()(tokens, timesteps=sigma.double()).logits
    # in fp64 what is left is the fp32 rounding of the two tables of frequencies
    torch.testing.assert_close(wide, reference, atol=2e-5, rtol=0)
    torch.testing.assert_close(narrow.double(), reference, atol=2e-4, rtol=0)  # 40 fp32 layers deep


def test_a_fresh_network_gives_exactly_zero_logits(tokens: Tensor) -> None:
    config = DiffusionConfig(
        vocab_size=13, hidden_dim=16, cond_dim=8, n_blocks=2, n_heads=2, time_conditioning=True
    )
    model = DiffusionLM(config).train()
    logits = model(tokens, timesteps=torch.tensor([0.1, 5.0])).logits
    assert torch.equal(logits, torch.zeros(2, 12, 13))


@pytest.mark.parametrize("sigma", [0.0, 1.5])
def test_the_embedding_of_sigma_has_its_cosines_first(
    make: Make, tokens: Tensor, sigma: float
) -> None:
    model = make(time_conditioning=True)
    seen: list[Tensor] = []
    model.backbone.sigma_map.mlp.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    model(tokens, timesteps=torch.full((2,), sigma))
    freq = torch.exp(-math.log(10000.0) * torch.arange(128) / 128)
    expected = torch.cat([torch.cos(sigma * freq), torch.sin(sigma * freq)]).expand(2, 256)
    torch.testing.assert_close(seen[0], expected, atol=1e-6, rtol=0)  # fp32 cosines


def test_without_time_conditioning_sigma_changes_nothing(make: Make, tokens: Tensor) -> None:
    model = make()
    at_zero = model(tokens).logits
    assert torch.equal(model(tokens, timesteps=torch.tensor([0.5, 6.0])).logits, at_zero)
    conditioned = make(time_conditioning=True)
    moved = conditioned(tokens, timesteps=torch.tensor([0.5, 6.0])).logits
    assert not torch.allclose(moved, at_zero, atol=1e-2)


def test_each_sequence_gets_its_own_time(make: Make, tokens: Tensor) -> None:
    model = make(time_conditioning=True)
    both = model(tokens, timesteps=torch.tensor([0.5, 3.0])).logits
    alone = model(tokens[1:], timesteps=torch.tensor([3.0])).logits
    torch.testing.assert_close(both[1:], alone, atol=1e-4, rtol=0)  # fp32, another batch size
    assert torch.equal(model(tokens, timesteps=torch.tensor([[0.5], [3.0]])).logits, both)


def test_a_time_conditioned_network_insists_on_its_time(make: Make, tokens: Tensor) -> None:
    with pytest.raises(UserError, match="conditioned on time but timesteps is None; pass sigma_t"):
        make(time_conditioning=True)(tokens)
    with pytest.raises(UserError, match=r"timesteps has shape \(3,\) for 2 sequences"):
        make(time_conditioning=True)(tokens, torch.ones(3))


def test_rotation_pairs_the_two_halves_and_leaves_position_zero() -> None:
    cos, sin = rotary_tables(torch.tensor([1.0, 0.01], dtype=torch.float64), 3)
    x = torch.randn(1, 3, 1, 4, dtype=torch.float64)
    turned = rotate(x, cos, sin)
    assert torch.equal(turned[:, 0], x[:, 0])
    complex_x = torch.complex(x[..., :2], x[..., 2:])
    angle = torch.arange(3)[:, None, None] * torch.tensor([1.0, 0.01], dtype=torch.float64)
    expected = complex_x * torch.polar(torch.ones_like(angle), angle)
    torch.testing.assert_close(turned, torch.cat([expected.real, expected.imag], -1))


def test_attention_is_a_scaled_softmax_over_all_positions() -> None:
    q, k, v = torch.randn(3, 2, 5, 3, 4, dtype=torch.float64)
    out = attend(q, k, v, backend="sdpa")
    scores = torch.einsum("bqhe,bkhe->bhqk", q, k) / 2.0
    expected = torch.einsum("bhqk,bkhe->bqhe", torch.softmax(scores, -1), v)
    torch.testing.assert_close(out, expected, atol=1e-12, rtol=0)  # fp64


def test_layer_norms_compute_in_fp32_under_autocast(make: Make, tokens: Tensor) -> None:
    model = make()
    norms = [m for name, m in model.named_modules() if "norm" in name.split(".")[-1]]
    assert len(norms) == 5
    for norm in norms:
        x = (100 + torch.randn(2, 16)).bfloat16()  # a mean that swamps bf16 arithmetic
        exact = layer_norm(x.double(), norm.weight.double())
        with torch.autocast("cpu", torch.bfloat16):
            out = norm(x)
        assert out.dtype == torch.float32
        torch.testing.assert_close(out.double(), exact, atol=1e-3, rtol=0)  # fp32 at 100 +- 1


def test_bf16_autocast_keeps_the_head_in_fp32_and_the_logits_close(
    make: Make, tokens: Tensor
) -> None:
    model = make()
    exact = model(tokens).logits.detach()
    seen: list[torch.dtype] = []
    for block in model.backbone.blocks:
        block.attn_qkv.register_forward_hook(lambda _, __, out: seen.append(out.dtype))
    with torch.autocast("cpu", torch.bfloat16):
        features = model.features(tokens)
        logits = model.head(features)
        assert torch.equal(model(tokens).logits, logits)
    assert seen == [torch.bfloat16] * 4  # the blocks do run in bf16
    assert logits.dtype == torch.float32
    assert torch.equal(logits, model.head(features))  # the head ignores autocast altogether
    # bf16 has 8 bits: errors of 1/256 in both blocks come to about a hundredth of the spread
    assert spread(logits.detach() - exact) < 0.03 * spread(exact)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_weights_keep_their_positions(make: Make, dtype: torch.dtype) -> None:
    """Angles of position 1000 in half precision would be off by radians."""
    model = make(model_length=1024)
    angles = model.backbone.rotary_emb.inv_freq.clone()
    states = torch.randint(0, 13, (1, 1024))
    with torch.no_grad():
        exact = model(states).logits
        model.to(dtype)
        assert model.backbone.blocks[0].attn_qkv.weight.dtype == dtype
        assert torch.equal(model.backbone.rotary_emb.inv_freq, angles)
        half = model(states).logits.float()
    # rounding of 8 or 11 bits, no more; angles in bf16 would make it 0.07
    assert spread(half - exact) < 0.03 * spread(exact)


def test_gradient_checkpointing_recomputes_and_gives_the_same_gradient(
    make: Make, tokens: Tensor
) -> None:
    model = make(dropout=0.2).train()
    calls: list[int] = []
    model.backbone.blocks[0].mlp.register_forward_hook(lambda *_: calls.append(1))
    grads = []
    for enabled in (False, True):
        model.set_gradient_checkpointing(enabled)
        model.zero_grad()
        torch.manual_seed(5)  # the same dropout, which the recomputation has to repeat
        calls.clear()
        model(tokens).logits.square().sum().backward()
        assert len(calls) == 1 + enabled
        grads.append([p.grad.clone() for p in model.parameters() if p.grad is not None])
    assert len(grads[0]) == len(list(model.parameters()))
    for plain, recomputed in zip(*grads, strict=True):
        torch.testing.assert_close(recomputed, plain, atol=1e-6, rtol=1e-5)  # fp32


def test_compilation_leaves_names_and_values_as_they_are(make: Make, tokens: Tensor) -> None:
    model = make()
    names, exact = list(model.state_dict()), model(tokens).logits
    model.compile_backbone(backend="eager")
    torch.testing.assert_close(model(tokens).logits, exact, atol=1e-6, rtol=0)
    assert list(model.state_dict()) == names
    assert not [name for name in names if "_orig_mod" in name]


def test_impossible_sizes_are_refused() -> None:
    with pytest.raises(UserError, match="hidden_dim 16 with n_heads 3 gives no even head size"):
        DiffusionConfig(hidden_dim=16, n_heads=3)
    with pytest.raises(UserError, match="hidden_dim 6 with n_heads 2 gives no even head size"):
        DiffusionConfig(hidden_dim=6, n_heads=2)
    with pytest.raises(UserError, match="latent_global is -1; it must be a whole number, 0"):
        DiffusionConfig(latent_global=-1)


def test_an_infinite_sigma_is_refused_before_it_turns_logits_to_nan() -> None:
    with pytest.raises(UserError, match="schedule_eps is 0 with time_conditioning"):
        DiffusionConfig(time_conditioning=True, schedule_eps=0.0)
    DiffusionConfig(time_conditioning=False, schedule_eps=0.0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_projection_in_parts_is_the_whole_one(
    dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    layer = Projection(6, 50).to(dtype)
    x = torch.randn(2, 3, 6, dtype=dtype)
    whole = layer(x)
    calls: list[int] = []
    linear = torch.nn.functional.linear

    def counted(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        calls.append(len(weight))
        return linear(x, weight, bias)

    monkeypatch.setattr(Projection, "columns", 16)
    monkeypatch.setattr(torch.nn.functional, "linear", counted)
    with torch.no_grad():
        torch.testing.assert_close(layer(x), whole)
    assert calls == [16, 16, 16, 2]
    layer(x)  # with gradient the sum over parts would cost more than it saves
    assert calls[4:] == [50]
