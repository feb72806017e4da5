"""The records of a bench: JSON that several runs may fill, and how a student of it was trained."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, is_dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from idlm.errors import UserError
from idlm.locks import awaited, lock_beside
from idlm.samples import replace_file

if TYPE_CHECKING:
    from idlm.objectives.base import DistillationObjective

Record = dict[str, Any]
# settings of the distillation module that a record states
_RECORDED = (
    *("max_student_updates", "micro_batch_size", "lr", "fake_lr", "betas", "weight_decay"),
    *("adam_eps", "warmup", "decay", "clip", "ema_decay", "dropout"),
    *("latent_global", "latent_position", "latent_init"),
)


def read_records(path: Path, whose: str, keys: Mapping[str, Any]) -> list[Record]:
    """The records of a file; none if there is no file.

    Args:
        path: the JSON.
        whose: name of the bench as an owner, for the message: ``oracle's``.
        keys: what a record must have, and the type of each.

    Raises:
        UserError: if it cannot be read, or holds something else.
    """
    if not path.exists():
        return []
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"--json {path} cannot be read ({error}); name another file") from error
    fits = isinstance(found, list) and all(
        isinstance(record, dict)
        and all(isinstance(record.get(key), kind) for key, kind in keys.items())
        for record in found
    )
    if not fits:
        raise UserError(f"--json {path} is no list of the {whose} records; name another file")
    return found


def write_records(path: Path, records: Sequence[Record]) -> None:
    """Write records, each on a line.

    Raises:
        UserError: if the file cannot be written.
    """
    lines = ",\n".join(json.dumps(record, allow_nan=False) for record in records)
    replace_file(path, [f"[\n{lines}\n]\n"])


@contextmanager
def merging(path: Path) -> Iterator[None]:
    """Read the file, change it and write it, while no other run does; who comes second waits.

    Raises:
        UserError: if the folder cannot be written.
    """
    if path.exists() and not path.is_file():  # a device keeps nothing
        yield
        return
    with awaited(lock_beside(path), subject=str(path)):
        yield


def as_json(value: Any) -> Any:
    """A value as JSON gives it back: lists for tuples."""
    return json.loads(json.dumps(value, allow_nan=False))


def objective_record(objective: DistillationObjective) -> Record:
    """Name and arguments of an objective that has not been run, for JSON.

    Returns:
        Its class under ``name``, and its public attributes that JSON has a form for; a dataclass is
        an object.
    """
    kept: Record = {"name": type(objective).__name__}
    for name, value in vars(objective).items():
        # what a run changes is no setting
        if name.startswith("_") or name in objective.state_dict():
            continue
        value = asdict(value) if is_dataclass(value) and not isinstance(value, type) else value
        with contextlib.suppress(TypeError):
            kept[name] = as_json(value)
    return kept


def student_record(objective: DistillationObjective, settings: Mapping[str, Any]) -> Record:
    """How a student is trained, for JSON.

    Args:
        objective: of the training.
        settings: arguments of the distillation module; its defaults are added.
    """
    from idlm.training.distil import DistillationModule

    module = DistillationModule.from_networks(None, objective, **settings)
    chosen: Record = {name: as_json(module.hparams[name]) for name in _RECORDED}
    return {
        "updates": chosen.pop("max_student_updates"),
        "batch": chosen.pop("micro_batch_size"),
        "fake_per_student": module.fake_per_student,
        **chosen,
        "objective": objective_record(objective),
    }
