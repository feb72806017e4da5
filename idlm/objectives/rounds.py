"""Self-distillation in rounds: the student becomes the teacher, and the step it learns grows.

What SDTT (arXiv 2410.21035) and Duo's discrete consistency distillation (arXiv 2506.10892) share:
no fake model, no latent, and a teacher that is the student of the round before.
"""

from __future__ import annotations

from abc import abstractmethod
from typing import TYPE_CHECKING, Any, ClassVar, Literal, cast

from idlm.errors import UserError
from idlm.models.config import FIELDS
from idlm.models.modeling import DiffusionLM
from idlm.objectives.base import DistillationObjective, Networks, Trains

if TYPE_CHECKING:
    from torch.optim.swa_utils import AveragedModel

NextTeacher = Literal["average", "student"]
# a student may be trained with another dropout than its teacher was
_MAY_DIFFER = ("dropout", "latent_global", "latent_position")


class SelfDistillation(DistillationObjective):
    """Rounds of ``round_updates`` student updates each.

    After the last update of a round the student's weights become the teacher's, the round's number
    grows by one, and the EMA restarts: it is left as it is, so that a run which ends there exports
    it, and the next update copies the student into it. The optimiser keeps its moments.

    The last round, :attr:`last_round`, has no end: teacher, step and EMA stay as they are however
    long the run goes on. The run's length is the module's ``max_student_updates``.

    Args:
        round_updates: student updates in a round.
        next_teacher: what becomes the teacher, the student's EMA (``average``) or its raw weights
            (``student``).

    Attributes:
        round: number of the present round, from 0; part of every checkpoint, as the teacher is.

    Raises:
        UserError: for a value outside what is listed.
    """

    trains: ClassVar[Trains] = "student"
    latent: ClassVar[tuple[int, int]] = (0, 0)
    changes_teacher: ClassVar[bool] = True
    shardable: ClassVar[bool] = True

    def __init__(self, *, round_updates: int, next_teacher: NextTeacher) -> None:
        if round_updates < 1:
            raise UserError(f"round_updates is {round_updates}; it must be at least 1")
        if next_teacher not in ("average", "student"):
            raise UserError(f"next_teacher is {next_teacher!r}; choose one of average, student")
        self.round_updates = round_updates
        self.next_teacher = next_teacher
        self.round = 0

    @property
    @abstractmethod
    def last_round(self) -> int:
        """Number of the round after which the step does not grow any more."""

    def check(self, teacher: DiffusionLM, student: DiffusionLM) -> None:
        """Refuse a student whose weights cannot become the teacher's.

        Raises:
            UserError: if the student has a latent, or teacher and student are not one architecture
                on one schedule.
        """
        name = type(self).__name__
        if student.has_latent:
            raise UserError(
                f"the student has a latent, but with {name} its weights become the teacher's, "
                "which has none; set latent_global and latent_position to 0, and give a student "
                "without one"
            )
        for key in FIELDS:
            ours, theirs = getattr(student.config, key), getattr(teacher.config, key)
            if ours != theirs and key not in _MAY_DIFFER:
                raise UserError(
                    f"student and teacher differ in {key}: {ours} against {theirs}, but with "
                    f"{name} the student's weights become the teacher's; start the student from a "
                    "checkpoint of the teacher's architecture"
                )

    def after_student_update(
        self, networks: Networks, average: AveragedModel, updates: int
    ) -> None:
        """At the end of a round that is not the last: next teacher, next step, new average.

        Raises:
            UserError: at the first update of a run, if the objective has been through another one.
        """
        if updates <= self.round:  # a round has an update at least
            name = type(self).__name__
            raise UserError(
                f"this {name} is in round {self.round} after update {updates}, so it was used in "
                f"another run; make a new {name} for each run"
            )
        if updates % self.round_updates or self.round >= self.last_round:
            return
        source = average.module if self.next_teacher == "average" else networks.student
        networks.teacher.load_state_dict(source.state_dict())
        # an average of no model: AveragedModel's next update copies the student
        average.n_averaged.zero_()
        self.round += 1

    def state_dict(self) -> dict[str, Any]:
        """The round, which says what the teacher in the same checkpoint is."""
        return {"round": self.round}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue in the round that was saved."""
        self.round = cast(int, state["round"])
