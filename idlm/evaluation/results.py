"""The results file of a frontier: what it has, what follows from it, and who may write it."""

from __future__ import annotations

import fcntl
import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

from idlm.errors import UserError
from idlm.evaluation.cells import Cell, measure_reference, open_evaluator, weights_revision
from idlm.evaluation.compare import matched_table, summarise
from idlm.evaluation.protocol import Protocol
from idlm.metrics.report import write_json

_CELL_FIELDS = tuple(Cell.__dataclass_fields__)


class Results:
    """The results file: what it has, and what follows from it.

    Args:
        protocol: decides which cells count.
        path: the JSON file; read if it is there.
        device: where held-out text is scored.

    Raises:
        UserError: if the file is there but is no results file.
    """

    def __init__(self, protocol: Protocol, path: Path, device: str) -> None:
        self.protocol, self.path, self.device = protocol, path, device
        self.cells: list[dict[str, Any]] = self._read()
        self.reference: dict[str, Any] | None = None
        judge = open_evaluator(protocol.evaluator, device).identity()
        self._judge = judge["evaluator_revision"]
        self._revisions: dict[str, str | None] = {}

    def _read(self) -> list[dict[str, Any]]:
        if not self.path.exists():
            return []
        try:
            found = json.loads(self.path.read_text(encoding="utf-8"))
            if isinstance(found, dict) and isinstance(found.get("cells"), list):
                return found["cells"]
        except ValueError:
            pass
        raise UserError(f"{self.path} is no results file of this program; name another --output")

    def _key(self, cell: Cell) -> tuple[Any, ...]:
        """Everything that decides the numbers; a checkpoint that is absent matches nothing."""
        if cell.checkpoint not in self._revisions:
            try:
                self._revisions[cell.checkpoint] = weights_revision(cell.checkpoint)
            except UserError:
                self._revisions[cell.checkpoint] = None
        fields = asdict(cell)
        # the weights say which model it is; its path may change
        fields["checkpoint"] = self._revisions[cell.checkpoint]
        return (*fields.values(), self._judge)

    @staticmethod
    def _stored_key(found: dict[str, Any]) -> tuple[Any, ...]:
        fields = {name: found[name] for name in _CELL_FIELDS}
        fields["checkpoint"] = found["checkpoint_revision"]
        return (*fields.values(), found["evaluation"]["evaluator_revision"])

    def has(self, cell: Cell) -> bool:
        """Whether the file has this cell under these conditions."""
        return self._key(cell) in {self._stored_key(found) for found in self.cells}

    def add(self, found: dict[str, Any]) -> None:
        """Add a measured cell and write the file."""
        self.cells.append(found)
        self.save()

    def add_reference(self) -> None:
        """Measure the held-out text: seconds, so it is simply done again in every run."""
        plan = self.protocol.reference
        if plan is None:
            return
        tokenizer = next(
            m.checkpoint for m in self.protocol.models if m.label == self.protocol.teacher
        )
        self.reference = measure_reference(
            plan.corpus,
            plan.split,
            tokenizer=tokenizer,
            evaluator=self.protocol.evaluator,
            length=self.protocol.length,
            rows=plan.rows,
            device=self.device,
        )
        self.save()

    def save(self) -> dict[str, Any]:
        """Write the file in one move; returns what is in it."""
        keys = {key: i for i, key in enumerate(map(self._key, self.protocol.cells()))}
        current = [found for found in self.cells if self._stored_key(found) in keys]
        current.sort(key=lambda found: keys[self._stored_key(found)])
        summary = summarise(current)
        content = {
            "protocol": asdict(self.protocol),
            "reference": self.reference,
            "summary": summary,
            "matched": matched_table(summary, self.protocol.teacher),
            "cells": self.cells,
        }
        write_json(self.path, content)
        return content


@contextmanager
def locked(output: Path) -> Iterator[None]:
    """Keep others from writing ``output``: two runs would lose each other's cells.

    Raises:
        UserError: if another process writes it.
    """
    output.parent.mkdir(parents=True, exist_ok=True)
    lock = output.with_name(f".{output.name}.lock")
    with open(lock, "w", encoding="utf-8") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise UserError(
                f"another run is writing {output}; wait for it or name another --output"
            ) from error
        try:
            yield
        finally:
            lock.unlink(missing_ok=True)
