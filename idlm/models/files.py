"""Where a checkpoint's files are, and what its ``config.json`` says."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from idlm.errors import UserError
from idlm.hub import hub_reachable
from idlm.models.config import DiffusionConfig
from idlm.models.published import layout_of
from idlm.paths import bundled_hint, resolve

WEIGHTS = ("*.json", "*.safetensors", "*.txt", "*.model")
LIGHTNING = ".ckpt"


def fetch(name: str | Path, *patterns: str, revision: str | None = None, **hub: Any) -> Path:
    """The local folder of a checkpoint: itself, a bundled model, or a snapshot from the hub.

    The path of a Lightning ``.ckpt`` file is returned as it is. Without a connection to the hub
    only what is cached on this machine is used, and that is settled in seconds.

    Args:
        name: folder, file, name of a bundled model, or hub id.
        patterns: files that are wanted from the hub; all when left out.
        revision: branch, tag or commit on the hub.
        hub: further arguments of ``huggingface_hub.snapshot_download``, such as ``token``.

    Raises:
        UserError: if it is neither here nor on the hub, or a local one is given a revision.
    """
    path = _place(name)
    if path.is_dir() or (path.is_file() and path.suffix == LIGHTNING):
        if revision is not None:
            raise UserError(
                f"revision is {revision!r} but {str(name)!r} is on this machine and has none; "
                "leave the revision out, or give a hub id"
            )
        return path
    if path.suffix == LIGHTNING and not path.exists():
        raise UserError(f"there is no checkpoint {str(name)!r}; check the path of the .ckpt file")
    if path.exists() or str(name).startswith((".", "/", "~")) or str(name).count("/") > 1:
        raise UserError(
            f"checkpoint {str(name)!r} is not a folder; give a folder with config.json and "
            "model.safetensors, a Lightning .ckpt file, or a hub id such as kuleshov-group/mdlm-owt"
        )
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HFValidationError

    if not hub.get("local_files_only"):
        hub["local_files_only"] = not hub_reachable()
    try:
        return Path(
            snapshot_download(
                str(name), revision=revision, allow_patterns=list(patterns) or None, **hub
            )
        )
    except HFValidationError as error:
        raise UserError(
            f"checkpoint {str(name)!r} is neither a folder nor a hub id such as owner/name"
        ) from error
    except Exception as error:  # hub, http and offline errors share no base class
        if hub["local_files_only"]:
            reason = "no connection, and it is not cached here"
        else:
            first_line = str(error).strip().partition("\n")[0]
            reason = f"{type(error).__name__}: {first_line[:160]}"
        asked = f"checkpoint {str(name)!r}" + (f" at revision {revision!r}" if revision else "")
        raise UserError(
            f"could not reach {asked} on the Hugging Face hub ({reason}); check the name and the "
            "network, or give the path of a local folder with config.json and model.safetensors "
            f"instead{bundled_hint(str(name))}"
        ) from error


def _place(name: str | Path) -> Path:
    """Where a checkpoint would be on this machine.

    Raises:
        UserError: if the system refuses to look there.
    """
    path = Path(resolve(name))
    try:
        path.exists()
    except OSError as error:
        raise UserError(
            f"checkpoint {str(name)[:80]!r} cannot be looked for ({error.strerror}); give a folder "
            "with config.json and model.safetensors, a Lightning .ckpt file, or a hub id"
        ) from error
    return path


def read_json(folder: Path) -> dict[str, Any]:
    """The folder's ``config.json``.

    Raises:
        UserError: if the file is missing, unreadable or no JSON object.
    """
    path = folder / "config.json"
    try:
        raw = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"{folder} has no config.json, so it is no model checkpoint") from None
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror}); check it") from error
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path} is not valid JSON ({error}); download it again") from error
    if not isinstance(raw, dict):
        raise UserError(f"{path} is not a JSON object of settings; download it again")
    return raw


def read_config(path: Path) -> DiffusionConfig:
    """The configuration of a fetched checkpoint, whatever its layout.

    Args:
        path: what :func:`fetch` returned.

    Raises:
        UserError: if it is missing, unreadable, of an unknown kind or incomplete.
    """
    if path.is_file():
        from idlm.models.lightning_ckpt import read_lightning_config

        return read_lightning_config(path)
    raw = read_json(path)
    if layout_of(raw) == "sdtt":
        from idlm.models.weights import embedding_rows

        raw["vocab_size"] = embedding_rows(path)
    return DiffusionConfig.from_dict(raw, name_or_path=str(path))
