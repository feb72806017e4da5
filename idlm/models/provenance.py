"""What a checkpoint knows about its own making: the card beside it, or the training state in it.

Trainings of ``idlm fit`` say it themselves in their checkpoints. Those of older versions do not,
and have a ``config.yaml`` in the folder of the run instead.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import yaml

from idlm.errors import UserError
from idlm.models.archive import Archive
from idlm.models.cards import (
    UNKNOWN,
    Card,
    objective_text,
    student_card,
    teacher_card,
    trained_card,
)
from idlm.models.files import fetch
from idlm.models.lightning_config import setting

_DATA = ("corpus", "revision", "tokenizer", "length", "global_batch_size", "special_ends")
# where the settings of the MDLM, Duo and IDLM repositories have it
_CORPUS = {"corpus": "data.train", "tokenizer": "data.tokenizer_name_or_path"}
_TRAINING = {
    "algorithm": "algo.name",
    "parameterization": "parameterization",
    "length": "model.length",
    "global batch size": "loader.global_batch_size",
    "learning rate": "optim.lr",
    "EMA decay": "training.ema",
}


def source_card(
    checkpoint: str | Path, *, revision: str | None = None, raw: bool = False
) -> Card | None:
    """The card of a checkpoint; for a ``.ckpt`` one made from what it holds.

    Args:
        checkpoint: folder, bundled name, hub id, or path of a Lightning ``.ckpt``.
        revision: hub revision.
        raw: whether the raw weights of a ``.ckpt`` are meant instead of the average.

    Returns:
        None for a checkpoint that says nothing about itself.

    Raises:
        UserError: if there is a card that cannot be read.
    """
    path = fetch(checkpoint, "README.md", "config.json", revision=revision)
    if path.is_file():
        return _from_training(path, averaged=not raw)
    path /= "README.md"
    if not path.is_file():
        return None
    try:
        return Card.parse(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, UserError) as error:
        raise UserError(f"{path} cannot be read as a model card: {error}") from error


def _from_training(path: Path, *, averaged: bool) -> Card | None:
    """A card from the state of a training, ours or the authors'; nothing in it is executed."""
    with Archive(path) as archive:
        state = archive.root
    settings = state.get("hyper_parameters") if isinstance(state, dict) else None
    if not isinstance(settings, dict):
        return None
    network = state.get("network", {})
    if "student_updates" in state and "teacher" in settings:
        objective, data = _making(path, state, settings)
        counts = {name: state[name] for name in ("student_updates", "fake_updates")}
        process = network.get("process", "absorbing")
        text = student_card(
            settings, objective, counts, {}, data, averaged=averaged, process=process
        )
    elif "updates" in state and "muon_lr" in settings:
        _, data = _making(path, state, settings)
        # sizes that were left to the checkpoint it started from stand in the network
        whole = {**settings, **network}
        text = teacher_card(whole, state["updates"], {}, data, averaged=averaged)
    else:
        return _of_the_authors(state, averaged=averaged)
    return Card.parse(text)


def _making(
    path: Path, state: Mapping[str, Any], settings: Mapping[str, Any]
) -> tuple[str, dict[str, Any]]:
    """Objective and data: as the checkpoint says, else as the configuration of its run does."""
    said = state.get("making")
    if isinstance(said, dict):
        data, objective = _scalars(said.get("data")), said.get("objective")
        if isinstance(said.get("tokenizer"), str):
            data["tokenizer"] = said["tokenizer"]
        if isinstance(objective, str):
            return objective_text(objective, _scalars(said.get("objective_settings"))), data
        return f"an objective that is {UNKNOWN}", data
    run = _run_config(path, settings)
    given = _arguments(run, "data")
    data = {name: given[name] for name in _DATA if given.get(name) is not None}
    return _called(_arguments(run, "model").get("objective")), data


def _scalars(found: Any) -> dict[str, Any]:
    """What a file from anywhere says in single values; to write lists in lists could take ever."""
    items = found.items() if isinstance(found, dict) else ()
    return {k: v for k, v in items if isinstance(k, str) and isinstance(v, (str, int, float))}


def _of_the_authors(state: Mapping[str, Any], *, averaged: bool) -> Card | None:
    """What the Hydra settings in a checkpoint of the published repositories state."""
    settings = setting(state["hyper_parameters"], "config")

    def known(names: Mapping[str, str]) -> dict[str, Any]:
        found = {}
        for title, name in names.items():
            with suppress(UserError):  # an interpolation that only its run could compute
                found[title] = setting(settings, name)
        return {k: v for k, v in found.items() if isinstance(v, (str, int, float))}

    training, data = known(_TRAINING), known(_CORPUS)
    if not training and not data:
        return None
    if isinstance(state.get("global_step"), int):
        training["global_step"] = state["global_step"]
    return Card.parse(trained_card(training, data, averaged=averaged))


def _run_config(path: Path, settings: Mapping[str, Any]) -> dict[str, Any]:
    """The ``config.yaml`` that ``idlm fit`` left by the checkpoints or the log, if of this run.

    A run that was continued may have several logs; of those that fit the newest counts.
    """
    root = path.parent.parent
    near = (folder / "config.yaml" for folder in (root, path.parent))
    logs = sorted(root.glob("*/version_*/config.yaml"), key=_written, reverse=True)
    for file in (*near, *logs):
        try:
            found = yaml.safe_load(file.read_text(encoding="utf-8"))
        except (OSError, UnicodeDecodeError, yaml.YAMLError):
            continue
        given = _arguments(found, "model")
        same = all(_plain(settings[k]) == _plain(v) for k, v in given.items() if k in settings)
        if given and same:
            return dict(found)
    return {}


def _written(file: Path) -> float:
    """When a file was written last; long ago if it cannot be asked."""
    try:
        return file.stat().st_mtime
    except OSError:
        return 0.0


def _arguments(run: Any, part: str) -> dict[str, Any]:
    """``init_args`` of the model or the data in a run's configuration."""
    section = run.get(part) if isinstance(run, dict) else None
    arguments = section.get("init_args") if isinstance(section, dict) else None
    return arguments if isinstance(arguments, dict) else {}


def _called(objective: Any) -> str:
    """An objective of a configuration as a name and its settings."""
    if not isinstance(objective, dict) or "class_path" not in objective:
        return f"an objective that is {UNKNOWN}"
    name = str(objective["class_path"]).rpartition(".")[2]
    return objective_text(name, objective.get("init_args") or {})


def _plain(value: Any) -> Any:
    """Tuples and lists alike: YAML has no tuples."""
    return list(value) if isinstance(value, (tuple, list)) else value
