"""Cells of the toy table: one method, latent and seed on one data set, at every number of steps."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, fields
from functools import lru_cache, partial
from typing import Any

from torch import Tensor

from idlm.bench import toys
from idlm.bench.divergence import floor_js, floor_tv, jensen_shannon, total_variation
from idlm.bench.pool import as_done
from idlm.bench.store import Record, as_json, student_record
from idlm.bench.toy_methods import (
    METHODS,
    PROCESSES,
    STUDENT_STEPS,
    TEACHER,
    TEACHER_STEPS,
    find,
)
from idlm.bench.toy_train import (
    TEACHER_SETTINGS,
    check_latent,
    distil,
    module_settings,
    sample,
    train_teacher,
)
from idlm.errors import UserError

Key = tuple[Any, ...]
# records of a cell, and the counts of its samples in one step
Outcome = tuple[list[Record], Tensor]

TEACHER_UPDATES = {"absorbing": 1500, "uniform": 800, "gaussian": 800}


@dataclass(frozen=True)
class Plan:
    """What is the same for all cells.

    Attributes:
        bins: squares per axis of the planar sets.
        samples: for each number of steps.
        longer: factor on the updates of students.
        teacher_longer: factor on the updates of teachers.
    """

    bins: int = toys.BINS
    samples: int = 50_000
    longer: float = 1.0
    teacher_longer: float = 1.0

    def student_updates(self, method: str, latent: int) -> int:
        """Updates of a method's student."""
        known = METHODS[method]
        updates = known.updates if latent else known.ablation or known.updates
        return max(1, round(updates * self.longer))

    def teacher_updates(self, process: str) -> int:
        """Updates of a process's teacher."""
        return max(1, round(TEACHER_UPDATES[process] * self.teacher_longer))


# Every step of the bench in a second or two.
QUICK = Plan(bins=8, samples=2000, longer=0.01, teacher_longer=0.01)


@dataclass(frozen=True)
class Cell:
    """A method, or a teacher in its place, with a latent and a seed on one data set.

    Attributes:
        dataset: a name of :data:`idlm.bench.toys.NAMES`.
        method: a name of :data:`~idlm.bench.toy_methods.METHODS`, or ``teacher``.
        process: of the teacher.
        latent: size of the student's latent vector.
        seed: of training and sampling.
    """

    dataset: str
    method: str
    process: str
    latent: int
    seed: int

    def key(self, plan: Plan) -> Key:
        """What its records are known by, see :func:`key_of`."""
        return (self.dataset, self.method, self.process, self.latent, self.seed, repr(plan))


def cell_of(record: Record) -> Cell:
    """The cell of a record."""
    return Cell(*(record[name] for name in ("dataset", "method", "process", "latent", "seed")))


def plan_of(record: Record) -> Plan:
    """The plan of a record.

    Raises:
        ValueError: if it has other entries than a plan of today.
    """
    names = {field.name for field in fields(Plan)}
    if names != record["plan"].keys():
        odd = ", ".join(sorted(names ^ record["plan"].keys()))
        raise ValueError(f"their plans differ in {odd}")
    return Plan(**record["plan"])


def key_of(record: Record) -> Key:
    """The cell and plan of a record."""
    return cell_of(record).key(plan_of(record))


def settings_record(cell: Cell, plan: Plan) -> Record:
    """How what a cell samples is trained, as JSON gives it back.

    Returns:
        For a student the settings of its training, the objective's name and arguments, and the same
        of its teacher under ``teacher``; for a teacher its own.

    Raises:
        UserError: for a method that there is not.
    """
    teacher = {"updates": plan.teacher_updates(cell.process), **as_json(TEACHER_SETTINGS)}
    if cell.method == TEACHER:
        return teacher
    method, updates = find(cell.method), plan.student_updates(cell.method, cell.latent)
    settings = module_settings(method, latent=cell.latent, updates=updates, longer=plan.longer)
    return {**student_record(method.make(updates), settings), "teacher": teacher}


def cells(
    datasets: Iterable[str], methods: Iterable[str], seeds: Iterable[int], latent: int | None = None
) -> list[Cell]:
    """The cells of those names, in the order in which they are best run.

    Args:
        datasets: of :data:`idlm.bench.toys.NAMES`.
        methods: of :data:`~idlm.bench.toy_methods.METHODS`, or ``teacher``. With several of them or
            of data sets, pairs that do not exist are left out; with several methods, those that are
            ablated appear with and without latent.
        seeds: of training and sampling.
        latent: size of the latent; None for each method's own.

    Raises:
        UserError: for an unknown name, a single pair that does not exist, or a latent that a method
            does not take or cannot do without.
    """
    names, sets = list(methods), list(datasets)
    found = []
    for dataset in sets:
        planar = toys.load(dataset).planar
        for seed in seeds:
            for name in names:
                for process, size in _variants(name, latent, several=len(names) > 1):
                    if process == "gaussian" and not planar:
                        if len(names) == len(sets) == 1 and name != TEACHER:
                            raise UserError(
                                f"method {name!r} is for points of the plane, but {dataset!r} is "
                                "sequences of equal tokens; choose another dataset or method"
                            )
                        continue
                    found.append(Cell(dataset, name, process, size, seed))
    for name, size in dict.fromkeys((c.method, c.latent) for c in found if c.method != TEACHER):
        check_latent(find(name), size)
    return found


def _variants(name: str, latent: int | None, *, several: bool) -> list[tuple[str, int]]:
    if name == TEACHER:
        if latent:
            raise UserError(f"--latent is {latent}, but a teacher has none; leave it out")
        return [(process, 0) for process in PROCESSES]
    method = find(name)
    if latent and method.process == "gaussian":
        raise UserError(
            f"--latent is {latent}, but the noise of method {name!r} is its state; leave it out"
        )
    sizes = [method.latent if latent is None else latent]
    if several and method.ablation and latent is None:
        sizes.append(0)
    return [(method.process, size) for size in sizes]


class Teachers:
    """Teachers of one process of this program, each trained when it is first asked for."""

    def __init__(self) -> None:
        self._found: dict[Any, tuple[Any, float]] = {}

    def get(self, cell: Cell, plan: Plan) -> tuple[Any, float]:
        """The teacher of a cell, and the seconds of its training."""
        key = (cell.dataset, cell.process, cell.seed, plan)
        if key not in self._found:
            self._found.clear()  # cells come in an order that needs no other one again
            self._found[key] = train_teacher(
                toys.load(cell.dataset, bins=plan.bins),
                cell.process,
                updates=plan.teacher_updates(cell.process),
                seed=cell.seed,
            )
        return self._found[key]


def run_cell(cell: Cell, plan: Plan, teachers: Teachers) -> Outcome:
    """Train what is missing, sample, and compare with the table.

    Args:
        cell: what to run.
        plan: sizes.
        teachers: those that are there; a new one is added.

    Returns:
        A record for each number of steps, and the counts of the samples in one step ``[C + 1]``.

    Raises:
        UserError: from the method, for a latent that it does not take or cannot do without.
    """
    toy = toys.load(cell.dataset, bins=plan.bins)
    model, seconds = teachers.get(cell, plan)
    updates = plan.teacher_updates(cell.process)
    if cell.method != TEACHER:
        updates = plan.student_updates(cell.method, cell.latent)
        model, seconds = distil(
            toy,
            find(cell.method),
            model,
            latent=cell.latent,
            updates=updates,
            seed=cell.seed,
            longer=plan.longer,
        )
    floors, settings = _floors(cell.dataset, plan.bins, plan.samples), settings_record(cell, plan)
    records, first = [], None
    for steps in TEACHER_STEPS if cell.method == TEACHER else STUDENT_STEPS:
        rows = sample(model, toy, count=plan.samples, steps=steps, seed=cell.seed)
        counts = toy.counts(rows)
        first = counts if first is None else first
        records.append(
            {
                **asdict(cell),
                "steps": steps,
                "tv": total_variation(counts, toy.probs),
                "js": jensen_shannon(counts, toy.probs),
                **floors,
                "samples": plan.samples,
                "train_seconds": round(seconds, 3),
                "updates": updates,
                "plan": asdict(plan),
                "settings": settings,
            }
        )
    assert first is not None
    return records, first


@lru_cache
def _floors(dataset: str, bins: int, samples: int) -> dict[str, float]:
    probs = toys.load(dataset, bins=bins).probs
    return {"floor_tv": floor_tv(probs, samples), "floor_js": floor_js(probs, samples)}


def run(wanted: list[Cell], plan: Plan, jobs: int) -> Iterator[tuple[Cell, Outcome]]:
    """Cells and what came of them, as they are done; cells with one teacher in one process.

    Raises:
        Exception: of the first cell that failed, after all that were done have been given.
    """
    groups: dict[Any, list[Cell]] = {}
    for cell in wanted:
        groups.setdefault((cell.dataset, cell.process, cell.seed), []).append(cell)
    # those with the most updates of students first, so that none of them is begun at the end, when
    # the other processes have nothing left to do
    queue = sorted(groups.values(), key=lambda group: _work(group, plan), reverse=True)
    for _, done in as_done(partial(_run_group, plan=plan), [queue], jobs):
        yield done


def _work(group: list[Cell], plan: Plan) -> int:
    return sum(plan.student_updates(c.method, c.latent) for c in group if c.method != TEACHER)


def _run_group(group: list[Cell], plan: Plan) -> Iterator[tuple[Cell, Outcome]]:
    teachers = Teachers()
    for cell in group:
        yield cell, run_cell(cell, plan, teachers)
