"""Model cards: what was trained, on what, how, and what was measured under which conditions.

A card states what is known. What is not known says "not stated"; nothing is filled in.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from idlm.errors import UserError

UNKNOWN = "not stated"
AVERAGED = "exponential moving average"
RAW = "raw, as the last update left them"
SOURCE_CARD = "Card of the source checkpoint"
_LIBRARY = "idlm"
_SAMPLED = ("gen_ppl", "frontier_ratio")
_HUB_ID = re.compile(r"[\w-][\w.-]*/[\w-][\w.-]*")
# what another's card may tell about weights that were only written anew
_KEPT = ("license", "license_name", "license_link", "language", "datasets", "base_model", "tags")


@dataclass
class Card:
    """A README.md: YAML front matter, an introduction, and sections by their headings.

    Attributes:
        front: the front matter, which the hub reads.
        intro: Markdown before the first ``##`` heading, title included.
        sections: Markdown under each ``##`` heading.
    """

    front: dict[str, Any]
    intro: str
    sections: dict[str, str] = field(default_factory=dict)

    @classmethod
    def parse(cls, text: str) -> Card:
        """Take a card apart.

        Raises:
            UserError: if its front matter is no YAML mapping.
        """
        found = re.match(r"\s*---[ \t]*\r?\n(.*?)\r?\n---[ \t]*(?:\r?\n|$)", text, re.DOTALL)
        try:
            front = (yaml.safe_load(found[1]) if found else {}) or {}
        except yaml.YAMLError as error:
            raise UserError(f"the front matter of the card is no YAML ({_line(error)})") from error
        if not isinstance(front, dict):
            raise UserError("the front matter of the card is no YAML mapping of names to values")
        parts: dict[str, list[str]] = {"": []}
        lines, fenced = parts[""], False
        for line in text[found.end() if found else 0 :].splitlines():
            fenced ^= line.lstrip().startswith(("```", "~~~"))
            if line.startswith("## ") and not fenced:
                lines = parts.setdefault(line[3:].strip(), [])
            else:
                lines.append(line)
        intro, *sections = (("\n".join(body).strip("\n"), title) for title, body in parts.items())
        return cls(front, intro[0], {title: body for body, title in sections})

    @property
    def ours(self) -> bool:
        """Whether this program wrote it."""
        return self.front.get("library_name") == _LIBRARY

    def text(self) -> str:
        """The Markdown of README.md."""
        front = yaml.safe_dump(self.front, sort_keys=False, allow_unicode=True).strip()
        parts = [f"---\n{front}\n---", self.intro]
        parts += [f"## {title}\n\n{body}" for title, body in self.sections.items()]
        return "\n\n".join(parts) + "\n"


def table(rows: Mapping[str, Any]) -> str:
    """A Markdown table of names and values; what is None was left out, and is here."""
    told = [f"| {k} | {_cell(v)} |" for k, v in rows.items() if v is not None]
    if not told:
        return f"{UNKNOWN.capitalize()}."
    return "\n".join(["| | |", "|---|---|", *told])


def columns(titles: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    """A Markdown table with a heading for each column."""
    head = ["| " + " | ".join(titles) + " |", "|" + "---|" * len(titles)]
    return "\n".join([*head, *("| " + " | ".join(map(_cell, row)) + " |" for row in rows)])


def _cell(value: Any) -> str:
    text = f"{value:.5g}" if isinstance(value, float) else str(value)
    return text.replace("|", "\\|").replace("\n", " ")


def _line(error: Exception) -> str:
    return " ".join(str(error).split())


def _front(tags: list[str], base_model: Any = None, license: str | None = None) -> dict[str, Any]:
    front: dict[str, Any] = {"license": license} if license else {}
    front |= {"library_name": _LIBRARY, "pipeline_tag": "text-generation", "tags": tags}
    return front | ({"base_model": base_model} if is_hub_id(base_model) else {})


def is_hub_id(name: Any) -> bool:
    """Whether a checkpoint's name is ``owner/name`` and no folder here."""
    return isinstance(name, str) and bool(_HUB_ID.fullmatch(name)) and not Path(name).exists()


def _use(arguments: str) -> str:
    return (
        "```python\nimport idlm\n\n"
        'model = idlm.load("THIS_FOLDER")\n'
        f"out = idlm.generate(model, num_samples=1, {arguments}, seed=0)\n```"
    )


def _weights(averaged: bool, whose: str) -> str:
    if averaged:
        return f"The weights are {whose} {AVERAGED}."
    return f"The weights are {RAW}, not their average."


def _logged(metrics: Mapping[str, float]) -> str:
    """Logged values, less perplexities of samples: the log has none of their conditions."""
    shown = {k: v for k, v in metrics.items() if not k.endswith(_SAMPLED)}
    note = "\n\nGenPPL was logged too; it is shown only with its conditions, under Metrics."
    return table(shown) + (note if len(shown) < len(metrics) else "")


def objective_text(name: str, settings: Mapping[str, Any]) -> str:
    """An objective in a sentence: its class, and its settings less those that are not given."""
    shown = ", ".join(f"{k}={v}" for k, v in settings.items() if v is not None)
    return f"{name} ({shown})" if shown else name


def teacher_card(
    settings: Mapping[str, Any],
    updates: int,
    metrics: Mapping[str, float],
    data: Mapping[str, Any],
    *,
    averaged: bool = True,
) -> str:
    """Markdown card of a teacher.

    Args:
        settings: constructor arguments of the training.
        updates: optimiser updates made.
        metrics: last logged metrics; NELBO in nats per token, EMA weights.
        data: corpus and packing of the training text.
        averaged: whether the weights are the moving average.
    """
    process = str(settings.get("process") or "absorbing")
    kind = _kind(process)
    nelbo = {
        "uniform": "uniform NELBO of UDLM (arXiv 2412.10193)",
        "absorbing": "masked NELBO of MDLM (arXiv 2406.07524)",
    }.get(process, f"NELBO of the {process} process")
    intro = (
        f"# {kind.capitalize()} diffusion language model\n\n"
        f"A teacher trained with the continuous-time {nelbo}.\n"
        f"{_weights(averaged, 'the')}\n\n{_use('steps=64')}"
    )
    sections = {
        "Measured (nats per token on the validation split)": table(
            {k: v for k, v in metrics.items() if k.startswith("val/")}
        ),
        "Data": table(data),
        "Training": table({"updates": updates, **settings}),
    }
    tags = [f"{kind}-diffusion", *{"uniform": ["udlm"], "absorbing": ["mdlm"]}.get(process, [])]
    return Card(_front(tags, settings.get("init")), intro, sections).text()


def _kind(process: str) -> str:
    """What models of a process are called."""
    return "masked" if process == "absorbing" else process


def student_card(
    settings: Mapping[str, Any],
    objective: str,
    counts: Mapping[str, int],
    metrics: Mapping[str, float],
    data: Mapping[str, Any],
    *,
    averaged: bool = True,
    process: str = "absorbing",
) -> str:
    """Markdown card of a distilled generator.

    Args:
        settings: constructor arguments of the training.
        objective: the objective and its settings, as text.
        counts: updates made of each network.
        metrics: last logged metrics.
        data: corpus and packing of the training text.
        averaged: whether the weights are the moving average.
        process: of the student.
    """
    weights = _weights(averaged, "the student's")
    kind = _kind(process)
    intro = (
        f"# Few-step {kind} diffusion generator\n\n"
        f"Distilled with {objective}. {weights}\n\n"
        f"{_use('length=1024, steps=16')}"
    )
    sections = {
        "Last logged values": _logged(metrics),
        "Data": table(data),
        "Training": table({**counts, **settings}),
    }
    tags = [f"{kind}-diffusion", "distillation", "idlm"]
    return Card(_front(tags, settings.get("teacher")), intro, sections).text()


def trained_card(
    settings: Mapping[str, Any], data: Mapping[str, Any], *, averaged: bool = True
) -> str:
    """Markdown card of a training checkpoint of the authors' code.

    Args:
        settings: what it states about method and training.
        data: what it states about the training text.
        averaged: whether the weights are the moving average.
    """
    method = settings.get("algorithm", settings.get("parameterization", UNKNOWN))
    intro = (
        "# Discrete diffusion language model\n\n"
        f"Trained with the code of its authors, algorithm: {method}. {_weights(averaged, 'the')}\n"
        f"\n{_use('steps=64')}"
    )
    unknown = f"{UNKNOWN.capitalize()}."
    sections = {"Metrics": unknown, "Data": table(data), "Training": table(settings)}
    return Card(_front(["discrete-diffusion"]), intro, sections).text()


def export_card(
    source: Card | None,
    checkpoint: Mapping[str, Any],
    *,
    name: str,
    metrics: str | None = None,
    license: str | None = None,
    base_model: str | None = None,
) -> str:
    """Markdown card of a checkpoint that is written anew: the source's facts, and what changed.

    Args:
        source: card of the checkpoint it is made from; None if it has none.
        checkpoint: layout, process, size and origin of the new file.
        name: title, where the source gives none.
        metrics: the Metrics section, when measurements were given.
        license: identifier of the licence, when it was given; the source's otherwise.
        base_model: the source, where it may be on the hub.
    """
    process = f"{checkpoint.get('process', 'masked')} process".removeprefix("not stated ")
    kept = {k: v for k, v in (source.front if source else {}).items() if v is not None}
    if source is not None and source.ours:
        card = Card(kept, source.intro, dict(source.sections))
    else:
        intro = (
            f"# {name}\n\nA discrete diffusion language model ({process}). "
            f"Method of training: {UNKNOWN}{_elsewhere(source)}.\n\n{_use('steps=64')}"
        )
        unknown = f"{UNKNOWN.capitalize()}{_elsewhere(source)}."
        sections = dict.fromkeys(("Metrics", "Data", "Training"), unknown)
        if source is not None:
            sections[SOURCE_CARD] = _demoted(source)
        card = Card({k: kept[k] for k in _KEPT if k in kept}, intro, sections)
    defaults = _front(["discrete-diffusion"], base_model)
    card.front = {**defaults, **card.front, **({"license": license} if license else {})}
    card.sections = {"Checkpoint": table(checkpoint)} | (
        {k: v for k, v in card.sections.items() if k != "Checkpoint"}
    )
    if metrics is not None:
        head, *rest = card.sections.items()
        card.sections = dict([head, ("Metrics", metrics)]) | (
            {k: v for k, v in rest if k != "Metrics"}
        )
    return card.text()


def _elsewhere(source: Card | None) -> str:
    return "" if source is None else f" here; see the section {SOURCE_CARD!r}"


def _demoted(card: Card) -> str:
    """The body of a card with every heading two levels deeper."""
    body = "\n\n".join([card.intro, *(f"## {k}\n\n{v}" for k, v in card.sections.items())])
    lines, fenced = [], False
    for line in body.splitlines():
        fenced ^= line.lstrip().startswith(("```", "~~~"))
        lines.append(f"##{line}" if re.match(r"#{1,4} ", line) and not fenced else line)
    return "\n".join(lines).strip("\n")
