"""Samples beside those of the teacher under the nearest conditions."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import PurePath

from idlm.errors import UserError
from idlm.report.blocks import Section, Text
from idlm.report.findings import SampleFile

_LONGEST = 1600  # characters of a text
_ABOUT = (
    *("checkpoint", "revision", "steps", "nfe", "length", "temperature", "top_p", "order", "tail"),
    *("sampling_dtype", "network_dtype", "num_samples", "seconds"),
)


def sample_section(
    files: Sequence[SampleFile], *, teacher: str | None, known: Sequence[str], count: int
) -> Section:
    """Every file that is not the teacher's, beside the teacher's at the nearest steps.

    Args:
        files: the samples.
        teacher: label or checkpoint of the teacher's; found by itself if None.
        known: labels that the results call teacher.
        count: samples shown of each file.

    Raises:
        UserError: if no file is by ``teacher``.
    """
    section = Section("samples", "Samples", "Samples")
    own = [one for one in files if _by_teacher(one, teacher, known)]
    if teacher is not None and not own:
        labels = ", ".join(sorted({_short(one.label) for one in files}))
        raise UserError(f"--teacher is {teacher!r}, but the samples are by {labels}; name one")
    others = [one for one in files if one not in own]
    section.notes.append(
        "The first samples of each file, chosen by nothing but their number. Special tokens are "
        "shown as they are."
    )
    if not own:
        section.notes.append(
            "None of the files is known to be the teacher's: --teacher LABEL says which is."
        )
    elif not others:
        section.notes.append("All files are the teacher's: there is nothing to set beside them.")
    for one in others or own:
        partner = min(own, key=lambda t: _distance(t, one)) if own and others else None
        for number in range(min(count, len(one.texts))):
            pair = [_text(one, number)]
            if partner is not None and number < len(partner.texts):
                pair.insert(0, _text(partner, number))
            section.pairs.append(pair)
    return section


def _by_teacher(one: SampleFile, teacher: str | None, known: Sequence[str]) -> bool:
    names = {one.label, _short(one.label), str(one.header.get("checkpoint", ""))}
    if teacher is not None:
        return teacher in names
    return bool(names & set(known)) or "teacher" in _short(one.label).lower()


def _distance(teacher: SampleFile, student: SampleFile) -> tuple[float, float]:
    """How far apart the temperatures are, then the steps."""
    cold = abs(_number(teacher, "temperature") - _number(student, "temperature"))
    ratio = max(_number(teacher, "steps"), 1.0) / max(_number(student, "steps"), 1.0)
    return cold, abs(math.log(ratio))


def _number(one: SampleFile, key: str) -> float:
    value = one.header.get(key)
    fits = isinstance(value, int | float) and abs(value) < 1e9
    return float(value) if fits else 1.0  # type: ignore[arg-type]


def _short(label: str) -> str:
    return PurePath(label).name or label


def _text(one: SampleFile, number: int) -> Text:
    row, text = one.rows[number], one.texts[number]
    about = {key: one.header[key] for key in _ABOUT if one.header.get(key) is not None}
    about |= {key: row[key] for key in ("seed", "index", "prompt") if key in row}
    said = [
        f"{key} {value:g}" if isinstance(value, float) else f"{key} {value}"
        for key, value in about.items()
    ]
    return Text(
        title=f"{_short(one.label)}, {one.header.get('steps', '?')} steps, sample {number}",
        about=" · ".join(said),
        text=text[:_LONGEST],
        rest=max(0, len(text) - _LONGEST),
    )
