"""Sampling: exact categorical draws, the ancestral sampler and the public ``generate``."""

from __future__ import annotations

from idlm.sampling.ancestral import StepState, sample_ancestral
from idlm.sampling.generate import GenerationOutput, generate

__all__ = ["GenerationOutput", "StepState", "generate", "sample_ancestral"]
