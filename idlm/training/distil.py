"""Distil a teacher into a few-step generator, by any objective on any process.

The module never knows which one it runs, only what an update of it changes. Read
:meth:`DistillationModule.training_step` first: it is the whole loop.
"""

from __future__ import annotations

import copy
from typing import Any, Literal

import torch
from lightning.pytorch.utilities.types import OptimizerLRSchedulerConfig
from torch import Tensor, nn
from torchmetrics import MeanMetric

from idlm.errors import UserError
from idlm.models import load, load_tokenizer
from idlm.objectives.base import DistillationObjective, Draw, LossSum, Networks
from idlm.objectives.pairing import check_pairing
from idlm.training.loop import Batch, Decay, average_weights, lr_factor
from idlm.training.networks import (
    accelerate,
    check_configs,
    make_networks,
    reach,
    set_up,
    tokenizer_of,
)
from idlm.training.settings import check_settings
from idlm.training.student import StudentModule


class DistillationModule(StudentModule):
    """Teacher (frozen), student, and the auxiliary network that an objective asks for.

    One training step is one update on its own batch. An objective that alternates gets
    ``fake_per_student`` updates of its fake model, then one of the student, and so on; the others
    update the student in every step. Only the student has an EMA, which is what is exported.

    :meth:`from_networks` takes networks in memory instead of checkpoints.

    Args:
        teacher: checkpoint folder, bundled model or hub id.
        objective: how the losses are formed; see :mod:`idlm.objectives`.
        student: checkpoint to start the student from; the teacher if not given.
        fresh_student: start from new weights instead, of the sizes of that checkpoint.
        tokenizer: exported with the student; the teacher's own if not given. That of a teacher in
            memory is the one where it was loaded from, if it is on this machine.
        latent_global, latent_position: sizes of the student's noise, 0 for off; the objective's
            choice if not given. A ``student`` that has a latent keeps its own, and another size is
            refused.
        latent_init: scale of a new latent's first weights. 0 starts at the teacher exactly, which
            is a saddle: the expected gradient of a silent latent is zero, and only noise leaves it.
            The toys of ``idlm bench`` need 3 to 10; on text, as in ``idlm bench oracle``, the
            silent start is better.
        dropout: of student and auxiliary network; the teacher's config decides if not given.
        max_student_updates: length of the run.
        fake_per_student: fake updates before each student update; the objective's choice if not
            given, 1 for most and 5 for DMD2. For objectives that alternate only.
        lr: peak learning rate of the student.
        fake_lr: the same of the fake model, ``lr`` if not given; likewise.
        betas, weight_decay, adam_eps: AdamW's, for all networks. Losses here are means over tokens
            where the papers sum over the L of a sequence, so their eps of 1e-8 is 1e-8 / L here.
        warmup: student updates of linear warm-up; the fake model warms up alike.
        decay: ``constant`` (IDLM), ``linear`` or ``cosine``, of both learning rates.
        clip: largest gradient norm of either network, 0 for none (the published runs use none).
        ema_decay: of the student; 0 for no averaging.
        micro_batch_size: sequences per forward pass.
        attention, compile, gradient_checkpointing: as for the teacher.
        export_dir: where the finished student goes; ``export`` in the trainer's folder otherwise.
        export_dtype: floating dtype of the exported weights.
        seed: keys of all noise.

    Attributes:
        student_updates: updates of the student so far; saved and resumed.
        fake_updates: updates of the fake model so far; saved and resumed.
        collapsed: set by :class:`~idlm.training.callbacks.CollapseGuard` when it stops the run.
    """

    counters = ("student_updates", "fake_updates", "objective")

    def __init__(
        self,
        teacher: str,
        objective: DistillationObjective,
        *,
        student: str | None = None,
        fresh_student: bool = False,
        tokenizer: str | None = None,
        latent_global: int | None = None,
        latent_position: int | None = None,
        latent_init: float = 0.0,
        dropout: float | None = None,
        max_student_updates: int = 1000,
        fake_per_student: int | None = None,
        lr: float = 1e-6,
        fake_lr: float | None = None,
        betas: tuple[float, float] = (0.9, 0.999),
        weight_decay: float = 0.0,
        adam_eps: float = 1e-8,
        warmup: int = 2500,
        decay: Decay = "constant",
        clip: float = 1.0,
        ema_decay: float = 0.9999,
        micro_batch_size: int = 8,
        attention: str = "auto",
        compile: bool = False,
        gradient_checkpointing: bool = False,
        export_dir: str | None = None,
        export_dtype: Literal["float32", "float16", "bfloat16"] = "float32",
        seed: int = 0,
    ) -> None:
        super().__init__(micro_batch_size=micro_batch_size, clip=clip, seed=seed)
        alternating = objective.trains == "alternating"
        for name, value in (("fake_per_student", fake_per_student), ("fake_lr", fake_lr)):
            if value is not None and not alternating:
                raise UserError(
                    f"{name} is {value}, but {type(objective).__name__} has no fake model; "
                    f"leave {name} out"
                )
        for name, count in (
            ("max_student_updates", max_student_updates),
            ("fake_per_student", 1 if fake_per_student is None else fake_per_student),
        ):
            if count < 1:
                raise UserError(f"{name} is {count}; it must be at least 1")
        self.save_hyperparameters(ignore=["objective"])
        check_settings(self.hparams)
        self.objective = objective
        # updates of the fake model before each one of the student
        self.fake_per_student = (
            (fake_per_student or objective.fake_per_student) if alternating else 0
        )
        self.student_updates = 0
        self.fake_updates = 0
        self.collapsed = False
        self.networks: Networks | None = None
        self._given: tuple[Any, Any] | None = None

    @classmethod
    def from_networks(
        cls, teacher: Any, objective: DistillationObjective, student: Any = None, **settings: Any
    ) -> DistillationModule:
        """Distil networks that are in memory: for notebooks, benches and continuous data.

        Args:
            teacher: a :class:`~idlm.models.DiffusionLM`, or for continuous data a
                :class:`~idlm.models.continuous.ContinuousDenoiser`; frozen, and copied only
                where the objective changes it.
            objective: how the losses are formed.
            student: network of the same kind to start from, copied; the teacher if not given.
            settings: arguments of the constructor, without ``teacher`` and ``student``. The
                student is exported only if there is an ``export_dir``.
        """
        name = getattr(teacher, "name_or_path", "") or "a network in memory"
        module = cls(name, objective, **settings)
        module._given = (teacher, student)
        return module

    def prepare_data(self) -> None:
        """Fetch what comes from the hub, and refuse what does not go together, unopened."""
        h = self.hparams
        if self._given is not None:
            return
        names = [name for name in (h["teacher"], h["student"]) if name]
        configs, self.tokenizer = reach(*names, tokenizer=h["tokenizer"] or h["teacher"])
        self.context = configs[-1].model_length
        check_pairing(self.objective, configs[0].make_process())
        check_configs(configs[-1], configs[0], names[-1], names[0])

    def configure_model(self) -> None:
        """Load the teacher and build what trains; Lightning calls it once per run."""
        if self.networks is not None:
            return
        h = self.hparams
        if self.device_mesh is not None and not self.objective.shardable:
            raise UserError(
                f"{type(self.objective).__name__} cannot run with strategy sharded, which needs "
                "the same forward passes in every process; use ddp_find_unused_parameters_true"
            )
        if self._given is None:
            self.teacher = load(h["teacher"])
            self.tokenizer = load_tokenizer(h["tokenizer"] or h["teacher"])
            start = load(h["student"]) if h["student"] else None
        else:
            self.teacher, start = self._given
            if self.objective.changes_teacher:
                self.teacher = copy.deepcopy(self.teacher)
            if h["tokenizer"]:
                self.tokenizer = load_tokenizer(h["tokenizer"])
            else:
                self.tokenizer = tokenizer_of(self.teacher, exported=bool(h["export_dir"]))
        check_pairing(self.objective, self.teacher.process)
        torch.manual_seed(self.seed)  # new weights are alike on every process
        self.networks = make_networks(
            self.objective,
            self.teacher,
            start,
            fresh=h["fresh_student"],
            latent=(h["latent_global"], h["latent_position"]),
            latent_init=h["latent_init"],
        )
        # attributes of their own, so that Lightning moves, wraps and saves them
        self.student, self.auxiliary = self.networks.student, self.networks.auxiliary
        teacher: nn.Module = self.teacher
        trained: list[nn.Module] = [self.student]
        if self.auxiliary is not None:
            trained.append(self.auxiliary)
        for network in trained:
            set_up(network, h["dropout"], gradient_checkpointing=h["gradient_checkpointing"])
        self.ema = average_weights(self.student, h["ema_decay"])
        for network in [teacher, *trained]:
            accelerate(network, attention=h["attention"], compile=h["compile"])
        self.shard(teacher, *trained, self.ema.module)
        self.val_loss = MeanMetric()
        # a batch in which nothing is masked has no entropy
        self.val_entropy = MeanMetric(nan_strategy="ignore")

    def configure_optimizers(self) -> list[OptimizerLRSchedulerConfig]:
        """AdamW for what an update changes: student, then fake model, or both as one.

        Both schedules count student updates.
        """
        h = self.hparams

        def factor(step: int) -> float:
            return lr_factor(
                step, warmup=h["warmup"], decay=h["decay"], total=h["max_student_updates"]
            )

        def fake_factor(step: int) -> float:
            return factor(step // self.fake_per_student)

        betas, wd, eps = tuple(h["betas"]), h["weight_decay"], h["adam_eps"]
        networks = self._networks()
        match self.objective.trains:
            case "alternating":
                assert networks.auxiliary is not None  # make_networks saw to it
                rate = h["lr"] if h["fake_lr"] is None else h["fake_lr"]
                return [
                    self.optimizer(networks.student, h["lr"], betas, wd, factor, eps),
                    self.optimizer(networks.auxiliary, rate, betas, wd, fake_factor, eps),
                ]
            case "jointly":
                both = nn.ModuleList(filter(None, (networks.student, networks.auxiliary)))
                return [self.optimizer(both, h["lr"], betas, wd, factor, eps)]
            case "student":
                return [self.optimizer(networks.student, h["lr"], betas, wd, factor, eps)]

    def training_step(self, batch: Batch, batch_idx: int) -> None:
        """One update: of the fake model until it has had its share, else of the student."""
        if self.fake_updates < (self.student_updates + 1) * self.fake_per_student:
            self._update_fake(batch)
        else:
            self._update_student(batch)

    def _update_fake(self, batch: Batch) -> None:
        networks = self._networks()
        networks.fake.train()
        networks.student.eval()  # the student the fake model follows is the one that is sampled

        def loss(tokens: Tensor, draw: Draw) -> LossSum:
            return self.objective.auxiliary_loss(networks, tokens, draw)

        step = self.student_updates + self.fake_updates
        out = self.update(batch, loss, which=1, step=step, name="fake")
        self.fake_updates += 1
        self._log("fake", out)

    def _update_student(self, batch: Batch) -> None:
        networks = self._networks()
        networks.student.train()
        if networks.auxiliary is not None:
            networks.auxiliary.train(self.objective.trains == "jointly")

        def loss(tokens: Tensor, draw: Draw) -> LossSum:
            return self.objective.student_loss(networks, tokens, draw)

        step = self.student_updates + self.fake_updates
        out = self.update(batch, loss, which=0, step=step, name="student")
        self.ema.update_parameters(networks.student)
        self.student_updates += 1
        self.objective.after_student_update(networks, self.ema, self.student_updates)
        self._log("student", out)
        if self.finished:
            self.trainer.should_stop = True

    def _log(self, name: str, out: dict[str, Tensor]) -> None:
        shown = ("loss", "tokens_per_second", "mfu", "student_entropy")
        for key, value in out.items():
            own = f"{name}_{key}" if key in ("loss", "grad_norm") else key
            self.log(f"train/{own}", value, prog_bar=key in shown)
        for key, count in self._counts().items():
            self.log(key, float(count))
