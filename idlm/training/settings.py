"""Numbers of a training that no optimiser can follow, refused before anything is built."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from idlm.errors import UserError
from idlm.models.attention import BACKENDS

_RATES = ("lr", "fake_lr", "muon_lr", "weight_decay", "adam_eps", "latent_init")
_COUNTS = ("warmup", "latent_global", "latent_position", "max_updates", "seed")
_SHARES = {"ema_decay": ", 0 for no averaging", "dropout": ""}


def check_settings(settings: Mapping[str, Any]) -> None:
    """Refuse what is negative, infinite, not a number, or no name, among a module's arguments.

    Args:
        settings: arguments by name; those that are absent or None are not asked about.

    Raises:
        UserError: naming the first that is wrong and what is allowed.
    """
    given = {name: value for name, value in settings.items() if value is not None}
    for name in _RATES:
        if name in given and not 0.0 <= given[name] < math.inf:
            raise UserError(f"{name} is {given[name]}; it must be 0 or more, and finite")
    for name in _COUNTS:
        if name in given and given[name] < 0:
            raise UserError(f"{name} is {given[name]}; it must be 0 or more")
    for name, remark in _SHARES.items():
        if name in given and not 0.0 <= given[name] < 1.0:
            raise UserError(f"{name} is {given[name]}; it must be in [0, 1){remark}")
    for beta in given.get("betas", ()):
        if not 0.0 <= beta < 1.0:
            raise UserError(f"betas holds {beta}; each of them must be in [0, 1)")
    if given.get("attention", "auto") not in BACKENDS:
        raise UserError(f"attention is {given['attention']!r}; choose one of {', '.join(BACKENDS)}")
