"""No objective makes a tensor of all positions times the vocabulary, forward or backward."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from idlm.bench.speed_plain import plain_duo_student_loss
from idlm.models import DiffusionConfig, DiffusionLM
from idlm.objectives import (
    DMMD,
    IDLM,
    SDTT,
    VADD,
    AlternatingDistillation,
    Di4C,
    Draw,
    DuoDCD,
    IDLMDuo,
    InstantMomentMatching,
    Networks,
    chunks,
    masked_nelbo,
    uniform_nelbo,
)

V, B, L, D = 1009, 4, 16, 8
TABLE = B * L * V
TOKENS = torch.arange(B * L).reshape(B, L) % (V - 1)
DRAW = Draw(torch.arange(B), B, 3, 1)


class Largest(TorchDispatchMode):
    """The most numbers in memory that any operation puts out, views counted as what they show."""

    numbers = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        tensors = [leaf for leaf in tree_leaves(out) if isinstance(leaf, Tensor)]
        sizes = [x.untyped_storage().nbytes() // x.element_size() for x in tensors]
        self.numbers = max(self.numbers, *sizes, 0)
        return out


def model(seed: int, process: str, latent: tuple[int, int] = (0, 0)) -> DiffusionLM:
    config = DiffusionConfig(
        vocab_size=V,
        model_length=L,
        hidden_dim=D,
        cond_dim=4,
        n_blocks=1,
        n_heads=2,
        dropout=0.0,
        time_conditioning=True,
        latent_global=latent[0],
        latent_position=latent[1],
        process=process,
    )
    made = DiffusionLM(config)
    generator = torch.Generator().manual_seed(seed)
    for weight in made.parameters():
        nn.init.normal_(weight, std=0.4, generator=generator)
    return made


def networks(objective: Any, process: str) -> Networks:
    teacher = model(1, process).requires_grad_(False)
    sizes: dict[type, tuple[int, int]] = {VADD: (3, 0), SDTT: (0, 0), DuoDCD: (0, 0)}
    student = model(2, process, sizes.get(type(objective), (3, 2)))
    auxiliary = None
    if objective.trains != "student":
        auxiliary = objective.make_auxiliary(teacher, student).requires_grad_(True)
    return Networks(teacher, student, auxiliary)


OBJECTIVES: dict[str, tuple[Any, str]] = {
    "idlm": (IDLM(), "absorbing"),
    "idlm, told the time": (IDLM(fake_sees="input_time", pure_noise=0.3), "absorbing"),
    "dmmd": (DMMD(target_steps=2), "absorbing"),
    "dmmd, sharpened": (DMMD(teacher_temperature=0.8, teacher_top_p=0.7), "absorbing"),
    "sdtt": (SDTT(num_steps=16), "absorbing"),
    "vadd": (VADD(kl_warmup=0, samples=2), "absorbing"),
    "di4c": (Di4C(num_latents=2), "absorbing"),
    "instant": (InstantMomentMatching(), "absorbing"),
    "uniform dmmd": (DMMD(target_steps=2), "uniform"),
    "uniform, fresh": (AlternatingDistillation(renoise="fresh", anchor=0.0), "uniform"),
    "idlm-duo": (IDLMDuo(), "uniform"),
    "idlm-duo, detached": (IDLMDuo(detach_state=True), "uniform"),
    "duo-dcd": (DuoDCD(num_steps=16), "uniform"),
    "uniform di4c": (Di4C(num_latents=2), "uniform"),
    "uniform instant": (InstantMomentMatching(), "uniform"),
}


@pytest.mark.parametrize("name", OBJECTIVES)
def test_no_loss_makes_a_table_of_positions_times_vocabulary(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Chunks of three positions of four sequences; nothing of more than two such chunks."""
    monkeypatch.setattr(chunks, "NUMBERS", 12 * V)
    objective, process = OBJECTIVES[name]
    trio = networks(objective, process)
    losses = [objective.student_loss]
    if objective.trains == "alternating":
        losses.append(objective.auxiliary_loss)
    for loss in losses:
        with Largest() as largest:
            loss(trio, TOKENS, DRAW).total.backward()
        # the table of the head, that of a chunk's, latents side by side
        assert V * D <= largest.numbers <= 2 * 12 * V < TABLE / 2


@pytest.mark.parametrize("process", ["absorbing", "uniform"])
def test_no_teachers_loss_makes_a_table(process: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(chunks, "NUMBERS", 12 * V)
    loss = {"absorbing": masked_nelbo, "uniform": uniform_nelbo}[process]
    with Largest() as largest:
        loss(model(1, process), TOKENS, DRAW).total.backward()
    assert V * D <= largest.numbers <= 2 * 12 * V


def test_the_probe_sees_a_table_where_there_is_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(chunks, "NUMBERS", 12 * V)
    objective = IDLMDuo()
    with Largest() as largest:
        plain_duo_student_loss(objective, networks(objective, "uniform"), TOKENS, DRAW)
    assert largest.numbers == TABLE
