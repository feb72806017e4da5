"""What a distillation does around its updates: validate, save, resume and export the student."""

from __future__ import annotations

import math
from abc import abstractmethod
from pathlib import Path
from typing import Any, cast

import torch
from torch.optim.swa_utils import AveragedModel
from torchmetrics import MeanMetric

from idlm.models import DiffusionLM, export_folder
from idlm.models.cards import objective_text, student_card
from idlm.objectives.base import DistillationObjective, Networks
from idlm.training.checkpoints import best_checkpoint
from idlm.training.loop import Batch, UpdateModule, clean
from idlm.training.run import plain
from idlm.training.sharding import load_full, unsharded

_TEACHER = "teacher."


class StudentModule(UpdateModule):
    """A student beside its teacher; :class:`~idlm.training.distil.DistillationModule` trains it."""

    objective: DistillationObjective
    networks: Networks | None
    teacher: Any
    student: DiffusionLM
    ema: AveragedModel
    val_loss: MeanMetric
    val_entropy: MeanMetric
    fake_per_student: int
    student_updates: int
    fake_updates: int
    collapsed: bool
    _given: tuple[Any, Any] | None

    @abstractmethod
    def configure_model(self) -> None:
        """Build the networks."""

    @property
    def finished(self) -> bool:
        """Whether ``max_student_updates`` have been made."""
        return self.student_updates >= self.hparams["max_student_updates"]

    def _counts(self) -> dict[str, int]:
        """Updates made of each network that has updates of its own."""
        counts = {"student_updates": self.student_updates, "fake_updates": self.fake_updates}
        return counts if self.fake_per_student else {"student_updates": self.student_updates}

    def on_validation_epoch_start(self) -> None:
        """Begin new means."""
        self.val_loss.reset()
        self.val_entropy.reset()

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        """The student's loss and entropy with EMA weights on held-out text, always the same noise.

        With a fake model at its optimum the loss is a divergence between student and teacher,
        zero for a perfect student; a lagging auxiliary makes it smaller, even negative.
        """
        networks = self._networks()._replace(student=cast(DiffusionLM, self.ema.module))
        if networks.auxiliary is not None:
            networks.auxiliary.eval()
        draw = self.validation_draw(batch)
        result = self.objective.student_loss(networks, clean(batch), draw)
        if result.tokens:  # a row left over may be too little for a loss over pairs of rows
            self.val_loss.update(result.mean, weight=result.tokens)
        if "student_entropy" in result.logs:
            # by its own positions, so that the mean does not depend on how the rows are batched
            weight = result.tokens if result.asked is None else result.asked
            self.val_entropy.update(result.logs["student_entropy"], weight=weight)

    def on_validation_epoch_end(self) -> None:
        """Log the means over all processes; the loss of a collapsed student is infinite."""
        loss = self.val_loss.compute()
        # a collapsed student may well have the smallest loss: no checkpoint of it is the best
        loss = loss.new_tensor(math.inf) if self.collapsed else loss
        self.log("val/student_loss", loss, prog_bar=True, sync_dist=True)
        if self.val_entropy.update_called:
            self.log("val/student_entropy", self.val_entropy.compute(), sync_dist=True)

    def _networks(self) -> Networks:
        if self.networks is None:
            raise RuntimeError("the networks exist only after configure_model()")
        return self.networks

    def trained_network(self) -> DiffusionLM:
        """The student."""
        return self._networks().student

    def _objective_settings(self) -> dict[str, Any]:
        """What the objective was told; what it keeps to itself begins with an underscore."""
        return plain({k: v for k, v in vars(self.objective).items() if k[0] != "_"})

    def making(self) -> dict[str, Any]:
        """The objective as well."""
        return {
            **super().making(),
            "objective": type(self.objective).__name__,
            "objective_settings": self._objective_settings(),
        }

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Add counters and the objective's state; a teacher with a file of its own stays out."""
        super().on_save_checkpoint(checkpoint)
        checkpoint["student_updates"] = self.student_updates
        checkpoint["fake_updates"] = self.fake_updates
        checkpoint["collapsed"] = self.collapsed
        checkpoint["objective"] = self.objective.state_dict()
        if not self.objective.changes_teacher:  # then it is loaded from its own checkpoint
            state = checkpoint["state_dict"].items()
            checkpoint["state_dict"] = {k: v for k, v in state if not k.startswith(_TEACHER)}

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Take up counters and the objective's state, and put the teacher back among the weights.

        Raises:
            UserError: for a checkpoint of another kind of training.
        """
        self.check_resumed(checkpoint)
        self.student_updates = checkpoint["student_updates"]
        self.fake_updates = checkpoint["fake_updates"]
        self.objective.load_state_dict(checkpoint["objective"])
        self.configure_model()
        teacher = {_TEACHER + k: v for k, v in self.teacher.state_dict().items()}
        checkpoint["state_dict"] = {**teacher, **checkpoint["state_dict"]}

    def on_train_end(self) -> None:
        """Export the student's EMA weights; after a collapse, those of the best checkpoint."""
        if self._given is not None and self.hparams["export_dir"] is None:
            return
        # all processes hold a part of sharded networks; otherwise the others have nothing to do
        if self.student_updates and (self.trainer.is_global_zero or self.device_mesh is not None):
            if self.collapsed and not self._restore_best():
                print("the student collapsed and no checkpoint was kept, so nothing is exported")
                return
            folder = self.hparams["export_dir"] or Path(self.trainer.default_root_dir) / "export"
            self.export(folder)
            if self.trainer.is_global_zero:
                print(f"student exported to {folder}")

    def _restore_best(self) -> bool:
        """Put the averaged weights of the best checkpoint back; False if there is none."""
        checkpoint = best_checkpoint(self.trainer)
        if checkpoint is None:
            return False
        prefix = "ema."
        state = checkpoint["state_dict"].items()
        load_full(self.ema, {k[len(prefix) :]: v for k, v in state if k.startswith(prefix)})
        self.student_updates = checkpoint["student_updates"]
        self.fake_updates = checkpoint["fake_updates"]
        return True

    def export(self, folder: str | Path) -> Path:
        """Write the student's EMA weights, tokenizer and model card; returns the folder.

        Sharded networks are gathered first, so every process has to call it; the main one writes.
        """
        network = cast(DiffusionLM, unsharded(self.ema.module))
        if not self.trainer.is_global_zero:
            return Path(folder)
        # after a collapse the last values are not those of the weights that were restored
        logged = {} if self.collapsed else self.trainer.callback_metrics
        metrics = {k: float(v) for k, v in logged.items()}
        card = student_card(
            dict(self.hparams),
            objective_text(type(self.objective).__name__, self._objective_settings()),
            self._counts(),
            metrics,
            self.data_conditions(),
            process=self.student.process.name,
        )
        dtype = getattr(torch, self.hparams["export_dtype"])
        return export_folder(
            network,
            folder,
            tokenizer=self.tokenizer,
            card=card,
            dtype=dtype,
        )
