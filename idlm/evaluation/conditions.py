"""What every JSON file of a measurement begins with."""

from __future__ import annotations

from typing import Any


def document(argv: list[str], **content: Any) -> dict[str, Any]:
    """The command, the versions it ran with, and what it found.

    Args:
        argv: the arguments after ``idlm evaluate``.
        content: the rest of the file.
    """
    import torch
    import transformers

    from idlm import __version__

    return {
        "command": ["idlm", "evaluate", *argv],
        "idlm": __version__,
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        **content,
    }
