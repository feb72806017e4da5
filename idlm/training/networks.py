"""What the networks of a distillation must have in common, and how they are prepared."""

from __future__ import annotations

from torch import nn

from idlm.errors import UserError
from idlm.models import DiffusionLM, fetch, load_tokenizer

_LATENT = ("latent_global", "latent_position")
_FILES = ("*.json", "*.safetensors", "*.txt", "*.model")


def reach(*checkpoints: str | None, tokenizer: str) -> None:
    """Have checkpoints and tokenizer on this machine, from the hub if they are not.

    Raises:
        UserError: for the first that can be found neither here nor there.
    """
    for name in filter(None, checkpoints):
        fetch(name, *_FILES)
    load_tokenizer(tokenizer)


def check_pair(student: DiffusionLM, teacher: DiffusionLM) -> None:
    """Refuse a student that cannot learn from this teacher, and a teacher that is none.

    Raises:
        UserError: if vocabulary or process differ, or the teacher has a latent.
    """
    ours, theirs = student.config, teacher.config
    for key in ("vocab_size", "process"):
        if getattr(ours, key) != getattr(theirs, key):
            raise UserError(
                f"student {student.name_or_path!r} and teacher {teacher.name_or_path!r} differ in "
                f"{key}: {getattr(ours, key)} against {getattr(theirs, key)}; start the student "
                "from a checkpoint of the teacher's family"
            )
    if teacher.has_latent:
        raise UserError(
            f"teacher {teacher.name_or_path!r} has a latent, so it is a generator; "
            "give a teacher without one"
        )


def with_noise(
    start: DiffusionLM, latent_global: int | None, latent_position: int | None
) -> DiffusionLM:
    """The student: ``start`` with a latent, its own if it has one.

    Args:
        start: checkpoint the student starts from.
        latent_global: size of the global vector; None for 64, or what ``start`` has.
        latent_position: size of the noise per position, likewise.

    Raises:
        UserError: if ``start`` has a latent of another size.
    """
    if not start.has_latent:
        sizes = (64 if size is None else size for size in (latent_global, latent_position))
        return start.with_latent(**dict(zip(_LATENT, sizes, strict=True)))
    for name, asked in zip(_LATENT, (latent_global, latent_position), strict=True):
        own = getattr(start.config, name)
        if asked not in (None, own):
            raise UserError(
                f"{name} is {asked} but the student {start.name_or_path!r} was trained with {own}; "
                f"leave {name} out, or start from a checkpoint without a latent"
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
