"""Our checkpoints through transformers' Auto classes: what ``import idlm`` arranges.

Registered classes win over the ``auto_map`` of a config.json, whatever ``trust_remote_code`` says,
so the code of a published repository is neither run nor asked about.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from idlm.errors import UserError
from idlm.models.config import DiffusionConfig

if TYPE_CHECKING:
    import torch

    from idlm.models.modeling import DiffusionLM

# spellings of the model_type in a published config.json
_PUBLISHED = ("mdlm", "DUO", "duo")

_HUB = ("revision", "cache_dir", "token", "local_files_only", "force_download")
# What AutoModel adds by itself, and switches for code or pickles that are never read here.
_WITHOUT_EFFECT = {
    "_from_auto",
    "adapter_kwargs",
    "low_cpu_mem_usage",
    "trust_remote_code",
    "use_safetensors",
    "weights_only",
}


def register_configs() -> None:
    """Teach ``AutoConfig``, and through it ``AutoTokenizer``, the model types of the family."""
    from transformers import AutoConfig

    AutoConfig.register(DiffusionConfig.model_type, DiffusionConfig, exist_ok=True)
    for model_type in _PUBLISHED:
        AutoConfig.register(model_type, _reader(model_type), exist_ok=True)


def _reader(model_type: str) -> type[DiffusionConfig]:
    """A class of its own for each type, as ``AutoConfig`` wants; all read a DiffusionConfig."""

    class PublishedConfig(DiffusionConfig):
        @classmethod
        def from_dict(cls, config_dict: dict[str, Any], **kwargs: Any) -> Any:
            return DiffusionConfig.from_dict(config_dict, **kwargs)

    PublishedConfig.model_type = model_type
    return PublishedConfig


def register_model() -> None:
    """Teach ``AutoModelForMaskedLM`` the one network that all layouts hold."""
    from transformers import AutoModelForMaskedLM

    from idlm.models.modeling import DiffusionLM

    AutoModelForMaskedLM.register(DiffusionConfig, DiffusionLM, exist_ok=True)


def from_pretrained(
    name: Any,
    *,
    config: Any = None,
    dtype: Any = None,
    torch_dtype: Any = None,
    device_map: Any = None,
    **kwargs: Any,
) -> DiffusionLM:
    """What ``DiffusionLM.from_pretrained`` does: our strict loading under transformers' arguments.

    transformers' own loading initialises what is missing and ignores what it does not know.

    Args:
        name: folder or hub id.
        config: a :class:`idlm.models.DiffusionConfig` in the place of the checkpoint's.
        dtype: floating dtype, its name, or ``auto`` for the file's; fp32 by default.
        torch_dtype: the older name of ``dtype``.
        device_map: one device for the whole network, or ``auto``; the CPU by default.
        kwargs: ``revision``, ``cache_dir``, ``token``, ``local_files_only``, ``force_download``.

    Raises:
        UserError: as :func:`idlm.load`, and for arguments that would have no effect.
    """
    from idlm.models.files import WEIGHTS, fetch, read_config
    from idlm.models.loading import build, floating_dtype
    from idlm.models.weights import read_weights

    hub = {key: kwargs.pop(key) for key in _HUB if kwargs.get(key)}
    extra = sorted(key for key in kwargs.keys() - _WITHOUT_EFFECT if kwargs[key])
    if extra:
        raise UserError(
            f"from_pretrained of {str(name)!r} got {', '.join(extra)}, which has no effect here; "
            f"allowed are config, dtype, device_map, {', '.join(_HUB)}"
        )
    if config is not None and not isinstance(config, DiffusionConfig):
        raise UserError(f"config is a {type(config).__name__}; pass a DiffusionConfig or none")
    path = fetch(name, *WEIGHTS, **hub)
    if path.is_file():
        raise UserError(f"{name} is a Lightning file; read it with idlm.load")
    weights = read_weights(path)
    model = build(config or read_config(path), weights, str(name))
    model.revision = hub.get("revision")
    dtype = torch_dtype if dtype is None else dtype
    if dtype == "auto":
        dtype = weights["backbone.vocab_embed.embedding"].dtype
    return model.to(device=_device(device_map), dtype=floating_dtype(dtype or "float32"))


def _device(device_map: Any) -> torch.device:
    """The one device of a ``device_map``."""
    import torch

    from idlm.devices import pick_device

    place = device_map
    if isinstance(place, dict) and len(place) == 1:
        place = place.get("", place)  # {"": device} is the whole network
    if place == "auto":
        return pick_device()
    if isinstance(place, int):
        place = f"cuda:{place}"
    if place is None or isinstance(place, str):
        return pick_device(place or "cpu")
    if not isinstance(place, torch.device):
        raise UserError(
            f"device_map is {device_map!r}; the network is put on one device, so name it "
            "(cpu, cuda, cuda:N) or say auto"
        )
    return place
