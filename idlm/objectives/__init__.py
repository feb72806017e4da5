"""Objectives, one file per method."""

from __future__ import annotations

from idlm.objectives.alternating import AlternatingDistillation
from idlm.objectives.base import DistillationObjective, Draw, LossSum, Networks
from idlm.objectives.di4c import Di4C
from idlm.objectives.dmd2 import DMD2
from idlm.objectives.dmmd import DMMD
from idlm.objectives.duo_dcd import DuoDCD
from idlm.objectives.idlm import IDLM
from idlm.objectives.idlm_duo import IDLMDuo
from idlm.objectives.instant import InstantMomentMatching
from idlm.objectives.mdlm import masked_nelbo
from idlm.objectives.moment_matching import MomentMatching
from idlm.objectives.nelbo import token_nelbo
from idlm.objectives.regression import gaussian_regression
from idlm.objectives.sdtt import SDTT
from idlm.objectives.udlm import uniform_nelbo
from idlm.objectives.vadd import VADD

__all__ = [
    "DMD2",
    "DMMD",
    "IDLM",
    "SDTT",
    "VADD",
    "AlternatingDistillation",
    "Di4C",
    "DistillationObjective",
    "Draw",
    "DuoDCD",
    "IDLMDuo",
    "InstantMomentMatching",
    "LossSum",
    "MomentMatching",
    "Networks",
    "gaussian_regression",
    "masked_nelbo",
    "token_nelbo",
    "uniform_nelbo",
]
