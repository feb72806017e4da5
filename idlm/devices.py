"""Choosing a device by name, with a sentence when it is not there."""

from __future__ import annotations

import torch

from idlm.errors import UserError

_ALLOWED = "use cpu, cuda or cuda:N"


def pick_device(name: str | None = None) -> torch.device:
    """The device called ``name``; without a name the GPU if there is one, else the CPU.

    Raises:
        UserError: if the name is unknown or this machine has no such device.
    """
    gpus = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if name is None:
        return torch.device("cuda" if gpus else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise UserError(f"device {name!r} is unknown; {_ALLOWED}") from error
    if device.type not in ("cpu", "cuda"):
        # the exact draws need float64, which other accelerators lack
        raise UserError(f"device {name!r} is not supported; {_ALLOWED}")
    if device.type == "cuda" and (device.index or 0) >= gpus:
        raise UserError(
            f"device {name!r} is not here: PyTorch {torch.__version__} sees {gpus} CUDA devices; "
            "use cpu, or install a CUDA build of PyTorch on a machine with a GPU"
        )
    return device
