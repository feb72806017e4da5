"""What ``idlm quickstart`` measures, with which models, and in how much time."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from idlm.paths import repo_dir

if TYPE_CHECKING:
    from idlm.evaluation.cells import Cell

FRESH = "distilled just now"


@dataclass(frozen=True)
class Plan:
    """What the story is told with.

    Attributes:
        teacher, student, evaluator: checkpoints; the bundled ones.
        config: of the short distillation.
        overrides: further arguments of ``idlm fit``.
        corpus: whose validation split is the held-out text.
        length: tokens per sample.
        target: step count of the first texts, of the teacher's temperature curve and of the
            fresh student.
        teacher_steps, student_steps: step counts that are measured.
        temperatures: of the teacher at ``target`` steps, beside 1; one above, because a student
            that has just begun may have a little more entropy than its teacher.
        evaluation_seconds: what measuring may take; decides the number of samples.
        samples: fewest and most samples per row.
        seed: of all samples and of the distillation.
    """

    teacher: str = "python-docs-teacher"
    student: str = "python-docs-student-16step"
    evaluator: str = "python-docs-evaluator"
    config: Path = repo_dir() / "configs" / "quickstart.yaml"
    overrides: tuple[str, ...] = ()
    corpus: str = "python_docs"
    length: int = 1024
    target: int = 16
    teacher_steps: tuple[int, ...] = (4, 8, 16, 32, 64)
    student_steps: tuple[int, ...] = (4, 8, 16, 32)
    temperatures: tuple[float, ...] = (1.05, 0.9, 0.8)
    evaluation_seconds: float = 240.0
    samples: tuple[int, int] = (4, 16)
    seed: int = 0

    def cells(self, num_samples: int, fresh: Path | None) -> list[Cell]:
        """Everything that is measured, one row of the table each."""
        from idlm.evaluation.cells import Cell

        def cell(label: str, checkpoint: str, steps: int, temperature: float = 1.0) -> Cell:
            return Cell(
                label,
                checkpoint,
                steps,
                temperature,
                seed=self.seed,
                num_samples=num_samples,
                length=self.length,
            )

        rows = [cell("teacher", self.teacher, steps) for steps in self.teacher_steps]
        rows += [cell("teacher", self.teacher, self.target, t) for t in self.temperatures]
        rows += [cell("student", self.student, steps) for steps in self.student_steps]
        if fresh is not None:
            rows.append(cell(FRESH, str(fresh), self.target))
        return rows


def affordable_samples(plan: Plan, seconds_per_step: float) -> int:
    """How many samples per row fit the time for measuring, within the plan's bounds.

    Args:
        plan: the rows and their budget.
        seconds_per_step: what one sample takes for one step on this machine.
    """
    steps = sum(cell.steps for cell in plan.cells(1, Path("student")))
    low, high = plan.samples
    return max(low, min(high, int(plan.evaluation_seconds / (steps * seconds_per_step))))
