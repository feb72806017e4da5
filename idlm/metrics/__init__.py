"""Metrics of generated text, all ``torchmetrics.Metric``: states add up across processes."""

from __future__ import annotations

from idlm.metrics.diversity import DistinctN, Entropy
from idlm.metrics.evaluators import Evaluator, load_evaluator
from idlm.metrics.exact_match import ExactMatch
from idlm.metrics.gradient import GradientMoment
from idlm.metrics.likelihood import NelboPerplexity
from idlm.metrics.mauve import Mauve
from idlm.metrics.perplexity import GenerativePerplexity
from idlm.metrics.repetition import LongestRepeat, Repetition
from idlm.metrics.self_bleu import SelfBLEU

__all__ = [
    "DistinctN",
    "Entropy",
    "Evaluator",
    "ExactMatch",
    "GenerativePerplexity",
    "GradientMoment",
    "LongestRepeat",
    "Mauve",
    "NelboPerplexity",
    "Repetition",
    "SelfBLEU",
    "load_evaluator",
]
