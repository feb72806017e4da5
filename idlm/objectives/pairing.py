"""Which objective is defined for which process."""

from __future__ import annotations

from typing import Any, Protocol

from idlm.errors import UserError
from idlm.objectives.base import DistillationObjective


class Named(Protocol):
    """A process, over tokens or continuous data, as far as a pairing is concerned."""

    @property
    def name(self) -> str:
        """How objectives and configs call it."""
        ...


def check_pairing(objective: DistillationObjective, process: Named) -> None:
    """Refuse an objective on a process that it is not defined for.

    Args:
        objective: its class attribute ``processes`` names those it is defined for.
        process: of the networks; its ``name`` counts.

    Raises:
        UserError: if they do not go together.
    """
    if process.name in objective.processes:
        return
    name = type(objective).__name__
    if not objective.processes:
        raise UserError(
            f"{name} names no process that it is defined for; list them in its class attribute "
            f"processes, for this model ({process.name!r},)"
        )
    others = [kind.__name__ for kind in _objectives() if process.name in kind.processes]
    choice = f"choose one of {', '.join(others)}, or " if others else ""
    raise UserError(
        f"{name} is defined for the {' and the '.join(objective.processes)} process, but the "
        f"model's process is {process.name!r}; {choice}start from another teacher"
    )


def pairing_table() -> str:
    """The Markdown table of docs/methods.md: objectives by processes."""
    objectives = _objectives()
    processes = list(dict.fromkeys(name for kind in objectives for name in kind.processes))
    lines = [["objective", *processes], ["---"] * (1 + len(processes))]
    for kind in objectives:
        marks = ("yes" if name in kind.processes else "" for name in processes)
        lines.append([f"`{kind.__name__}`", *marks])
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def _objectives() -> list[type[DistillationObjective]]:
    """Every objective that the package exports, in the order of its list."""
    import idlm.objectives as package

    exported: list[Any] = [getattr(package, name) for name in package.__all__]
    kinds = [kind for kind in exported if isinstance(kind, type)]
    return [kind for kind in kinds if issubclass(kind, DistillationObjective) and kind.processes]
