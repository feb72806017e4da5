"""Lightning modules: teacher, distillation, evaluator, and their callbacks."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from idlm.training.callbacks import CollapseGuard as CollapseGuard
    from idlm.training.distil import DistillationModule as DistillationModule
    from idlm.training.evaluator import EvaluatorModule as EvaluatorModule
    from idlm.training.frontier_monitor import FrontierMonitor as FrontierMonitor
    from idlm.training.sharding import ShardedStrategy as ShardedStrategy
    from idlm.training.teacher import TeacherModule as TeacherModule

_HOMES = {
    "CollapseGuard": "callbacks",
    "DistillationModule": "distil",
    "EvaluatorModule": "evaluator",
    "FrontierMonitor": "frontier_monitor",
    "ShardedStrategy": "sharding",
    "TeacherModule": "teacher",
}

__all__ = [
    "CollapseGuard",
    "DistillationModule",
    "EvaluatorModule",
    "FrontierMonitor",
    "ShardedStrategy",
    "TeacherModule",
]


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(import_module(f"idlm.training.{_HOMES[name]}"), name)
    raise AttributeError(f"module 'idlm.training' has no attribute {name!r}")
