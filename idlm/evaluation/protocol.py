"""A protocol file: which models, step counts, temperatures and seeds are measured, and by whom."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from omegaconf import MISSING, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from idlm.errors import UserError
from idlm.evaluation.cells import Cell


@dataclass
class ModelPlan:
    """One model of a protocol.

    Attributes:
        label: its name in the results; several entries may share it, with one checkpoint.
        checkpoint: folder, bundled name or hub id.
        steps: step counts.
        temperatures: sampling temperatures, each at every step count.
        top_p: nucleus.
        seeds: instead of the protocol's.
        num_samples: instead of the protocol's.
    """

    label: str = MISSING
    checkpoint: str = MISSING
    steps: list[int] = MISSING
    temperatures: list[float] = field(default_factory=lambda: [1.0])
    top_p: float = 1.0
    seeds: list[int] | None = None
    num_samples: int | None = None


@dataclass
class ReferencePlan:
    """Held-out text that is measured beside the models.

    Attributes:
        corpus: as for :class:`idlm.data.PackedDataModule`.
        split: "validation" or "train".
        rows: how many rows, evenly spaced; all if null.
    """

    corpus: str = "python_docs"
    split: str = "validation"
    rows: int | None = None


@dataclass
class Protocol:
    """Everything that decides the numbers of a frontier.

    Attributes:
        models: what is measured.
        teacher: label of the model whose temperature curves the others are compared with.
        evaluator: causal language model that judges.
        seeds: each gives a set of samples of its own.
        num_samples: sequences per cell.
        length: tokens per sequence.
        reference: held-out text; null for none.
    """

    models: list[ModelPlan] = MISSING
    teacher: str = MISSING
    evaluator: str = MISSING
    seeds: list[int] = field(default_factory=lambda: [0, 1, 2])
    num_samples: int = 64
    length: int = 1024
    reference: ReferencePlan | None = None

    def cells(self) -> Iterator[Cell]:
        """All cells, seed by seed, so that an unfinished run already covers every setting."""
        for seed in sorted({s for plan in self.models for s in self._seeds(plan)}):
            for plan in self.models:
                if seed not in self._seeds(plan):
                    continue
                for steps in plan.steps:
                    for temperature in plan.temperatures:
                        yield Cell(
                            plan.label,
                            plan.checkpoint,
                            steps,
                            temperature,
                            plan.top_p,
                            seed,
                            plan.num_samples or self.num_samples,
                            self.length,
                        )

    def _seeds(self, plan: ModelPlan) -> list[int]:
        return self.seeds if plan.seeds is None else plan.seeds


def read_protocol(path: str | Path) -> Protocol:
    """Read a protocol from YAML; a key it does not know is refused.

    Raises:
        UserError: if the file is missing, not YAML, or does not describe a protocol.
    """
    try:
        given = OmegaConf.load(path)
        merged = OmegaConf.merge(OmegaConf.structured(Protocol), given)
        protocol = OmegaConf.to_object(merged)
    except OSError as error:
        raise UserError(
            f"protocol {str(path)!r} cannot be read ({error.strerror}); give a YAML file such as "
            "eval/frontier.yaml"
        ) from error
    except (OmegaConfBaseException, YAMLError, ValueError, TypeError) as error:
        reason = " ".join(str(error).split())
        raise UserError(
            f"protocol {str(path)!r} is not valid ({reason[:200]}); eval/frontier.yaml shows the "
            "keys"
        ) from error
    assert isinstance(protocol, Protocol)  # what to_object makes of the schema
    _check(protocol, path)
    return protocol


def _check(protocol: Protocol, path: str | Path) -> None:
    where = f"protocol {str(path)!r}"
    checkpoints: dict[str, str] = {}
    for plan in protocol.models:
        if Path(plan.label).name != plan.label or "\0" in plan.label:
            raise UserError(
                f"{where}: label {plan.label!r} is no name of a file, and samples are kept under "
                "it; leave slashes out"
            )
        first = checkpoints.setdefault(plan.label, plan.checkpoint)
        if first != plan.checkpoint:
            raise UserError(
                f"{where}: label {plan.label!r} stands for {first} and for "
                f"{plan.checkpoint}; give each model a label of its own"
            )
    if protocol.teacher not in checkpoints:
        raise UserError(
            f"{where}: teacher is {protocol.teacher!r}, which is none of the labels "
            f"({', '.join(checkpoints) or 'there are none'})"
        )
    cells = list(protocol.cells())
    for cell in cells:
        if min(cell.steps, cell.num_samples, cell.length) < 1 or cell.temperature <= 0:
            raise UserError(
                f"{where}: {cell}, {cell.num_samples} samples of {cell.length} tokens; "
                "counts are at least 1 and temperatures above 0"
            )
    if len({cell.key() for cell in cells}) < len(cells):
        raise UserError(f"{where} lists a step count at one temperature and seed twice")
