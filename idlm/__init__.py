"""idlm: inverse-distilled diffusion language models.

A slow masked-diffusion teacher becomes a generator that emits many tokens per network call.
Names are resolved on first use, so that ``import idlm`` stays cheap.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from idlm.hooks import when_imported

__version__ = "0.1.0"

if TYPE_CHECKING:
    from idlm.models.loading import load as load
    from idlm.sampling.generate import GenerationOutput as GenerationOutput
    from idlm.sampling.generate import generate as generate

_HOMES = {
    "load": "idlm.models.loading",
    "generate": "idlm.sampling.generate",
    "GenerationOutput": "idlm.sampling.generate",
}
_SUBMODULES = {"metrics", "models", "objectives", "processes", "sampling", "schedules", "training"}

__all__ = ["GenerationOutput", "__version__", "generate", "load"]


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(import_module(_HOMES[name]), name)
    if name in _SUBMODULES:
        return import_module(f"idlm.{name}")
    raise AttributeError(f"module 'idlm' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOMES, *_SUBMODULES})


def _auto(step: str) -> None:
    getattr(import_module("idlm.models.auto"), step)()


# AutoConfig and AutoModelForMaskedLM know our checkpoints from the moment transformers has them;
# importing transformers here, for those who never ask for them, would take seconds.
when_imported("transformers.models.auto.configuration_auto", lambda: _auto("register_configs"))
when_imported("transformers.models.auto.modeling_auto", lambda: _auto("register_model"))
