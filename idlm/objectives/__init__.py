"""Objectives, one file per method."""

from __future__ import annotations

from idlm.objectives.alternating import AlternatingDistillation
from idlm.objectives.base import DistillationObjective, Draw, LossSum, Networks
from idlm.objectives.dmmd import DMMD
from idlm.objectives.idlm import IDLM
from idlm.objectives.idlm_duo import IDLMDuo
from idlm.objectives.mdlm import masked_nelbo
from idlm.objectives.udlm import uniform_nelbo

__all__ = [
    "DMMD",
    "IDLM",
    "AlternatingDistillation",
    "DistillationObjective",
    "Draw",
    "IDLMDuo",
    "LossSum",
    "Networks",
    "masked_nelbo",
    "uniform_nelbo",
]
