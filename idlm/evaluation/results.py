"""The results file of a protocol: what it has, what follows from it, and who may write it.

Several processes may fill one file. Each claims a cell by a lock of its own, so that no cell is
measured twice at once, and adds it while it alone holds the file. Both locks end with their owner.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import MISSING, asdict, fields
from pathlib import Path
from typing import Any

from idlm.errors import UserError, reason
from idlm.evaluation.cells import Cell, measure_reference, open_evaluator, weights_revision
from idlm.evaluation.compare import matched_table, summarise
from idlm.evaluation.gain import gains
from idlm.evaluation.guards import cell_warnings, family_warnings
from idlm.evaluation.protocol import Protocol
from idlm.locks import awaited, tried
from idlm.metrics import Evaluator
from idlm.metrics.report import write_json

# what a cell of an older file does not state was at its default
_DEFAULTS = {f.name: f.default for f in fields(Cell) if f.default is not MISSING}
# the weights say which model it is: its path and revision may change
_PLACES = ("checkpoint", "revision")
_JUDGE = ("evaluator_revision", "evaluator_dtype")


class Results:
    """The results file: what it has, and what follows from it.

    Args:
        protocol: decides which cells count.
        path: the JSON file; read if it is there.
        device: where samples and held-out text are scored.

    Raises:
        UserError: if the file is there but is no results file, or an evaluator cannot be loaded.
    """

    def __init__(self, protocol: Protocol, path: Path, device: str) -> None:
        self.protocol, self.path, self.device = protocol, path, device
        self.cells: list[dict[str, Any]] = []
        self.references: list[dict[str, Any]] = []
        self.reload()
        self._judges: dict[str, dict[str, Any]] = {}
        self._family: list[str] = []
        for name in protocol.evaluators:
            judge = self.judge(name)
            self._judges[name] = judge.identity()
            for checkpoint in dict.fromkeys(plan.checkpoint for plan in protocol.models):
                self._family += family_warnings(checkpoint, judge, tokenizer=None, retokenized=True)
        self._revisions: dict[tuple[str, str | None], str | None] = {}

    def judge(self, name: str) -> Evaluator:
        """The evaluator of this name, as the protocol wants it."""
        return open_evaluator(name, self.device, self.protocol.evaluator_dtype)

    def reload(self) -> None:
        """Read what the file has now."""
        if not self.path.exists():
            return
        try:
            found = json.loads(self.path.read_text(encoding="utf-8"))
            if isinstance(found, dict) and isinstance(found.get("cells"), list):
                self.cells = found["cells"]
                self.references = found.get("references") or []
                return
            said = "it holds no cells"
        except ValueError as error:
            said = reason(error)
        raise UserError(
            f"{self.path} is no results file of this program ({said}); name another --output"
        )

    def _weights(self, cell: Cell) -> str | None:
        """The hash of a cell's checkpoint; None if it is absent, which matches nothing stored."""
        where = cell.checkpoint, cell.revision
        if where not in self._revisions:
            try:
                self._revisions[where] = weights_revision(where[0], revision=where[1])
            except UserError:
                self._revisions[where] = None
        return self._revisions[where]

    def _key(self, cell: Cell, evaluator: str) -> tuple[Any, ...]:
        """Everything that decides the numbers."""
        own = {k: v for k, v in asdict(cell).items() if k not in _PLACES}
        judge = [self._judges[evaluator][name] for name in _JUDGE]
        return (*own.values(), self._weights(cell), *judge, self.protocol.eos)

    @staticmethod
    def _stored_key(found: Mapping[str, Any]) -> tuple[Any, ...]:
        fields_ = {**_DEFAULTS, **found}
        own = [fields_[name] for name in Cell.__dataclass_fields__ if name not in _PLACES]
        said = found["evaluation"]
        judge = [said[name] for name in _JUDGE]
        return (*own, found["checkpoint_revision"], *judge, said["eos"])

    def missing(self, cell: Cell) -> list[str]:
        """The evaluators under which the file lacks this cell."""
        known = {self._stored_key(found) for found in self.cells}
        return [name for name in self._judges if self._key(cell, name) not in known]

    def has(self, cell: Cell) -> bool:
        """Whether the file has this cell under every evaluator."""
        return not self.missing(cell)

    @contextmanager
    def claim(self, cell: Cell) -> Iterator[list[str]]:
        """Keep other processes from measuring ``cell``.

        Yields:
            The evaluators under which it is to be measured now: none if the file has them all, or
            another process is at it.
        """
        own = [value for key, value in asdict(cell).items() if key not in _PLACES]
        digest = hashlib.sha256(repr([*own, self._weights(cell)]).encode()).hexdigest()[:16]
        with tried(self._beside(f"{digest}.lock"), subject=str(self.path)) as mine:
            if mine:
                self.reload()
            yield self.missing(cell) if mine else []

    def _alone(self, name: str, what: str = "") -> AbstractContextManager[None]:
        """Hold a lock beside the file; wait for other processes."""
        return awaited(self._beside(name), subject=f"{self.path}{what}")

    def _beside(self, name: str) -> Path:
        return self.path.with_name(f".{self.path.name}.{name}")

    def add(self, found: Sequence[dict[str, Any]]) -> None:
        """Add measured cells to what the file has by now, and write it."""
        with self._alone("lock"):
            self.reload()
            self.cells += found
            self._write()

    def add_references(self) -> None:
        """Measure the held-out text under each evaluator that the file has no such number of."""
        plan = self.protocol.reference
        if plan is None:
            return
        model = next(m for m in self.protocol.models if m.label == self.protocol.teacher)
        with self._alone("reference.lock", " (its held-out text)"):
            self.reload()
            for name in self._judges:
                asked = {
                    "corpus": plan.corpus,
                    "split": plan.split,
                    "rows": plan.rows,
                    "tokenizer": model.checkpoint,
                    "length": self.protocol.length,
                    "judge": [*(self._judges[name][key] for key in _JUDGE), self.protocol.eos],
                }
                if any(found.get("asked") == asked for found in self.references):
                    continue
                found = measure_reference(
                    plan.corpus,
                    plan.split,
                    tokenizer=model.checkpoint,
                    evaluator=self.judge(name),
                    length=self.protocol.length,
                    rows=plan.rows,
                    device=self.device,
                    eos=self.protocol.eos,
                )
                self._add_reference({**found, "asked": asked})

    def _add_reference(self, found: dict[str, Any]) -> None:
        with self._alone("lock"):
            self.reload()
            self.references.append(found)
            self._write()

    def current(self) -> list[dict[str, Any]]:
        """The stored cells that the protocol names, in its order, evaluator by evaluator."""
        wanted = ((n, c) for n in self._judges for c in self.protocol.cells())
        keys = {self._key(cell, name): i for i, (name, cell) in enumerate(wanted)}
        current = [found for found in self.cells if self._stored_key(found) in keys]
        return sorted(current, key=lambda found: keys[self._stored_key(found)])

    def _current_references(self) -> list[dict[str, Any]]:
        if self.protocol.reference is None:
            return []
        wanted = [
            [*(self._judges[name][key] for key in _JUDGE), self.protocol.eos]
            for name in self._judges
        ]
        plan = asdict(self.protocol.reference) | {"length": self.protocol.length}
        fitting = [
            found
            for found in self.references
            if found["asked"]["judge"] in wanted
            and all(found["asked"][name] == value for name, value in plan.items())
        ]
        return sorted(fitting, key=lambda found: wanted.index(found["asked"]["judge"]))

    def save(self) -> dict[str, Any]:
        """Write the file with all that follows from its cells; returns what is in it."""
        with self._alone("lock"):
            self.reload()
            return self._write()

    def _write(self) -> dict[str, Any]:
        current = self.current()
        summary = summarise(current)
        references = self._current_references()
        content = {
            "protocol": asdict(self.protocol),
            "reference": references[0] if references else None,
            "summary": summary,
            "matched": matched_table(summary, self.protocol.teacher),
            "gains": gains(current, self.protocol.teacher),
            "warnings": [*self._family, *cell_warnings(current, references)],
            "references": self.references,
            "cells": self.cells,
        }
        write_json(self.path, content)
        return content
