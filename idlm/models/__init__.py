"""Networks: the published DiT, its Hugging Face wrapper, loading and export."""

from __future__ import annotations

from idlm.models.config import DiffusionConfig
from idlm.models.dit import Latent
from idlm.models.export import export_folder
from idlm.models.loading import decode, fetch, load, load_tokenizer
from idlm.models.modeling import DiffusionLM

__all__ = [
    "DiffusionConfig",
    "DiffusionLM",
    "Latent",
    "decode",
    "export_folder",
    "fetch",
    "load",
    "load_tokenizer",
]
