"""What the networks of a distillation must have in common, and how they are prepared."""

from __future__ import annotations

import copy
from typing import Any

from lightning.pytorch.utilities import rank_zero_warn
from torch import nn

from idlm.errors import UserError
from idlm.models import DiffusionConfig, DiffusionLM, fetch, load_tokenizer
from idlm.models.files import read_config
from idlm.models.recognition import Recognition
from idlm.models.tokenizers import check_tokenizer
from idlm.objectives.base import DistillationObjective, Networks

_LATENT = ("latent_global", "latent_position")
_FILES = ("*.json", "*.safetensors", "*.txt", "*.model")


def reach(*checkpoints: str | None, tokenizer: str) -> tuple[list[DiffusionConfig], Any]:
    """Have checkpoints and tokenizer on this machine, from the hub if they are not.

    Returns:
        The configurations of the checkpoints that are given, and the tokenizer.

    Raises:
        UserError: for the first that can be found neither here nor there.
    """
    configs = [read_config(fetch(name, *_FILES)) for name in filter(None, checkpoints)]
    return configs, load_tokenizer(tokenizer)


def tokenizer_of(network: Any, *, exported: bool) -> Any:
    """The tokenizer of a network in memory: the one where the network is from.

    Folders, bundled models and the cache of the hub are looked at; nothing is fetched.

    Args:
        network: the teacher.
        exported: whether the student will be, so that the lack of a tokenizer is worth a warning.

    Returns:
        None if there is none that fits the network.
    """
    if not isinstance(network, DiffusionLM):
        return None
    why = "it was not loaded from a checkpoint"
    if name := network.name_or_path:
        try:
            found = load_tokenizer(name, revision=network.revision, local=True)
            check_tokenizer(found, network.config, name)
        except UserError as error:
            why = str(error).partition(";")[0]
        else:
            return found
    if exported:
        rank_zero_warn(
            f"the teacher in memory has no tokenizer on this machine ({why}), so the student is "
            "exported without one; give tokenizer=FOLDER to from_networks, or add it later with "
            "`idlm export --tokenizer FOLDER`"
        )
    return None


def check_pair(student: DiffusionLM, teacher: DiffusionLM) -> None:
    """Refuse a student that cannot learn from this teacher, and a teacher that is none.

    Raises:
        UserError: as :func:`check_configs`.
    """
    check_configs(student.config, teacher.config, student.name_or_path, teacher.name_or_path)


def check_configs(
    student: DiffusionConfig, teacher: DiffusionConfig, student_name: str, teacher_name: str
) -> None:
    """Refuse a student that cannot learn from this teacher, and a teacher that is none.

    Raises:
        UserError: if vocabulary or process differ, or the teacher has a latent.
    """
    for key in ("vocab_size", "process"):
        if getattr(student, key) != getattr(teacher, key):
            raise UserError(
                f"student {student_name!r} and teacher {teacher_name!r} differ in {key}: "
                f"{getattr(student, key)} against {getattr(teacher, key)}; start the student "
                "from a checkpoint of the teacher's family"
            )
    if teacher.latent_global or teacher.latent_position:
        raise UserError(
            f"teacher {teacher_name!r} has a latent, so it is a generator; "
            "give a teacher without one"
        )


def make_networks(
    objective: DistillationObjective,
    teacher: Any,
    start: Any = None,
    *,
    fresh: bool = False,
    latent: tuple[int | None, int | None] = (None, None),
    latent_init: float = 0.0,
) -> Networks:
    """Freeze the teacher, and build the student and what the objective trains beside it.

    Args:
        objective: decides the latent's sizes that are not given, and the auxiliary network.
        teacher: a :class:`~idlm.models.DiffusionLM`, or a denoiser of continuous data.
        start: what the student's weights are copied from; the teacher if not given.
        fresh: new weights for the student.
        latent: sizes (vector, per position) of its latent; None for the objective's choice.
        latent_init: scale of a new latent's first weights.

    Raises:
        UserError: if the networks do not go together, or not with the objective.
    """
    teacher.requires_grad_(False).eval()
    start = teacher if start is None else start
    student = _generator(
        objective, start, teacher, fresh=fresh, latent=latent, latent_init=latent_init
    )
    student.requires_grad_(True)
    objective.check(teacher, student)
    auxiliary = objective.make_auxiliary(teacher, student)
    if objective.trains != "student" and auxiliary is None:
        raise RuntimeError(f"{type(objective).__name__} trains an auxiliary network and makes none")
    if auxiliary is not None:
        auxiliary.requires_grad_(True)
    return Networks(teacher, student, auxiliary)


def _generator(
    objective: DistillationObjective,
    start: Any,
    teacher: Any,
    *,
    fresh: bool,
    latent: tuple[int | None, int | None],
    latent_init: float,
) -> Any:
    """The student, a network of its own."""
    if not isinstance(teacher, DiffusionLM):
        names = ("fresh_student", "latent_global", "latent_position", "latent_init")
        given = dict(zip(names, (fresh, *latent, latent_init), strict=True))
        for name, value in given.items():
            if value:
                raise UserError(
                    f"{name} is {value}, but a student on continuous data starts from its "
                    f"teacher's weights and its noise is the state; leave {name} out"
                )
        return copy.deepcopy(start)
    check_pair(start, teacher)
    if fresh:
        start = type(start)(copy.deepcopy(start.config))
    student = with_noise(start, *latent, default=objective.latent, latent_init=latent_init)
    return copy.deepcopy(student) if student is start else student


def set_up(network: nn.Module, dropout: float | None, *, gradient_checkpointing: bool) -> None:
    """Apply the settings of a network that is trained."""
    if isinstance(network, (DiffusionLM, Recognition)):
        network.set_gradient_checkpointing(gradient_checkpointing)
    if dropout is not None:
        set_dropout(network, dropout)


def accelerate(network: nn.Module, *, attention: str, compile: bool) -> None:
    """Choose the attention kernel, and compile in place; parameter names stay as they are."""
    if isinstance(network, (DiffusionLM, Recognition)):
        network.set_attention(attention)
    if compile and isinstance(network, DiffusionLM):
        network.compile_backbone()
    elif compile:
        network.compile()


def with_noise(
    start: DiffusionLM,
    latent_global: int | None,
    latent_position: int | None,
    *,
    default: tuple[int, int] = (64, 64),
    latent_init: float = 0.0,
) -> DiffusionLM:
    """The student: ``start`` with a latent, its own if it has one.

    Args:
        start: checkpoint the student starts from.
        latent_global: size of the global vector; None for ``default``, or what ``start`` has.
        latent_position: size of the noise per position, likewise.
        default: both sizes.
        latent_init: scale of a new latent's first weights, 0 for a silent one.

    Raises:
        UserError: if ``start`` has a latent of another size, or none that is new is to be woken.
    """
    if not start.has_latent:
        asked = zip((latent_global, latent_position), default, strict=True)
        sizes = (usual if size is None else size for size, usual in asked)
        return start.with_latent(**dict(zip(_LATENT, sizes, strict=True)), latent_init=latent_init)
    if latent_init:
        raise UserError(
            f"latent_init is {latent_init}, but the student {start.name_or_path!r} has a latent "
            "already; leave latent_init out, or start from a checkpoint without one"
        )
    for name, wanted in zip(_LATENT, (latent_global, latent_position), strict=True):
        own = getattr(start.config, name)
        if wanted not in (None, own):
            raise UserError(
                f"{name} is {wanted} but the student {start.name_or_path!r} was trained with "
                f"{own}; leave {name} out, or start from a checkpoint without a latent"
            )
    return start


def set_dropout(network: nn.Module, rate: float) -> None:
    """Set every dropout of ``network`` to ``rate``.

    Raises:
        UserError: if the rate is not in [0, 1).
    """
    if not 0.0 <= rate < 1.0:
        raise UserError(f"dropout is {rate}; it must be in [0, 1)")
    for module in network.modules():
        if isinstance(module, nn.Dropout):
            module.p = rate
