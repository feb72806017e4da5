"""Running small Python programs that nobody has read, see :mod:`idlm.sandbox.run`."""

from __future__ import annotations

from idlm.sandbox.run import FAILURES, Limits, Outcome, isolation, run_program

__all__ = ["FAILURES", "Limits", "Outcome", "isolation", "run_program"]
