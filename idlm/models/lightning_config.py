"""The network that a Lightning checkpoint holds: sizes from its tensors, the rest from settings."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, NoReturn

from idlm.errors import UserError
from idlm.models.config import FIELDS, DiffusionConfig
from idlm.models.unpickle import Record

Shapes = Mapping[str, tuple[int, ...]]

_LOADED = (
    "MDLM and SDTT (parameterization 'subs') and Duo (algo 'duo', 'duo_base', 'distillation') load"
)
# algo.name of the Duo and IDLM repositories -> our process, and the parameterization it goes with
_ALGOS = {
    "mdlm": ("absorbing", "subs"),
    "duo": ("uniform", "mean"),
    "duo_base": ("uniform", "mean"),
    "distillation": ("uniform", "mean"),
}
# Tokenizers of those repositories that have a mask of their own, not as their last token.
_OWN_MASK = ("bert", "text8")
_SIZES = {
    "hidden_size": "hidden_dim",
    "cond_dim": "cond_dim",
    "n_blocks": "n_blocks",
    "n_heads": "n_heads",
}


def _plain(value: Any) -> Any:
    """What a record of a configuration holds: OmegaConf's containers and nodes, namespaces."""
    if not isinstance(value, Record):
        return value
    state = value.state if isinstance(value.state, dict) else {}
    for key in ("_content", "_val"):
        if key in state:
            return state[key]
    return value or state


def setting(settings: Any, name: str) -> Any:
    """The value under a dotted name, ``None`` if there is none; follows one ``${reference}``.

    Raises:
        UserError: for an interpolation that only Hydra could compute.
    """
    value = _look_up(settings, name)
    if isinstance(value, str) and value.startswith("${"):
        reference = re.fullmatch(r"\$\{([\w.]+)\}", value)
        value = _look_up(settings, reference[1]) if reference else value
        if isinstance(value, str) and value.startswith("${"):
            raise UserError(f"the checkpoint's {name} is {value}, which only its run could compute")
    return value


def _look_up(settings: Any, name: str) -> Any:
    value = _plain(settings)
    for part in name.split("."):
        value = _plain(value.get(part)) if isinstance(value, dict) else None
    return value


def _shown(value: Any) -> str:
    """A setting in a message: short, and containers by their type alone."""
    simple = value is None or isinstance(value, (str, int, float))
    return repr(value)[:60] if simple else f"of type {type(value).__name__}"


def measured_sizes(shapes: Shapes, source: str) -> dict[str, int]:
    """Sizes that the tensors of a network show, under the names of :class:`DiffusionConfig`.

    ``n_heads`` is among them when the rotary table is, which has half a head's width.

    Raises:
        UserError: if the tensors are not those of the family's DiT.
    """
    blocks = {n[1] for name in shapes if (n := re.match(r"backbone\.blocks\.(\d+)\.", name))}
    try:
        vocab_size, hidden_dim = shapes["backbone.vocab_embed.embedding"]
        cond_dim, _ = shapes["backbone.sigma_map.mlp.0.weight"]
    except (KeyError, ValueError):
        raise UserError(
            f"{source} holds no network of this family: a DiT has backbone.vocab_embed.embedding "
            "[V, D] and backbone.sigma_map.mlp.0.weight [C, 256] in its state_dict"
        ) from None
    sizes = {
        "vocab_size": vocab_size,
        "hidden_dim": hidden_dim,
        "cond_dim": cond_dim,
        "n_blocks": len(blocks),
    }
    table = shapes.get("backbone.rotary_emb.inv_freq")
    if table and table[0]:
        sizes["n_heads"] = max(1, hidden_dim // (2 * table[0]))
    for name, key in (("embed", "latent_global"), ("position", "latent_position")):
        if weight := shapes.get(f"backbone.latent.{name}.weight"):
            sizes[key] = weight[-1]
    return sizes


def published_config(hyper: Any, shapes: Shapes, source: str) -> DiffusionConfig:
    """The configuration of a checkpoint of the MDLM, Duo, IDLM or SDTT repository.

    Args:
        hyper: its ``hyper_parameters``.
        shapes: of its network's tensors, by canonical name.
        source: what to call the file in a message.

    Raises:
        UserError: if settings are missing, contradict the tensors, or describe another family.
    """
    settings = _plain(setting(hyper, "config"))
    known = _process(settings, source) if isinstance(settings, dict) else None
    sizes = measured_sizes(shapes, source)
    if known is None:
        raise UserError(
            f"{source} has no hyper_parameters.config, which alone says context length, process "
            "and time conditioning; export it with its own repository as a folder with config.json"
        )
    process, layout = known
    if process == "absorbing":
        _check_mask(hyper, settings, source)
    return DiffusionConfig(
        **_agreed_sizes(settings, layout, sizes, source),
        time_conditioning=_needed(settings, f"{layout}time_conditioning", (bool,), source),
        process=process,
        **_schedule(settings, layout, source),
    )


def _process(settings: Any, source: str) -> tuple[str, str]:
    """Process, and the prefix under which its repository keeps what concerns the method."""

    def refuse(name: str) -> NoReturn:
        value = _shown(setting(settings, name))
        raise UserError(f"{source} has {name} {value}, which is not loaded: {_LOADED}")

    layout = "" if setting(settings, "algo.name") is None else "algo."
    if setting(settings, f"{layout}backbone") not in (None, "dit", "hf_dit"):
        refuse(f"{layout}backbone")
    if layout:
        process, expected = _ALGOS.get(setting(settings, "algo.name")) or refuse("algo.name")
        if setting(settings, "algo.parameterization") not in (None, expected):
            refuse("algo.parameterization")
        if setting(settings, "algo.causal_attention"):
            refuse("algo.causal_attention")
        return process, layout
    if setting(settings, "is_di4c"):
        refuse("is_di4c")
    if setting(settings, "diffusion") not in (None, "absorbing_state"):
        refuse("diffusion")
    sdtt = setting(settings, "parameterization.name")
    if sdtt is None and setting(settings, "parameterization") != "subs":
        refuse("parameterization")
    if sdtt not in (None, "multi-round-sdtt"):
        refuse("parameterization.name")
    return "absorbing", layout


def _agreed_sizes(settings: Any, layout: str, sizes: dict[str, int], source: str) -> dict[str, Any]:
    """The sizes of the tensors, once the settings agree; context and dropout from the settings."""
    agreed: dict[str, Any] = {
        **sizes,
        "model_length": _needed(settings, "model.length", (int,), source),
        "dropout": 0.1,  # of every published run; only training uses it
    }
    if setting(settings, "model.dropout") is not None:
        agreed["dropout"] = _needed(settings, "model.dropout", (int, float), source)
    # a backbone from the hub brings its own sizes, and those in IDLM's settings go unused
    from_hub = setting(settings, f"{layout}backbone") == "hf_dit"
    for theirs, ours in _SIZES.items():
        stated = setting(settings, f"model.{theirs}")
        if stated is not None and not from_hub and stated != sizes.get(ours, stated):
            raise UserError(
                f"{source} says model.{theirs} {_shown(stated)} but its tensors have "
                f"{sizes[ours]}; weights and settings are of two networks"
            )
        agreed.setdefault(ours, stated)
    if agreed["n_heads"] is None:
        raise UserError(f"{source} has neither model.n_heads nor the rotary table that shows it")
    return agreed


def _needed(settings: Any, name: str, kinds: tuple[type, ...], source: str) -> Any:
    value = setting(settings, name)
    if type(value) not in kinds:
        raise UserError(
            f"{source} has {name} {_shown(value)} in hyper_parameters.config, where "
            f"{' or '.join(kind.__name__ for kind in kinds)} is needed to rebuild the network"
        )
    return value


def _schedule(settings: Any, layout: str, source: str) -> dict[str, Any]:
    """Schedule and eps; MDLM has its eps of 1e-3 in the code, Duo in the settings."""
    kind = setting(settings, "noise.type")
    has_eps = setting(settings, "noise.eps") is not None
    eps = _needed(settings, "noise.eps", (float, int), source) if has_eps else 1e-3
    if kind in (None, "loglinear", "log-linear"):
        return {"schedule": "log-linear", "schedule_eps": eps}
    if kind == "cosine" and not layout:  # Duo's cosine is another function of t
        return {"schedule": "cosine", "schedule_eps": eps}
    raise UserError(
        f"{source} has noise.type {_shown(kind)}, which is not loaded: log-linear is, and MDLM's "
        "cosine"
    )


def _check_mask(hyper: Any, settings: Any, source: str) -> None:
    """Refuse a vocabulary whose mask is not the last state (LM1B and text8 in MDLM's repository).

    To a tokenizer without a mask, such as GPT-2's, the authors append one (methods A.5).
    """
    tokenizer = _look_up(hyper, "tokenizer")
    name = str(setting(settings, "data.tokenizer_name_or_path"))
    mask = _look_up(tokenizer, "_mask_token") or _look_up(
        tokenizer, "_special_tokens_map.mask_token"
    )
    if mask or any(part in name for part in _OWN_MASK):
        raise UserError(
            f"{source} was trained with the tokenizer {name!r}, which has a mask of its own inside "
            "the vocabulary; only networks whose mask is the last state load"
        )


def own_config(network: Any, shapes: Shapes, source: str) -> DiffusionConfig:
    """The configuration of a checkpoint that ``idlm fit`` wrote.

    Args:
        network: what it says of its network, every one of :data:`FIELDS`.
        shapes: of the network's tensors.
        source: what to call the file in a message.

    Raises:
        UserError: if something is missing, or contradicts the tensors.
    """
    stated = network if isinstance(network, dict) else {}
    absent = [name for name in FIELDS if name not in stated]
    if absent:
        raise UserError(
            f"{source} does not say {', '.join(absent)} of its network; load the folder that "
            "the training exported, or train on with this version and load the next checkpoint"
        )
    for name, size in measured_sizes(shapes, source).items():
        if stated[name] != size:
            raise UserError(
                f"{source} says {name} {_shown(stated[name])} but its tensors have {size}; "
                "weights and settings are of two networks"
            )
    return DiffusionConfig(**{name: stated[name] for name in FIELDS})
