"""The lean losses are the plain ones, and hold no table of them."""

from __future__ import annotations

import gc
import weakref
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from idlm.bench.speed_plain import plain_auxiliary_loss, plain_student_loss
from idlm.models import DiffusionConfig, DiffusionLM
from idlm.objectives import (
    DMMD,
    IDLM,
    SDTT,
    VADD,
    Draw,
    InstantMomentMatching,
    LossSum,
    Networks,
    chunks,
    masked_nelbo,
    mdlm,
    sdtt,
)
from idlm.objectives.alternating import AlternatingDistillation
from idlm.objectives.chunks import sum_of_rows

V, B, L = 13, 4, 9
TOKENS = torch.arange(B * L).reshape(B, L) % (V - 1)
DRAW = Draw(torch.arange(B), B, 3, 1)

OBJECTIVES: dict[str, AlternatingDistillation] = {
    "idlm": IDLM(),
    "idlm, tied": IDLM(time_draws="tied"),
    "idlm, told the time": IDLM(fake_sees="input_time", pure_noise=0.3),
    "idlm, told of the masks": IDLM(fake_sees="input_masks"),
    "idlm, anchored": AlternatingDistillation(renoise="fresh", anchor=0.7),
    "dmmd": DMMD(),
    "dmmd, one step": DMMD(target_steps=1, weighting="flat"),
    "dmmd, told of the masks": DMMD(target_steps=2, fake_sees="input_masks"),
    "dmmd, sharpened": DMMD(teacher_temperature=0.8, teacher_top_p=0.7, nucleus_penalty=1.5),
}


UNIFORM: dict[str, AlternatingDistillation] = {
    "dmmd": DMMD(),
    "dmmd, one step": DMMD(target_steps=1, weighting="flat"),
    "dmmd, told the time": DMMD(target_steps=1, fake_sees="input_time"),
    "dmmd, sharpened": DMMD(teacher_temperature=0.8, teacher_top_p=0.7, nucleus_penalty=1.5),
    "from scratch, no anchor": AlternatingDistillation(renoise="fresh", anchor=0.0),
}


def model(
    seed: int,
    dtype: torch.dtype,
    *,
    latent: tuple[int, int] = (0, 0),
    process: str = "absorbing",
) -> DiffusionLM:
    config = DiffusionConfig(
        vocab_size=V,
        model_length=L,
        hidden_dim=8,
        cond_dim=4,
        n_blocks=1,
        n_heads=2,
        dropout=0.0,
        time_conditioning=True,
        latent_global=latent[0],
        latent_position=latent[1],
        process=process,
    )
    made = DiffusionLM(config).to(dtype)
    generator = torch.Generator().manual_seed(seed)
    for weight in made.parameters():
        nn.init.normal_(weight, std=0.4, generator=generator)
    return made


def networks(objective: Any, dtype: torch.dtype, process: str = "absorbing") -> Networks:
    teacher = model(1, dtype, process=process).requires_grad_(False)
    sizes: dict[type, tuple[int, int]] = {VADD: (3, 0), SDTT: (0, 0)}
    student = model(2, dtype, latent=sizes.get(type(objective), (3, 2)), process=process)
    auxiliary = None
    if objective.trains != "student":
        auxiliary = objective.make_auxiliary(teacher, student)
        for number, weight in enumerate(auxiliary.parameters()):
            nn.init.normal_(
                weight.requires_grad_(True),
                std=0.4,
                generator=torch.Generator().manual_seed(90 + number),
            )
    return Networks(teacher, student, auxiliary)


def outcome(loss: Any, trio: Networks) -> tuple[LossSum, dict[str, Tensor]]:
    for network in trio:
        if network is not None:
            network.zero_grad()
    found = loss(trio, TOKENS, DRAW)
    found.total.backward()
    return found, {
        f"{n}.{name}": weight.grad.clone()
        for n, network in enumerate(trio)
        if network is not None
        for name, weight in network.named_parameters()
        if weight.grad is not None
    }


# relative to the largest entry: in fp32 a sum of 36 rows of 13 terms keeps six digits
TOLERANCE = {torch.float64: 1e-10, torch.float32: 1e-5}


def assert_same(ours: Any, theirs: Any, dtype: torch.dtype) -> None:
    scale = TOLERANCE[dtype]
    # terms of a few nats, a hundred of them, may cancel
    assert ours[0].total.item() == pytest.approx(theirs[0].total.item(), abs=100 * scale)
    assert ours[1].keys() == theirs[1].keys()
    largest = max(float(g.abs().max()) for g in theirs[1].values())
    assert largest > 1e-3
    for name, gradient in theirs[1].items():
        torch.testing.assert_close(
            ours[1][name], gradient, rtol=scale, atol=scale * largest, msg=name
        )


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("rows", [1, 4, 1000])
@pytest.mark.parametrize(
    ("process", "name"),
    [*(("absorbing", name) for name in OBJECTIVES), *(("uniform", name) for name in UNIFORM)],
)
def test_the_lean_losses_are_the_plain_ones_in_value_and_gradient(
    process: str, name: str, rows: int, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(chunks, "NUMBERS", rows * V)
    objective = (OBJECTIVES if process == "absorbing" else UNIFORM)[name]
    trio = networks(objective, dtype, process)
    for lean, plain in (
        (objective.student_loss, plain_student_loss),
        (objective.auxiliary_loss, plain_auxiliary_loss),
    ):
        theirs = outcome(lambda *args, plain=plain: plain(objective, *args), trio)
        assert_same(outcome(lean, trio), theirs, dtype)


OTHERS: dict[str, Any] = {
    "sdtt": SDTT(round_updates=1),
    "vadd": VADD(kl_warmup=0, samples=2),
    "instant": InstantMomentMatching(),
}
ALL = {**OBJECTIVES, **OTHERS, "teacher": None}


def loss_of(name: str) -> tuple[Any, Networks]:
    objective = ALL[name] or SDTT(round_updates=1)
    trio = networks(objective, torch.float64)
    if name == "teacher":
        return (lambda trio, *args: masked_nelbo(trio.student, *args)), trio
    return objective.student_loss, trio


def _whole(fn: Any, *tables: Tensor, **_: Any) -> tuple[Tensor, ...]:
    return tuple(out.sum() for out in fn(*tables))


@pytest.mark.parametrize("name", [*OTHERS, "teacher"])
def test_chunks_change_no_value_and_no_gradient(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Against autograd through the whole table, which needs no word on what is trained."""
    loss, trio = loss_of(name)
    with monkeypatch.context() as patch:
        for module in (mdlm, sdtt):
            patch.setattr(module, "sum_of_rows", _whole)
        patch.setattr(chunks, "checkpoint", lambda fn, *tables, **_: fn(*tables))
        whole = outcome(loss, trio)
    monkeypatch.setattr(chunks, "NUMBERS", 2 * V)
    parts = outcome(loss, trio)
    assert_same(parts, whole, torch.float64)
    assert any("output_layer.linear" in name for name in whole[1])
    for key, value in whole[0].logs.items():
        torch.testing.assert_close(parts[0].logs[key].detach(), value.detach())  # fp64


class Kept:
    """What the graph holds on to, seen from outside."""

    def __init__(self, tensor: Tensor) -> None:
        self.tensor = tensor


@pytest.mark.parametrize("name", ["idlm", "dmmd", "vadd", "sdtt", "teacher"])
def test_the_graph_keeps_no_table_of_the_vocabulary(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """When the loss is there, nothing of V columns is kept for the backward pass but gradients."""
    loss, trio = loss_of(name)
    weights = {weight.data_ptr() for model in trio if model for weight in model.parameters()}
    kept: list[weakref.ref[Kept]] = []

    def pack(tensor: Tensor) -> Kept:
        box = Kept(tensor)
        if tensor.shape[-1:] == (V,) and tensor.data_ptr() not in weights:
            kept.append(weakref.ref(box))
        return box

    monkeypatch.setattr(chunks, "NUMBERS", 2 * V)
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda box: box.tensor):
        found = loss(trio, TOKENS, DRAW)
    gc.collect()
    alive = [box.tensor.numel() for box in (ref() for ref in kept) if box is not None]
    assert found.total.requires_grad
    assert sum(alive) == 0
    if name != "vadd":  # computed again there, nothing is saved at first
        assert kept  # it was there while a chunk was worked on


def test_bf16_autocast_leaves_heads_and_losses_in_fp32() -> None:
    objective = OBJECTIVES["dmmd"]
    trio = networks(objective, torch.float32)
    exact = objective.student_loss(trio, TOKENS, DRAW)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = objective.student_loss(trio, TOKENS, DRAW)
        plain = plain_student_loss(objective, trio, TOKENS, DRAW)
    found.total.backward()
    assert found.total.dtype == torch.float32
    assert found.total.item() == pytest.approx(plain.total.item(), abs=1e-4)
    assert found.total.item() != exact.total.item()  # the backbone did run in bf16
    assert all(
        p.grad.dtype == torch.float32 for p in trio.student.parameters() if p.grad is not None
    )


def test_a_position_goes_through_the_students_head_once(monkeypatch: pytest.MonkeyPatch) -> None:
    for objective in OBJECTIVES.values():
        trio, rows = networks(objective, torch.float64), []
        head = trio.student.head

        def counted(x: Tensor, head: Any = head, rows: list[int] = rows) -> Tensor:
            rows.append(len(x))
            return head(x)

        monkeypatch.setattr(trio.student, "head", counted)
        found = objective.student_loss(trio, TOKENS, DRAW)
        assert sum(rows) == found.asked


def test_sums_and_gradients_of_rows_by_hand() -> None:
    x = torch.arange(6.0, dtype=torch.float64).reshape(3, 2).requires_grad_()
    w = torch.tensor([2.0, -1.0], dtype=torch.float64, requires_grad=True)
    unused = torch.zeros(5, requires_grad=True)

    def fn(x: Tensor, k: Tensor) -> tuple[Tensor, Tensor]:
        return k * (x @ w) ** 2, x.sum(-1)

    k = torch.tensor([1, 2, 3])
    total, logged = sum_of_rows(fn, x, k, trained=[w, unused], vocab_size=chunks.NUMBERS)
    # x @ w = -1, 1, 3
    assert (total.item(), logged.item()) == (1 + 2 + 27, 15)
    assert not logged.requires_grad
    (3 * total).backward()
    expected = 3 * 2 * torch.tensor([-1.0, 2.0, 9.0]).double()
    torch.testing.assert_close(x.grad, expected.unsqueeze(-1) * w.detach())
    torch.testing.assert_close(w.grad, (expected.unsqueeze(-1) * x.detach()).sum(0))
    assert unused.grad is None
    with torch.no_grad():
        assert sum_of_rows(fn, x, k, trained=(), vocab_size=1)[0].item() == 30


def test_no_row_gives_no_loss_and_no_gradient() -> None:
    x = torch.zeros(0, 2, requires_grad=True)
    w = torch.ones(2, requires_grad=True)
    (total,) = sum_of_rows(lambda x: (x @ w,), x, trained=[w], vocab_size=3)
    total.backward()
    assert total.item() == 0.0
    assert torch.equal(w.grad, torch.zeros(2))


def test_the_gradient_cannot_be_differentiated_again() -> None:
    x = torch.ones(2, 2, requires_grad=True)
    (total,) = sum_of_rows(lambda x: (x.pow(3).sum(-1),), x, trained=(), vocab_size=3)
    with pytest.raises(RuntimeError, match="cannot be differentiated again"):
        torch.autograd.grad(total, x, create_graph=True)


def test_the_gradient_is_taken_once() -> None:
    x = torch.ones(2, 2, requires_grad=True)
    (total,) = sum_of_rows(lambda x: (x.pow(3).sum(-1),), x, trained=(), vocab_size=3)
    total.backward(retain_graph=True)
    with pytest.raises(RuntimeError, match="was taken before"):
        total.backward()


def test_the_plain_losses_draw_the_lean_ones_tokens() -> None:
    """Without equal draws nothing above would agree; this says so where it would fail."""
    from idlm.bench.speed_plain import _simulate
    from idlm.objectives.alternating_masked import simulate

    for objective in OBJECTIVES.values():
        trio = networks(objective, torch.float64)
        assert torch.equal(
            simulate(objective, trio.student, TOKENS, DRAW).z,
            _simulate(objective, trio.student, TOKENS, DRAW)[1],
        )


def test_the_race_of_the_published_code_has_the_law_of_our_draws_and_moves_no_mask() -> None:
    from idlm.bench.speed_plain import _simulate, _winner

    law = torch.tensor([0.5, 0.3, 0.2, 0.0])
    race = torch.Generator().manual_seed(1)
    share = _winner(law.repeat(40_000, 1), race).bincount(minlength=4) / 40_000
    # four standard deviations of a share of a half
    torch.testing.assert_close(share, law, atol=0.01, rtol=0)
    for objective in OBJECTIVES.values():
        student = networks(objective, torch.float64).student
        ours, raced = (
            _simulate(objective, student, TOKENS, DRAW, generator)[1] for generator in (None, race)
        )
        mask = student.process.mask_id
        assert torch.equal(ours == mask, raced == mask)
