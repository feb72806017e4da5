"""Sampling: exact categorical draws, a sampler per process, windows, and ``generate``."""

from __future__ import annotations

from idlm.sampling.ancestral import sample_ancestral
from idlm.sampling.base import Callback, Settings, StepState, compile_for_sampling
from idlm.sampling.generate import GenerationOutput, generate
from idlm.sampling.orders import ORDERS
from idlm.sampling.registry import SAMPLERS

__all__ = [
    "ORDERS",
    "SAMPLERS",
    "Callback",
    "GenerationOutput",
    "Settings",
    "StepState",
    "compile_for_sampling",
    "generate",
    "sample_ancestral",
]
