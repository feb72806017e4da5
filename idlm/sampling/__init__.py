"""Sampling: exact categorical draws, a sampler per process, windows, and ``generate``."""

from __future__ import annotations

from idlm.sampling.ancestral import sample_ancestral
from idlm.sampling.base import Callback, Sampler, Settings, StepState, compile_for_sampling
from idlm.sampling.generate import GenerationOutput, generate
from idlm.sampling.orders import ORDERS
from idlm.sampling.registry import SAMPLERS, register

__all__ = [
    "ORDERS",
    "SAMPLERS",
    "Callback",
    "GenerationOutput",
    "Sampler",
    "Settings",
    "StepState",
    "compile_for_sampling",
    "generate",
    "register",
    "sample_ancestral",
]
