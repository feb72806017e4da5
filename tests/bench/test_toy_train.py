"""What the toys' trainings see, and what they leave alone."""

from __future__ import annotations

import math

import pytest
import torch

from idlm.bench import toys
from idlm.bench.toy_methods import METHODS
from idlm.bench.toy_train import Batches, distil, train_teacher


def test_a_batch_is_a_stratified_sample() -> None:
    toy, size = toys.load("circles", bins=8), 40
    batches = iter(Batches(toy, size, 0, continuous=False))
    counts = torch.stack([toy.counts(next(batches)["input_ids"]) for _ in range(2000)]).double()
    gap = counts[:, :-1] - size * toy.probs
    assert 1.0 < float(gap.abs().max()) < 2.0
    # a cell's count is right in the mean: its deviation is below one
    assert float(gap.mean(0).abs().max()) < 5 / math.sqrt(2000)


@pytest.mark.parametrize("name", ["idlm", "sdtt", "duo-dcd"])
def test_a_students_training_leaves_the_teacher_as_it_is(name: str) -> None:
    toy, method = toys.load("circles", bins=8), METHODS[name]
    teacher, _ = train_teacher(toy, method.process, updates=2, seed=0)
    before = {k: v.clone() for k, v in teacher.state_dict().items()}
    student, _ = distil(toy, method, teacher, latent=0, updates=10, seed=0)
    assert all(torch.equal(v, before[k]) for k, v in teacher.state_dict().items())
    assert any(not torch.equal(v, before[k]) for k, v in student.state_dict().items())
