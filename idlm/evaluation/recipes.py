"""Compare distillation recipes: what moves the frontier, and what only moves along it.

    python -m idlm.evaluation.recipes --study eval/recipes.yaml --output eval/results/recipes.json

Every recipe of the study is a short distillation that differs from the base in what its entry
says; :class:`~idlm.training.FrontierMonitor` judges it against one and the same teacher curve. The
file is written after every run, and a second call makes only the runs that are missing.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
import tempfile
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

import lightning as L
import torch
from omegaconf import OmegaConf

import idlm.objectives as objectives
from idlm.data import PackedDataModule
from idlm.equal_entropy import Point
from idlm.errors import UserError
from idlm.evaluation.cells import machine, weights_revision
from idlm.locks import alone_writing
from idlm.metrics.report import write_json
from idlm.objectives.alternating import AlternatingDistillation
from idlm.training import DistillationModule, FrontierMonitor

# what a validation found: a number, or None
Judged = dict[str, float | None]
_LOGGED = ("val/frontier_ratio", "val/gen_ppl", "val/entropy", "val/student_entropy")


@dataclass
class Study:
    """What ``eval/recipes.yaml`` holds.

    Attributes:
        teacher: checkpoint to distil.
        evaluator: causal language model that judges.
        corpus: what the student's inputs are noised from.
        length: tokens per training row.
        batch_size: rows per update.
        student_updates: length of each run.
        validate_every: student updates between two judgements.
        steps: sampler steps of student and teacher.
        num_samples: sequences per judgement, of the teacher's full context.
        temperatures: of the teacher's curve.
        seeds: one run of each recipe per seed.
        base: arguments of :class:`~idlm.training.DistillationModule` that all runs share.
        recipes: what differs, by name; ``objective`` names a class of :mod:`idlm.objectives` and
            its arguments, discrete moment matching aimed at ``steps`` if there is none.
    """

    teacher: str
    evaluator: str
    corpus: str
    length: int
    batch_size: int
    student_updates: int
    validate_every: int
    steps: int
    num_samples: int
    temperatures: list[float]
    seeds: list[int]
    base: dict[str, Any]
    recipes: dict[str, dict[str, Any]] = field(default_factory=dict)


def read_study(path: str | Path) -> Study:
    """Read a study.

    Raises:
        UserError: if it is missing, lacks a field, or has one too many.
    """
    try:
        raw = OmegaConf.to_container(OmegaConf.load(path))
    except OSError as error:
        raise UserError(f"study {str(path)!r} cannot be read ({error.strerror})") from error
    known = {f.name for f in fields(Study)}
    given = set(raw) if isinstance(raw, dict) else set()
    if given != known:
        missing, extra = sorted(known - given), sorted(str(name) for name in given - known)
        raise UserError(
            f"study {str(path)!r} lacks {missing} and has {extra} too many; see eval/recipes.yaml"
        )
    return Study(**raw)  # type: ignore[arg-type]


def make_objective(spec: dict[str, dict[str, Any]] | None, steps: int) -> AlternatingDistillation:
    """The objective of a recipe: one class name and its arguments.

    Raises:
        UserError: if it names no alternating objective.
    """
    [(name, arguments)] = (spec or {"DMMD": {}}).items()
    kind = getattr(objectives, name, None)
    if not (isinstance(kind, type) and issubclass(kind, AlternatingDistillation)):
        raise UserError(f"objective {name!r} is unknown; use IDLM, DMMD or AlternatingDistillation")
    aim = {"target_steps": steps} if kind is objectives.DMMD else {}
    return kind(**{**aim, **arguments})


class _History(L.Callback):
    """What each validation logged; what is not finite is None, as JSON knows no infinity."""

    def __init__(self) -> None:
        self.points: list[Judged] = []

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        point: Judged = {"student_updates": int(pl_module.student_updates)}  # type: ignore[arg-type]
        for name in _LOGGED:
            value = float(trainer.callback_metrics[name])
            # the ratio of a student outside the teacher's curve
            point[name.removeprefix("val/")] = value if math.isfinite(value) else None
        self.points.append(point)


def run_recipe(
    study: Study,
    recipe: dict[str, Any],
    seed: int,
    curve: list[Point],
    *,
    accelerator: str = "auto",
) -> list[Judged]:
    """One short distillation; fills ``curve`` the first time, and returns its judgements."""
    settings = {**study.base, **recipe}
    objective = make_objective(settings.pop("objective", None), study.steps)
    per_student = settings.get("fake_per_student", 1) + 1
    with tempfile.TemporaryDirectory() as scratch:
        module = DistillationModule(
            study.teacher,
            objective,
            max_student_updates=study.student_updates,
            export_dir=str(Path(scratch) / "export"),
            seed=seed,
            **settings,
        )
        monitor = FrontierMonitor(
            study.evaluator,
            steps=study.steps,
            num_samples=study.num_samples,
            temperatures=study.temperatures,
        )
        monitor.curve = curve
        history = _History()
        trainer = L.Trainer(
            accelerator=accelerator,
            devices=1,
            precision="bf16-mixed",
            max_epochs=-1,
            val_check_interval=study.validate_every * per_student,
            check_val_every_n_epoch=None,
            num_sanity_val_steps=0,
            logger=False,
            enable_checkpointing=False,
            enable_model_summary=False,
            enable_progress_bar=False,
            use_distributed_sampler=False,
            default_root_dir=scratch,
            callbacks=[monitor, history],
        )
        data = PackedDataModule(
            study.corpus,
            study.teacher,
            length=study.length,
            global_batch_size=study.batch_size,
            seed=seed,
        )
        trainer.fit(module, datamodule=data)
        curve[:] = monitor.curve
    return history.points


def run_study(study: Study, output: Path, *, only: list[str], accelerator: str = "auto") -> None:
    """Make the runs that ``output`` lacks, writing it after each.

    Raises:
        UserError: if ``only`` names a recipe that the study does not have.
    """
    if unknown := sorted(set(only) - set(study.recipes)):
        raise UserError(f"--only names {unknown}; the study has {', '.join(study.recipes)}")
    shared = {f.name: getattr(study, f.name) for f in fields(Study)}
    conditions = {k: v for k, v in shared.items() if k not in ("recipes", "seeds")}
    conditions["teacher_revision"] = weights_revision(study.teacher)
    conditions["evaluator_revision"] = weights_revision(study.evaluator)
    found: dict[str, Any] = _read(output)
    if found.get("conditions") != conditions:  # other models or settings: nothing of it compares
        found = {"conditions": conditions, "teacher_curve": [], "runs": []}
    curve: list[Point] = [(entropy, ppl) for entropy, ppl in found["teacher_curve"]]
    done = {(run["recipe"], run["seed"]): run["settings"] for run in found["runs"]}
    for name, recipe in study.recipes.items():
        for seed in study.seeds:
            if (only and name not in only) or done.get((name, seed)) == recipe:
                continue
            points = run_recipe(study, dict(recipe), seed, curve, accelerator=accelerator)
            run = {"recipe": name, "seed": seed, "settings": recipe, "judged": points}
            kept = [r for r in found["runs"] if (r["recipe"], r["seed"]) != (name, seed)]
            found.update(runs=[*kept, run], teacher_curve=[list(p) for p in curve])
            found["machine"] = machine(_device(accelerator))
            write_json(output, found)
            print(f"{name}, seed {seed}: {_said(points[-1])}", flush=True)


def _said(point: Judged) -> str:
    ratio, gen_ppl = point["frontier_ratio"], point["gen_ppl"]
    parts = [
        "outside the teacher's curve" if ratio is None else f"ratio {ratio:.3f}",
        "no GenPPL" if gen_ppl is None else f"GenPPL {gen_ppl:.1f}",
    ]
    return f"{', '.join(parts)} at entropy {point['entropy']:.3f}"


def _device(accelerator: str) -> str:
    return "cuda" if accelerator != "cpu" and torch.cuda.is_available() else "cpu"


def _read(path: Path) -> dict[str, Any]:
    try:
        return dict(json.loads(path.read_text(encoding="utf-8")))
    except FileNotFoundError:
        return {}
    except ValueError as error:
        raise UserError(
            f"{path} is no results file of this program ({error}); name another --output"
        ) from error


def main(argv: list[str] | None = None) -> None:
    """The command line; errors of usage are one sentence and exit code 2."""
    parser = argparse.ArgumentParser(
        prog="python -m idlm.evaluation.recipes", description="Compare distillation recipes."
    )
    parser.add_argument("--study", default="eval/recipes.yaml", help="YAML (%(default)s)")
    parser.add_argument("--output", default="eval/results/recipes.json", help="JSON (%(default)s)")
    parser.add_argument(
        "--only",
        action="append",
        default=[],
        metavar="NAME",
        help="make only this recipe's runs now; may be repeated",
    )
    parser.add_argument("--accelerator", default="auto", help="auto, cpu or gpu (%(default)s)")
    args = parser.parse_args(argv)
    try:
        study = read_study(args.study)
        with alone_writing(args.output, remedy="wait for it, or name another --output"):
            run_study(study, Path(args.output), only=args.only, accelerator=args.accelerator)
    except UserError as error:
        print(f"idlm: error: {error}", file=sys.stderr)
        raise SystemExit(2) from None


if __name__ == "__main__":
    main()
