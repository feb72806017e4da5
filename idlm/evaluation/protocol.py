"""A protocol file: which models, step counts, samplers and seeds are measured, and by whom."""

from __future__ import annotations

import difflib
import itertools
from collections.abc import Iterator
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from omegaconf import MISSING, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from idlm.errors import UserError
from idlm.evaluation.cell import ANCESTRAL, NETWORK_DTYPES, SAMPLERS, Cell
from idlm.metrics.evaluators import DTYPES
from idlm.sampling.base import FLOAT64, SAMPLING_DTYPES


@dataclass
class ModelPlan:
    """One model of a protocol; every combination of its lists is a cell.

    Attributes:
        label: its name in the results; several entries may share it, with one checkpoint.
        checkpoint: folder, bundled name or hub id.
        steps: step counts.
        temperatures: sampling temperatures.
        top_p: nuclei.
        samplers: names of :data:`idlm.evaluation.cell.SAMPLERS`.
        sampling_dtypes: of the categorical draws: float64, or float32 for a study of precision.
        network_dtypes: of the generator: float32, bfloat16 or float16.
        seeds: instead of the protocol's.
        num_samples: instead of the protocol's.
        revision: hub revision of the checkpoint.
    """

    label: str = MISSING
    checkpoint: str = MISSING
    steps: list[int] = MISSING
    temperatures: list[float] = field(default_factory=lambda: [1.0])
    top_p: list[float] = field(default_factory=lambda: [1.0])
    samplers: list[str] = field(default_factory=lambda: [ANCESTRAL])
    sampling_dtypes: list[str] = field(default_factory=lambda: [FLOAT64])
    network_dtypes: list[str] = field(default_factory=lambda: ["float32"])
    seeds: list[int] | None = None
    num_samples: int | None = None
    revision: str | None = None


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
        evaluator: causal language model that judges; with ``evaluators`` the first of them.
        evaluators: several of them, each judging the same samples.
        evaluator_dtype: of their weights.
        eos: which tokens count after an end of text: "published" or "strict".
        seeds: each gives a set of samples of its own.
        num_samples: sequences per cell.
        length: tokens per sequence.
        reference: held-out text; null for none.
    """

    models: list[ModelPlan] = MISSING
    teacher: str = MISSING
    evaluator: str | None = None
    evaluators: list[str] = field(default_factory=list)
    evaluator_dtype: str = "float32"
    eos: str = "published"
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
                for steps, network, sampler, draws, top_p, temperature in itertools.product(
                    plan.steps,
                    plan.network_dtypes,
                    plan.samplers,
                    plan.sampling_dtypes,
                    plan.top_p,
                    plan.temperatures,
                ):
                    yield Cell(
                        plan.label,
                        plan.checkpoint,
                        steps,
                        temperature,
                        top_p,
                        seed,
                        num_samples=plan.num_samples or self.num_samples,
                        length=self.length,
                        sampler=sampler,
                        sampling_dtype=draws,
                        network_dtype=network,
                        revision=plan.revision,
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
        _check_keys(OmegaConf.to_container(given), path)
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
    _check(protocol, f"protocol {str(path)!r}")
    return protocol


def _check_keys(given: Any, path: str | Path) -> None:
    """Refuse a key that no part of a protocol has, with the nearest one that it has."""
    parts: list[tuple[str, Any, type]] = [("", given, Protocol)]
    if isinstance(given, dict):
        models = given.get("models")
        listed = models if isinstance(models, list) else []
        parts += [(f"models[{i}].", part, ModelPlan) for i, part in enumerate(listed)]
        parts.append(("reference.", given.get("reference"), ReferencePlan))
    for prefix, part, kind in parts:
        known = [f.name for f in fields(kind)]
        for key in part if isinstance(part, dict) else ():
            if key not in known:
                near = difflib.get_close_matches(str(key), known, n=1)
                hint = f"did you mean {near[0]!r}?" if near else f"there are {', '.join(known)}"
                raise UserError(
                    f"protocol {str(path)!r} has the key {prefix + str(key)!r}, which nothing "
                    f"reads; {hint}"
                )


def _check(protocol: Protocol, where: str) -> None:
    if bool(protocol.evaluator) == bool(protocol.evaluators):
        raise UserError(
            f"{where} needs either evaluator, a language model that judges, or evaluators, a list "
            "of several"
        )
    protocol.evaluators = protocol.evaluators or [str(protocol.evaluator)]
    protocol.evaluator = protocol.evaluators[0]
    checkpoints: dict[str, tuple[str, str | None]] = {}
    for plan in protocol.models:
        if Path(plan.label).name != plan.label or "\0" in plan.label:
            raise UserError(
                f"{where}: label {plan.label!r} is no name of a file, and samples are kept under "
                "it; leave slashes out"
            )
        first = checkpoints.setdefault(plan.label, (plan.checkpoint, plan.revision))
        if first != (plan.checkpoint, plan.revision):
            raise UserError(
                f"{where}: label {plan.label!r} stands for {first[0]} and for "
                f"{plan.checkpoint}; give each model a label of its own"
            )
    if protocol.teacher not in checkpoints:
        raise UserError(
            f"{where}: teacher is {protocol.teacher!r}, which is none of the labels "
            f"({', '.join(checkpoints) or 'there are none'})"
        )
    _check_words(protocol, where)
    cells = list(protocol.cells())
    for cell in cells:
        if min(cell.steps, cell.num_samples, cell.length) < 1 or cell.temperature <= 0:
            raise UserError(
                f"{where}: {cell}, {cell.num_samples} samples of {cell.length} tokens; "
                "counts are at least 1 and temperatures above 0"
            )
        if not 0.0 < cell.top_p <= 1.0:
            raise UserError(f"{where}: {cell} has top_p {cell.top_p:g}; it must be in (0, 1]")
    if len({cell.key() for cell in cells}) < len(cells):
        raise UserError(
            f"{where} lists a step count at one temperature, nucleus, sampler, precision and seed "
            "twice"
        )


def _check_words(protocol: Protocol, where: str) -> None:
    """Names that only some values of are known."""
    asked = [
        ("evaluator_dtype", [protocol.evaluator_dtype], tuple(DTYPES)),
        ("eos", [protocol.eos], ("published", "strict")),
    ]
    for plan in protocol.models:
        asked += [
            ("samplers", plan.samplers, tuple(SAMPLERS)),
            ("sampling_dtypes", plan.sampling_dtypes, SAMPLING_DTYPES),
            ("network_dtypes", plan.network_dtypes, NETWORK_DTYPES),
        ]
    for name, values, allowed in asked:
        for value in values:
            if value not in allowed:
                raise UserError(f"{where}: {name} has {value!r}; choose from {', '.join(allowed)}")
