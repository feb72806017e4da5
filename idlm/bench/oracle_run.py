"""Cells of ``idlm bench oracle``: a method with a latent and a seed, trained, sampled, scored.

A cell gives one record for each number of steps.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from idlm.bench.oracle import oracle_language
from idlm.bench.oracle_methods import METHODS
from idlm.bench.oracle_metrics import EPSILON, score, truth
from idlm.bench.oracle_train import (
    FLOOR,
    NOISE,
    SAMPLE,
    TEACHER_SETTINGS,
    Plan,
    check_latent,
    distil,
    held_out_nelbo,
    module_settings,
    obtain_teacher,
)
from idlm.bench.store import Record, as_json, student_record
from idlm.errors import UserError
from idlm.models import DiffusionLM
from idlm.processes import Absorbing, Uniform
from idlm.sampling.generate import generate

SOURCE, TEACHER = "source", "teacher"


@dataclass(frozen=True)
class Cell:
    """A method, or a teacher or the source in its place, with a latent and a seed.

    Attributes:
        method: a name of :data:`~idlm.bench.oracle_methods.METHODS`, ``teacher`` (masked),
            ``teacher-uniform``, or ``source`` for exact samples, whose scores are the floor.
        seed: of all training and sampling.
        latent: size of the student's latent vector; None for the method's.
    """

    method: str
    seed: int
    latent: int | None = None

    @property
    def process(self) -> str:
        """Name of the teacher's process; ``none`` for the source, which has no teacher."""
        if self.method == SOURCE:
            return "none"
        if self.method in METHODS:
            return METHODS[self.method].process
        return Uniform.name if self.method.endswith("-uniform") else Absorbing.name

    def check(self) -> None:
        """Refuse what cannot be run, before anything is trained.

        Raises:
            UserError: for a method that there is not, or a latent that it does not take or cannot
                do without.
        """
        if self.method not in NAMES:
            raise UserError(
                f"there is no method {self.method!r}; choose one of {', '.join(NAMES)}, or all"
            )
        if self.latent is not None and self.latent < 0:
            raise UserError(f"--latent is {self.latent}; it must be 0, for none, or more")
        if self.method not in METHODS and self.latent:
            raise UserError(f"--latent is {self.latent}, but {self.method} has none; leave it out")
        if self.method in METHODS:
            check_latent(METHODS[self.method], latent_of(self))


NAMES = (SOURCE, TEACHER, f"{TEACHER}-uniform", *METHODS)


def cells(seed: int) -> list[Cell]:
    """The cells of ``--method all``: every method, and some without their latent."""
    found = [Cell(name, seed) for name in NAMES]
    return found + [Cell(name, seed, 0) for name, method in METHODS.items() if method.ablate]


def run_cell(cell: Cell, plan: Plan, folder: Path) -> list[Record]:
    """Train what the cell needs, sample and score.

    Args:
        cell: method, seed and latent.
        plan: sizes.
        folder: holds the teachers, which are trained where they are missing.

    Returns:
        One record for each number of steps.

    Raises:
        UserError: for a method that there is not, or a latent that it does not take.
    """
    cell.check()
    source = oracle_language()
    if cell.method == SOURCE:
        rows = source.sample(plan.samples, plan.length, seed=cell.seed + FLOOR)
        return [_record(cell, plan, rows, steps=plan.length, latent=0, train_seconds=0.0)]
    teacher, seconds = obtain_teacher(cell.process, cell.seed, plan, folder)
    if cell.method not in METHODS:
        nelbo = held_out_nelbo(teacher, plan, cell.seed)
        more: Record = {"latent": 0, "train_seconds": seconds, "nelbo": nelbo}
        return _sampled(cell, plan, teacher, plan.teacher_steps, more)
    student, seconds = distil(
        METHODS[cell.method], plan, teacher, seed=cell.seed, latent=latent_of(cell)
    )
    more = {"latent": latent_of(cell), "train_seconds": seconds}
    return _sampled(cell, plan, student, plan.student_steps, more)


def _sampled(
    cell: Cell, plan: Plan, model: DiffusionLM, steps: tuple[int, ...], more: Record
) -> list[Record]:
    records = []
    for count in steps:
        out = generate(model, plan.samples, plan.length, count, seed=cell.seed + SAMPLE + NOISE)
        records.append(
            _record(
                cell,
                plan,
                out.tokens,
                steps=count,
                nfe=out.nfe,
                sample_seconds=round(out.seconds, 2),
                **more,
            )
        )
    return records


def _record(cell: Cell, plan: Plan, rows: Tensor, **more: Any) -> Record:
    source = oracle_language()
    floor = source.sample(len(rows), plan.length, seed=cell.seed + FLOOR)
    return {
        "dataset": "oracle",
        "method": cell.method,
        "process": cell.process,
        "seed": cell.seed,
        **more,
        **asdict(score(source, rows)),
        **truth(source, plan.length),
        "floor_ngram_tv": score(source, floor).ngram_tv,
        "epsilon": EPSILON,
        "samples": len(rows),
        "plan": plan.plain(),
        "settings": settings_record(cell, plan),
    }


def settings_record(cell: Cell, plan: Plan) -> Record:
    """How what a cell samples is trained, as JSON gives it back.

    Returns:
        For a student the settings of its training, the objective's name and arguments, and the same
        of its teacher under ``teacher``; for a teacher its own; nothing for the source.
    """
    if cell.method == SOURCE:
        return {}
    teacher = {"updates": plan.teacher_updates, **as_json(TEACHER_SETTINGS)}
    if cell.method not in METHODS:
        return teacher
    method = METHODS[cell.method]
    settings = module_settings(method, plan, latent_of(cell))
    return {**student_record(method.make(plan.student_updates), settings), "teacher": teacher}


def matches(record: Record, cell: Cell, plan: Plan) -> bool:
    """Whether a record of a file is of this cell under this plan, with whatever settings."""
    wanted = {"method": cell.method, "seed": cell.seed, "plan": plan.plain()}
    same = all(record.get(key) == value for key, value in wanted.items())
    return same and record.get("latent") == latent_of(cell)


def is_done(cell: Cell, plan: Plan, records: list[Record]) -> bool:
    """Whether records hold the cell under this plan, with the settings that it has now."""
    settings = settings_record(cell, plan)
    return any(matches(r, cell, plan) and r["settings"] == settings for r in records)


def latent_of(cell: Cell) -> int:
    """Size of the latent that the cell's records state."""
    if cell.method not in METHODS:
        return 0
    return METHODS[cell.method].latent if cell.latent is None else cell.latent


def order(record: Record) -> tuple[Any, ...]:
    """Where a record stands in a file, whatever process was done first."""
    place = NAMES.index(record["method"]) if record["method"] in NAMES else len(NAMES)
    return place, -record["latent"], record["seed"], json.dumps(record["plan"]), record["steps"]
