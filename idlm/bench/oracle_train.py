"""Teachers and students of the oracle language: every batch is new text of the source."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, cast

import lightning as L
import torch
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset

from idlm.bench.oracle import oracle_language
from idlm.bench.oracle_methods import Method, settings_of
from idlm.bench.pool import quiet
from idlm.bench.store import as_json
from idlm.metrics.report import write_json
from idlm.models import DiffusionConfig, DiffusionLM, export_folder, load
from idlm.objectives.base import Draw
from idlm.objectives.mdlm import masked_nelbo
from idlm.objectives.udlm import uniform_nelbo
from idlm.processes import Absorbing, Uniform
from idlm.training.distil import DistillationModule
from idlm.training.loop import average_weights, lr_factor
from idlm.training.muon import MuonAdamW
from idlm.training.networks import make_networks

_NELBO = {Absorbing.name: masked_nelbo, Uniform.name: uniform_nelbo}
# what of a plan has no part in a teacher
_NOT_THE_TEACHERS = ("student_updates", "samples", "teacher_steps", "student_steps")
# rows drawn at once: a call costs L small steps, however many rows it makes
_ROWS = 4096
# of every teacher, whatever the plan
TEACHER_SETTINGS: dict[str, Any] = {
    "muon_lr": 0.02,
    "lr": 3e-3,
    "betas": (0.9, 0.99),
    "weight_decay": 0.0,
    "warmup": 50,
    "decay": "cosine",
    "clip": 1.0,
    "ema_decay": 0.995,
}
# what a seed is used for, so that no two uses share their texts or their noise
TRAIN, DISTIL, HELD_OUT, FLOOR, SAMPLE = (number << 40 for number in range(1, 6))
# and the noise of a use is not what its texts were drawn with
NOISE = 1 << 48


@dataclass(frozen=True)
class Plan:
    """Sizes of a run. A file may hold several: each of its records states its own.

    Attributes:
        length: L, tokens of a text.
        hidden_dim, n_blocks, n_heads: of every network.
        teacher_updates, student_updates: lengths of the trainings; a method that alternates makes
            as many updates of its fake model, too.
        batch_size: texts of an update, new ones every time.
        samples: texts that are scored, for each number of steps.
        teacher_steps, student_steps: numbers of sampling steps.
    """

    length: int = 64
    hidden_dim: int = 64
    n_blocks: int = 3
    n_heads: int = 4
    teacher_updates: int = 2400
    student_updates: int = 300
    batch_size: int = 32
    samples: int = 512
    teacher_steps: tuple[int, ...] = (1, 4, 8, 16, 64)
    student_steps: tuple[int, ...] = (1, 4, 8, 16)

    def plain(self) -> dict[str, Any]:
        """The plan as JSON gives it back."""
        return {k: list(v) if isinstance(v, tuple) else v for k, v in asdict(self).items()}


# Every path in seconds; the numbers mean nothing.
QUICK = Plan(
    length=16,
    hidden_dim=16,
    n_blocks=1,
    n_heads=2,
    teacher_updates=4,
    student_updates=4,
    batch_size=8,
    samples=8,
    teacher_steps=(1, 16),
    student_steps=(1, 4),
)


class _Texts(IterableDataset):
    """Endless batches of new texts, as the trainings take them."""

    def __init__(self, plan: Plan, seed: int) -> None:
        self.plan, self.seed = plan, seed

    def __iter__(self) -> Iterator[dict[str, Tensor]]:
        size = self.plan.batch_size
        rows = size * max(1, _ROWS // size)
        first, source = 0, oracle_language()
        while True:
            tokens = source.sample(rows, self.plan.length, seed=self.seed, first_index=first)
            index = torch.arange(first, first + rows)
            for part in zip(tokens.split(size), index.split(size), strict=True):
                yield dict(zip(("input_ids", "index"), part, strict=True))
            first += rows


def obtain_teacher(process: str, seed: int, plan: Plan, folder: Path) -> tuple[DiffusionLM, float]:
    """The teacher that ``folder`` holds for this plan, or a new one that is kept there.

    Args:
        process: ``absorbing`` or ``uniform``.
        seed: of weights, texts and noise.
        plan: sizes.
        folder: of all teachers.

    Returns:
        The network in eval mode, and the seconds its training took.

    Raises:
        UserError: if the folder cannot be written to.
    """
    target = folder / f"{process}-{seed}"
    # written when the weights are complete, so it tells whether they are, and of which plan
    note = target.with_suffix(".json")
    own = {
        "plan": {k: v for k, v in plan.plain().items() if k not in _NOT_THE_TEACHERS},
        "settings": as_json(TEACHER_SETTINGS),
    }
    if note.exists():
        found = json.loads(note.read_text(encoding="utf-8"))
        if all(found.get(key) == value for key, value in own.items()):
            return load(str(target)).eval(), found["train_seconds"]
        note.unlink()
    started = time.perf_counter()
    model = train_teacher(process, seed, plan)
    seconds = round(time.perf_counter() - started, 3)
    folder.mkdir(parents=True, exist_ok=True)
    export_folder(model, target)
    write_json(note, {**own, "train_seconds": seconds})
    return model, seconds


def _network(process: str, plan: Plan) -> DiffusionLM:
    """A new network of the plan's sizes."""
    masked = process == Absorbing.name
    config = DiffusionConfig(
        vocab_size=oracle_language().vocab_size + masked,
        model_length=plan.length,
        hidden_dim=plan.hidden_dim,
        cond_dim=plan.hidden_dim,
        n_blocks=plan.n_blocks,
        n_heads=plan.n_heads,
        dropout=0.0,
        process=process,
        time_conditioning=not masked,
    )
    return DiffusionLM(config)


def train_teacher(process: str, seed: int, plan: Plan) -> DiffusionLM:
    """A teacher trained by its NELBO on new texts; its averaged weights, in eval mode."""
    torch.manual_seed(seed)
    how = TEACHER_SETTINGS
    model = _network(process, plan).train()
    average = average_weights(model, how["ema_decay"])
    rates = {name: how[name] for name in ("muon_lr", "lr", "betas", "weight_decay")}
    optimizer = MuonAdamW(model, **rates)
    peaks = [group["lr"] for group in optimizer.param_groups]
    for update, batch in zip(range(plan.teacher_updates), _Texts(plan, seed + TRAIN), strict=False):
        factor = lr_factor(
            update, warmup=how["warmup"], decay=how["decay"], total=plan.teacher_updates
        )
        for group, peak in zip(optimizer.param_groups, peaks, strict=True):
            group["lr"] = peak * factor
        draw = Draw(batch["index"], plan.batch_size, seed + TRAIN + NOISE, update)
        loss = _NELBO[process](model, batch["input_ids"], draw)
        optimizer.zero_grad()
        loss.mean.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), how["clip"])
        optimizer.step()
        average.update_parameters(model)
    return cast(DiffusionLM, average.module).requires_grad_(False).eval()


@torch.no_grad()
def held_out_nelbo(model: DiffusionLM, plan: Plan, seed: int) -> float:
    """NELBO per token on new texts, in nats: for a perfect teacher the entropy rate."""
    source = oracle_language()
    rows = source.sample(plan.samples, plan.length, seed=seed + HELD_OUT)
    index = torch.arange(len(rows))
    draw = Draw(index, len(rows), seed + HELD_OUT + NOISE, 0, training=False)
    return float(_NELBO[model.process.name](model, rows, draw).mean)


def distil(
    method: Method, plan: Plan, teacher: DiffusionLM, *, seed: int, latent: int
) -> tuple[DiffusionLM, float]:
    """Train a student.

    Args:
        method: objective and settings.
        plan: lengths and batch size.
        teacher: of the method's process; left as it is.
        seed: of the training.
        latent: size of the student's latent vector, 0 for none.

    Returns:
        Its averaged weights, in eval mode, and the seconds the training took.

    Raises:
        UserError: from the method, for a latent that it does not take or cannot do without.
    """
    module = DistillationModule.from_networks(
        teacher,
        method.make(plan.student_updates),
        seed=seed + DISTIL + NOISE,
        **module_settings(method, plan, latent),
    )
    started = time.perf_counter()
    with quiet():
        # barebones: Lightning's own logging takes a good part of an update
        trainer = L.Trainer(accelerator="cpu", barebones=True, max_epochs=1)
        trainer.fit(module, DataLoader(_Texts(plan, seed + DISTIL), batch_size=None))
    seconds = round(time.perf_counter() - started, 3)
    student = cast(DiffusionLM, module.ema.module)
    return student.requires_grad_(False).eval(), seconds


def check_latent(method: Method, latent: int) -> None:
    """Refuse a latent before anything is trained.

    Raises:
        UserError: as :func:`distil`.
    """
    settings = settings_of(method, latent)
    sizes = (settings["latent_global"], settings["latent_position"])
    make_networks(method.make(1), _network(method.process, QUICK), latent=sizes)


def module_settings(method: Method, plan: Plan, latent: int) -> dict[str, Any]:
    """Arguments of the distillation module, but for the seed."""
    return {
        "max_student_updates": plan.student_updates,
        "micro_batch_size": plan.batch_size,
        **settings_of(method, latent),
    }
