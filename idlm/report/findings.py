"""What the report's files hold, whatever their form was."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

Record = dict[str, Any]


@dataclass(frozen=True)
class Point:
    """One place on a frontier: a mean over seeds. Perplexity stands in no object without entropy.

    Attributes:
        label: the model.
        steps: of the sampler, or network calls where there are no steps.
        temperature: of the sampler.
        top_p: nucleus.
        gen_ppl: mean generative perplexity.
        gen_ppl_sd: over seeds; None for a single one.
        entropy: mean over samples and seeds, nats.
        entropy_sd: over seeds; None for a single one.
        tokens_per_call: None if it was not recorded.
        seconds: of the generation of one seed's samples; None if not recorded.
        seeds: how many.
        num_samples: per seed, the fewest.
    """

    label: str
    steps: int
    temperature: float
    top_p: float
    gen_ppl: float
    gen_ppl_sd: float | None
    entropy: float
    entropy_sd: float | None
    tokens_per_call: float | None
    seconds: float | None
    seeds: int
    num_samples: int | None

    @property
    def plain(self) -> bool:
        """Whether it was sampled as the model predicts."""
        return self.temperature == 1.0 and self.top_p == 1.0


@dataclass(frozen=True)
class Frontier:
    """Points that one evaluator judged.

    Attributes:
        name: of the file.
        points: means over seeds.
        reference: (entropy in nats, GenPPL) of held-out text.
        records: everything that was measured, with its conditions.
        judge: the evaluator, in words.
        teacher: label of the model the others are held against, if the file says.
        teachers: labels of its points, more than one if it was sampled in several ways.
        at_entropy: rows that compare at equal entropy, each with that entropy.
        at_steps: rows that compare at equal steps, each with both entropies.
        unscored: rows that have no perplexity.
        warnings: what the measurement said beside its numbers.
    """

    name: str
    points: Sequence[Point]
    reference: tuple[float, float] | None
    records: Sequence[Record]
    judge: str
    teacher: str | None = None
    teachers: Collection[str] = ()
    at_entropy: Sequence[Record] = ()
    at_steps: Sequence[Record] = ()
    unscored: int = 0
    warnings: Sequence[str] = ()


@dataclass(frozen=True)
class Bench:
    """Records of ``idlm bench``: toys, oracle or speed.

    Attributes:
        name: of the file.
        path: of the file.
        records: as the bench wrote them.
    """

    name: str
    path: Path
    records: Sequence[Record]


@dataclass(frozen=True)
class SampleFile:
    """Texts of one ``samples.jsonl``.

    Attributes:
        name: of the file.
        header: the conditions.
        texts: decoded samples.
        rows: the samples' other fields.
    """

    name: str
    header: Record
    texts: Sequence[str]
    rows: Sequence[Record]

    @property
    def label(self) -> str:
        """What the model is called."""
        for key in ("label", "checkpoint"):
            if isinstance(self.header.get(key), str):
                return str(self.header[key])
        return self.name


@dataclass(frozen=True)
class Training:
    """The log of one run.

    Attributes:
        name: of the run.
        counter: what the updates are called.
        curves: of each logged value, (update, value) in order; values may be infinite.
        settings: what the run was started with.
        floor: nats of masked tokens below which a guard would have stopped the run.
    """

    name: str
    counter: str
    curves: dict[str, list[tuple[float, float]]]
    settings: Record
    floor: float | None = None


@dataclass(frozen=True)
class Published:
    """A number from a paper.

    Attributes:
        label: method and model.
        steps: None if the row has none.
        entropy: nats; None if the row has none.
        gen_ppl: None if the row has none.
        row: every cell of the line.
        drawn: whether it may be a mark in a picture: it is if it has both numbers.
    """

    label: str
    steps: float | None
    entropy: float | None
    gen_ppl: float | None
    row: dict[str, str]
    drawn: bool = True


@dataclass
class Findings:
    """All of a report.

    Attributes:
        sources: (file, what it is, the first digits of its sha256).
        left_out: files in folders that are none of these, and why.
    """

    frontiers: list[Frontier] = field(default_factory=list)
    toys: list[Bench] = field(default_factory=list)
    oracle: list[Bench] = field(default_factory=list)
    speed: list[Bench] = field(default_factory=list)
    samples: list[SampleFile] = field(default_factory=list)
    trainings: list[Training] = field(default_factory=list)
    published: list[Published] = field(default_factory=list)
    sources: list[tuple[str, str, str]] = field(default_factory=list)
    left_out: list[tuple[str, str]] = field(default_factory=list)
