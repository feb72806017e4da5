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
from idlm.bench.pool import quiet
from idlm.bench.toy_methods import Method, settings_of
from idlm.bench.toy_networks import FastDraw, tiny
from idlm.bench.toys import Toy, load
from idlm.models.continuous import ContinuousDenoiser
from idlm.objectives.mdlm import masked_nelbo
from idlm.objectives.regression import gaussian_regression
from idlm.objectives.udlm import uniform_nelbo
from idlm.processes.gaussian import ddpm_sample
from idlm.training.distil import DistillationModule
from idlm.training.loop import average_weights, lr_factor
from idlm.training.networks import make_networks

# of every teacher
TEACHER_SETTINGS: dict[str, Any] = {
    "batch": 512,
    "lr": 1e-2,
    "betas": (0.9, 0.99),
    "weight_decay": 0.0,
    "warmup": 50,
    "decay": "linear",
    "clip": 1.0,
    "ema_decay": 0.995,
}
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

    Each batch is a stratified sample in random order, one number from each of as many equal parts
    of [0, 1): a cell's count is right in the mean and differs from it by less than two, the cell's
    share of the two parts that it covers in part.

    Args:
        toy: the data.
        size: sequences in a batch.
        seed: of all batches.
        continuous: give points of the plane, ``data``, in place of tokens, ``input_ids``.
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
        updates: how many.
        seed: of weights and noise.
    """
    started = time.perf_counter()
    torch.manual_seed(seed)
    how, continuous = TEACHER_SETTINGS, process == "gaussian"
    model = _network(toy, process)
    rates = {name: how[name] for name in ("lr", "betas", "weight_decay")}
    optimizer = torch.optim.AdamW(model.parameters(), **rates, fused=True)
    average = average_weights(model, how["ema_decay"])
    batches = iter(Batches(toy, how["batch"], _key(seed, _TEACH), continuous=continuous))
    warmup = min(how["warmup"], updates)
    for update in range(updates):
        factor = lr_factor(update, warmup=warmup, decay=how["decay"], total=updates)
        for group in optimizer.param_groups:
            group["lr"] = how["lr"] * factor
        batch = next(batches)
        data = batch["data" if continuous else "input_ids"]
        draw = FastDraw(batch["index"], len(data), _key(seed, _TEACH), update)
        loss = cast(Any, _LOSSES[process])(model, data, draw)
        optimizer.zero_grad()
        loss.mean.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), how["clip"])
        optimizer.step()
        average.update_parameters(model)
    return average.module.requires_grad_(False).eval(), time.perf_counter() - started


def _network(toy: Toy, process: str) -> Any:
    """A new network for a toy."""
    if process == "gaussian":
        return ContinuousDenoiser(toy.length, hidden=64, blocks=3, data_std=toy.std)
    return tiny(toy.tokens, toy.length, process)


def check_latent(method: Method, latent: int) -> None:
    """Refuse a latent before anything is trained.

    Raises:
        UserError: as :func:`distil`.
    """
    settings = settings_of(method, latent)
    sizes = (settings.get("latent_global"), settings.get("latent_position"))
    network = _network(load("circles", bins=4), method.process)
    make_networks(method.make(1), network, latent=sizes)


def module_settings(method: Method, *, latent: int, updates: int, longer: float) -> dict[str, Any]:
    """Arguments of the distillation module, but for the seed; as those of :func:`distil`."""
    return {
        "max_student_updates": updates,
        "micro_batch_size": method.batch,
        **settings_of(method, latent, longer),
    }


def distil(
    toy: Toy,
    method: Method,
    teacher: Any,
    *,
    latent: int,
    updates: int,
    seed: int,
    longer: float = 1.0,
) -> tuple[Any, float]:
    """Train a student.

    Args:
        toy: the data.
        method: objective and settings.
        teacher: of the method's process; left as it is.
        latent: size of the student's latent vector, 0 for none.
        updates: of the student.
        seed: of the training.
        longer: how many times the usual updates that is; some methods are then slower in each.

    Returns:
        Its averaged weights, in eval mode, and the seconds the training took.

    Raises:
        UserError: from the method, for a latent that it does not take or cannot do without.
    """
    module = DistillationModule.from_networks(
        teacher,
        method.make(updates),
        seed=_key(seed, _DISTIL),
        **module_settings(method, latent=latent, updates=updates, longer=longer),
    )
    module.draw_type = FastDraw
    continuous = method.process == "gaussian"
    data = Batches(toy, method.batch, _key(seed, _DISTIL), continuous=continuous)
    started = time.perf_counter()
    with quiet():
        # barebones: Lightning's own logging takes as long as an update
        trainer = L.Trainer(accelerator="cpu", barebones=True, max_epochs=1)
        trainer.fit(module, DataLoader(data, batch_size=None))
    seconds = time.perf_counter() - started
    return module.ema.module.requires_grad_(False).eval(), seconds


@torch.no_grad()
def sample(model: Any, toy: Toy, *, count: int, steps: int, seed: int) -> Tensor:
    """Samples in so many steps as sequences of the toy, int64 ``[count, L]``.

    Args:
        model: a teacher or a student.
        toy: for continuous models the grid, whose squares their points are put into.
        count: number of samples.
        steps: sampling steps of each.
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
