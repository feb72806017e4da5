"""Teachers and students of the toys, and samples of both."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any, cast

import lightning as L
import torch
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset

import idlm
from idlm.bench.shared import quiet
from idlm.bench.toy_methods import Method, settings_of
from idlm.bench.toy_networks import FastDraw, tiny
from idlm.bench.toys import Toy
from idlm.models.continuous import ContinuousDenoiser
from idlm.objectives.mdlm import masked_nelbo
from idlm.objectives.regression import gaussian_regression
from idlm.objectives.udlm import uniform_nelbo
from idlm.processes.gaussian import ddpm_sample
from idlm.training.distil import DistillationModule
from idlm.training.loop import average_weights, lr_factor

_TEACHER_BATCH = 512
_TEACHER_LR = 1e-2
_LOSSES = {
    "absorbing": masked_nelbo,
    "uniform": uniform_nelbo,
    "gaussian": gaussian_regression,
}
# samples at once: enough to keep a core busy, and its tables in the cache
_ROWS = 5_000
# what a seed is used for, so that no two uses share their numbers
_TEACH, _DISTIL, _SAMPLE = 1, 2, 3


class Batches(IterableDataset):
    """Endless batches of a toy, as the distillation module takes them.

    Each batch is drawn systematically, in random order: a cell's count differs from its expectation
    by less than one, and is right in the mean.
    """

    def __init__(self, toy: Toy, size: int, seed: int, *, continuous: bool) -> None:
        self.toy, self.size, self.seed, self.continuous = toy, size, seed, continuous

    def __iter__(self) -> Iterator[dict[str, Tensor]]:
        generator = torch.Generator().manual_seed(self.seed)
        cumulative = self.toy.probs.cumsum(0)[:-1]
        stratum = torch.arange(self.size, dtype=torch.float64)
        first = 0
        while True:
            noise = torch.rand(self.size, dtype=torch.float64, generator=generator)
            cells = torch.searchsorted(cumulative, (stratum + noise) / self.size, right=True)
            rows = self.toy.cells[cells[torch.randperm(self.size, generator=generator)]]
            index = torch.arange(first, first + self.size)
            first += self.size
            if self.continuous:
                yield {"data": self.toy.scatter(rows, generator), "index": index}
            else:
                yield {"input_ids": rows, "index": index}


def train_teacher(toy: Toy, process: str, *, updates: int, seed: int) -> tuple[Any, float]:
    """The averaged weights of a new teacher, and the seconds of its training.

    The loss is that of :class:`idlm.training.TeacherModule`; the loop is bare.

    Args:
        toy: the data.
        process: ``absorbing``, ``uniform`` or ``gaussian``.
        updates: of 512 sequences each.
        seed: of weights and noise.
    """
    started = time.perf_counter()
    torch.manual_seed(seed)
    continuous = process == "gaussian"
    model: Any
    if continuous:
        model = ContinuousDenoiser(toy.length, hidden=64, blocks=3, data_std=toy.std)
    else:
        model = tiny(toy.tokens, toy.length, process)
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=_TEACHER_LR, betas=(0.9, 0.99), weight_decay=0.0, fused=True
    )
    average = average_weights(model, 0.995)
    batches = iter(Batches(toy, _TEACHER_BATCH, _key(seed, _TEACH), continuous=continuous))
    for update in range(updates):
        factor = lr_factor(update, warmup=min(50, updates), decay="linear", total=updates)
        for group in optimizer.param_groups:
            group["lr"] = _TEACHER_LR * factor
        batch = next(batches)
        data = batch["data" if continuous else "input_ids"]
        draw = FastDraw(batch["index"], len(data), _key(seed, _TEACH), update)
        loss = cast(Any, _LOSSES[process])(model, data, draw)
        optimizer.zero_grad()
        loss.mean.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        average.update_parameters(model)
    return average.module.requires_grad_(False).eval(), time.perf_counter() - started


def distil(
    toy: Toy, method: Method, teacher: Any, *, latent: int, updates: int, seed: int
) -> tuple[Any, float]:
    """The student's averaged weights after its training, and the seconds that took.

    Args:
        toy: the data.
        method: objective and settings.
        teacher: of the method's process; an objective that changes it gets its own copy.
        latent: size of the student's latent vector, 0 for none.
        updates: of the student.
        seed: of the training.

    Raises:
        UserError: from the method, for a latent that it does not take or cannot do without.
    """
    objective = method.make(updates)
    module = DistillationModule.from_networks(
        teacher,
        objective,
        max_student_updates=updates,
        micro_batch_size=method.batch,
        seed=_key(seed, _DISTIL),
        **settings_of(method, latent),
    )
    module.draw_type = FastDraw
    continuous = method.process == "gaussian"
    data = Batches(toy, method.batch, _key(seed, _DISTIL), continuous=continuous)
    kept = {name: value.clone() for name, value in teacher.state_dict().items()}
    started = time.perf_counter()
    with quiet():
        # barebones: Lightning's own logging takes as long as an update
        trainer = L.Trainer(accelerator="cpu", barebones=True, max_epochs=1)
        trainer.fit(module, DataLoader(data, batch_size=None))
    seconds = time.perf_counter() - started
    if objective.changes_teacher:
        teacher.load_state_dict(kept)
    return module.ema.module.requires_grad_(False).eval(), seconds


@torch.no_grad()
def sample(model: Any, toy: Toy, *, count: int, steps: int, seed: int) -> Tensor:
    """Samples in so many steps as sequences of the toy, int64 ``[count, L]``.

    Args:
        model: a teacher or a student.
        toy: for continuous models the grid, whose squares their points are put into.
        count: number of samples.
        steps: network calls for each.
        seed: of the sampling.
    """
    seed = _key(seed, _SAMPLE)
    if not isinstance(model, ContinuousDenoiser):
        return idlm.generate(
            model, count, toy.length, steps, seed=seed, batch_size=min(count, _ROWS)
        ).tokens
    generator = torch.Generator().manual_seed(seed)
    parts = []
    for start in range(0, count, _ROWS):
        size = min(_ROWS, count - start)
        noise = torch.randn(steps, size, toy.length, generator=generator)
        parts.append(toy.bins_of(ddpm_sample(model.process, model, noise)))
    return torch.cat(parts)


def _key(seed: int, use: int) -> int:
    return 4 * seed + use
