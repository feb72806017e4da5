"""Run something once another module has been imported, without importing it oneself."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec
from importlib.util import find_spec
from types import ModuleType
from typing import Any


def when_imported(module: str, action: Callable[[], None]) -> None:
    """Call ``action`` now if ``module`` is imported already, else as soon as it is.

    The action runs before the import statement that caused it returns.
    """
    if module in sys.modules:
        action()
    else:
        sys.meta_path.insert(0, _Watch(module, action))


class _Watch(MetaPathFinder):
    """Finds nothing itself: it lets the others find one module, and waits for its execution."""

    def __init__(self, module: str, action: Callable[[], None]) -> None:
        self.module, self.action = module, action

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """The watched module's own spec, with a loader that acts once it has executed."""
        if fullname != self.module or self not in sys.meta_path:
            return None
        sys.meta_path.remove(self)
        spec = find_spec(fullname)
        if spec is not None and spec.loader is not None:
            loader: Any = spec.loader
            execute = loader.exec_module

            def execute_then_act(module: ModuleType) -> None:
                execute(module)
                self.action()

            loader.exec_module = execute_then_act
        return spec
