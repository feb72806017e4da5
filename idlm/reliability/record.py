"""``reliability.json``: one section for each program, each with its command and conditions."""

from __future__ import annotations

import json
import platform
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from idlm.errors import UserError
from idlm.locks import alone_writing
from idlm.samples import replace_file


def record(path: str | Path, section: str, figures: Mapping[str, Any]) -> Path:
    """Put a section into a JSON file and leave the others as they are.

    Args:
        path: of the file, which need not be there yet.
        section: its name; an earlier one of that name is replaced.
        figures: numbers with their conditions.

    Returns:
        ``path``.

    Raises:
        UserError: if the file holds something else, is being written, or cannot be.
    """
    path = Path(path)
    with alone_writing(path, remedy="run the two programs one after the other"):
        sections = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
        if not isinstance(sections, dict):
            raise UserError(f"{path} holds no object of sections; name another file")
        sections[section] = {**figures, **conditions()}
        text = json.dumps(dict(sorted(sections.items())), indent=1, allow_nan=False)
        return replace_file(path, [text + "\n"])


def conditions() -> dict[str, Any]:
    """Versions and machine."""
    import lightning
    import torch

    return {
        "python": platform.python_version(),
        "torch": torch.__version__,
        "lightning": lightning.__version__,
        "system": f"{platform.system()} {platform.machine()}",
        "threads": torch.get_num_threads(),
    }


def told(work: Callable[[], None]) -> None:
    """Run a program of this package: errors of usage are one sentence and exit code 2."""
    try:
        work()
    except UserError as error:
        print(f"idlm: error: {error}", file=sys.stderr)
        raise SystemExit(2) from None
