"""Networks: the published DiT, its Hugging Face wrapper, loading and export.

Names are resolved on first use: reading a configuration or a tokenizer needs no torch.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from idlm.models.config import DiffusionConfig as DiffusionConfig
    from idlm.models.dit import Embedded as Embedded
    from idlm.models.dit import Latent as Latent
    from idlm.models.export import export_folder as export_folder
    from idlm.models.files import fetch as fetch
    from idlm.models.loading import load as load
    from idlm.models.modeling import DiffusionLM as DiffusionLM
    from idlm.models.tokenizers import decode as decode
    from idlm.models.tokenizers import load_tokenizer as load_tokenizer

_HOMES = {
    "DiffusionConfig": "idlm.models.config",
    "DiffusionLM": "idlm.models.modeling",
    "Embedded": "idlm.models.dit",
    "Latent": "idlm.models.dit",
    "decode": "idlm.models.tokenizers",
    "export_folder": "idlm.models.export",
    "fetch": "idlm.models.files",
    "load": "idlm.models.loading",
    "load_tokenizer": "idlm.models.tokenizers",
}

__all__ = [
    "DiffusionConfig",
    "DiffusionLM",
    "Embedded",
    "Latent",
    "decode",
    "export_folder",
    "fetch",
    "load",
    "load_tokenizer",
]


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(import_module(_HOMES[name]), name)
    raise AttributeError(f"module 'idlm.models' has no attribute {name!r}")
