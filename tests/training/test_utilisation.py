"""FLOPs are those of the matrix products, and the utilisation is their rate over the peak."""

from __future__ import annotations

import pytest
import torch

from idlm.models import DiffusionConfig, DiffusionLM
from idlm.objectives import DMMD, Draw, Networks, chunks
from idlm.objectives.alternating_masked import simulate
from idlm.training.utilisation import Utilisation

CPU = torch.device("cpu")


def test_a_product_counts_two_flops_for_each_multiplication() -> None:
    found = Utilisation()
    x = torch.randn(3, 5, requires_grad=True)
    with found.counting(0):
        (x @ torch.randn(5, 7)).sum().backward()
    # forward, and backward to x alone, in two seconds
    assert found.rates(0, 2.0, CPU, "32-true") == {"tflops": 2 * (2 * 3 * 5 * 7) / 2.0 / 1e12}


def test_only_the_first_update_of_a_kind_is_counted() -> None:
    found = Utilisation()
    for which, size in ((0, 2), (0, 9), (1, 4)):
        with found.counting(which):
            torch.ones(size, size) @ torch.ones(size, size)
    rates = [found.rates(which, 1.0, CPU, "32-true")["tflops"] for which in (0, 1)]
    assert rates == pytest.approx([16e-12, 128e-12])


@pytest.mark.parametrize(
    ("name", "precision", "limit"),
    [
        ("NVIDIA H200", "bf16-mixed", 989e12),
        ("NVIDIA H200", "32-true", 67e12),
        ("NVIDIA H100 PCIe", "bf16-mixed", 756e12),
        ("NVIDIA H100 80GB HBM3", "bf16-mixed", 989e12),
        ("NVIDIA H100 NVL", "bf16-mixed", 835e12),
        ("NVIDIA A100-SXM4-80GB", "32-true", 19.5e12),
        ("NVIDIA H200", "64-true", None),
        ("NVIDIA GeForce MX150", "bf16-mixed", None),
    ],
)
def test_the_peak_is_that_of_the_device_and_the_precision(
    name: str, precision: str, limit: float | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: name)
    device = torch.device("cuda", 0)
    found = Utilisation()
    with found.counting(0):
        torch.ones(1, 1) @ torch.ones(1, 1)
    rates = found.rates(0, 1.0, device, precision)
    assert rates.get("mfu") == (None if limit is None else 2 / limit)


def test_the_chunks_of_a_loss_are_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    """What runs inside of an autograd function counts; what V columns cost is known exactly."""
    tokens, draw, dim = torch.zeros(4, 8, dtype=torch.int64), Draw(torch.arange(4), 4, 0, 0), 16
    counts, objective = [], DMMD()
    for vocab in (50, 80):
        config = DiffusionConfig(
            vocab_size=vocab,
            model_length=8,
            hidden_dim=dim,
            cond_dim=8,
            n_blocks=1,
            n_heads=1,
            dropout=0.0,
        )
        networks = Networks(*(DiffusionLM(config) for _ in range(3)))
        monkeypatch.setattr(chunks, "NUMBERS", 3 * vocab)
        found = Utilisation()
        with found.counting(0):
            objective.student_loss(networks, tokens, draw).total.backward()
        counts.append(found.rates(0, 1.0, CPU, "32-true")["tflops"] * 1e12)
    state = simulate(objective, networks.student, tokens, draw)
    asked, scored = int(state.asked.sum()), int(state.scored.sum())
    assert 0 < scored < asked
    # heads: the student's at all asked positions and back to features and weights from the scored
    # ones, the teacher's and the fake model's forward at the scored ones
    rows = asked + 2 * scored + 2 * scored
    assert counts[1] - counts[0] == pytest.approx(2 * rows * dim * (80 - 50))
