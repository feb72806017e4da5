"""The published layouts: what each ``config.json`` says, in our own fields.

A layout is one function and one row of :data:`LAYOUTS`. The JSON decides, never the default of a
class: the hub's MDLM and Duo classes would say cond_dim 129, their networks have 128.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

from idlm.errors import UserError
from idlm.models.config import FIELDS, SIZES

Json = Mapping[str, Any]

# What no published layout states, and all of the family share (MDLM A.1, Duo; methods B.2).
_SHARED = {
    "schedule": "log-linear",
    "schedule_eps": 1e-3,
    "latent_global": 0,
    "latent_position": 0,
}
# SDTT keeps the settings of its training run, where the sizes have other names.
_SDTT = {
    "length": "model_length",
    "hidden_size": "hidden_dim",
    "cond_dim": "cond_dim",
    "n_blocks": "n_blocks",
    "n_heads": "n_heads",
    "dropout": "dropout",
}


def _pick(raw: Json, names: Iterable[str], source: str) -> dict[str, Any]:
    absent = [name for name in names if name not in raw]
    if absent:
        raise UserError(
            f"{source} lacks {', '.join(absent)}; a checkpoint states every size of its network, "
            "so complete the config.json or download it again"
        )
    return {name: raw[name] for name in names}


def _idlm(raw: Json, source: str) -> dict[str, Any]:
    """This toolkit's own: nothing is completed, and no code is named."""
    _pick(raw, FIELDS, source)
    return {name: value for name, value in raw.items() if name != "auto_map"}


def _mdlm(raw: Json, source: str) -> dict[str, Any]:
    """MDLM, and what was distilled from it: absorbing, the mask being the last state."""
    sizes = _pick(raw, (*SIZES, "time_conditioning"), source)
    return {**sizes, "process": "absorbing", **_SHARED}


def _duo(raw: Json, source: str) -> dict[str, Any]:
    """Duo and its students: uniform over all states, always conditioned on time (methods B.6)."""
    if raw.get("causal"):
        raise UserError(f"{source} has causal true; only Duo's bidirectional networks are known")
    sizes = _pick(raw, SIZES, source)
    return {**sizes, "time_conditioning": True, "process": "uniform", **_SHARED}


def _sdtt(raw: Json, source: str) -> dict[str, Any]:
    """SDTT: the Hydra settings of the run; V is not among them but in the weights."""
    model = raw["model"]
    kind = model.get("type", "ddit-orig")
    if kind != "ddit-orig":
        raise UserError(f"{source} has model.type {kind!r}; SDTT's 'ddit-orig' networks are known")
    sizes = _pick(model, _SDTT, f"model in {source}")
    return {
        **{_SDTT[name]: value for name, value in sizes.items()},
        **_pick(raw, ("vocab_size", "time_conditioning"), source),
        "process": "absorbing",
        **_SHARED,
    }


LAYOUTS: dict[str, Callable[[Json, str], dict[str, Any]]] = {
    "idlm": _idlm,
    "mdlm": _mdlm,
    "duo": _duo,
    "sdtt": _sdtt,
}


def layout_of(raw: Json) -> str | None:
    """The layout of a ``config.json``, a key of :data:`LAYOUTS`; ``None`` for another model's."""
    if "model_type" in raw:
        kind = str(raw["model_type"]).lower()
        return kind if kind in LAYOUTS else None
    # SDTT writes no model_type
    is_sdtt = isinstance(raw.get("model"), dict) and "parameterization" in raw
    return "sdtt" if is_sdtt else None


def translate(raw: Json, source: str) -> dict[str, Any]:
    """A ``config.json`` of the family as arguments of :class:`idlm.models.DiffusionConfig`.

    Args:
        raw: the parsed file.
        source: what to call it in a message.

    Raises:
        UserError: if it is of no known layout, or lacks something its layout states.
    """
    kind = layout_of(raw)
    if kind is None:
        raise UserError(
            f"{source} has model_type {raw.get('model_type')!r}; this version loads 'idlm', "
            "'mdlm', 'DUO' and SDTT's layout, which has none"
        )
    return LAYOUTS[kind](raw, source)
