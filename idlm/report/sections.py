"""From findings to the sections of the page."""

from __future__ import annotations

import math
from collections.abc import Sequence

from idlm.report import draw_bench, draw_frontier, draw_training
from idlm.report.blocks import Image, Section
from idlm.report.conditions import condition_tables, flatten, grouped
from idlm.report.findings import Bench, Findings, Frontier, Published, Record, Training
from idlm.report.pictures import smaller
from idlm.report.sample_pairs import sample_section
from idlm.report.summaries import oracle_table, speed_tables, toy_table
from idlm.report.tables import Column, Table

# what distinguishes comparisons is shown first, whatever else a later version writes follows
_FIRST = (
    *("label", "steps", "temperature", "top_p", "entropy", "gen_ppl", "teacher_steps", "sweep"),
    *("teacher_entropy", "teacher_gen_ppl", "ratio", "ratio_low", "ratio_high", "verdict"),
)


def sections(found: Findings, *, teacher: str | None, texts: int) -> list[Section]:
    """All sections, in the order of the page.

    Args:
        found: what was read.
        teacher: label of the teacher among the samples; found by itself if None.
        texts: samples shown of each file.

    Raises:
        UserError: if no sample is by the teacher that was named.
    """
    made = [_frontier(n, one, found.published) for n, one in enumerate(found.frontiers, 1)]
    if found.samples:
        known = [one.teacher for one in found.frontiers if one.teacher]
        made.append(sample_section(found.samples, teacher=teacher, known=known, count=texts))
    made += [_training(n, run) for n, run in enumerate(found.trainings, 1)]
    made += [_toys(n, bench) for n, bench in enumerate(found.toys, 1)]
    made += [_oracle(n, bench) for n, bench in enumerate(found.oracle, 1)]
    made += [_speed(n, bench) for n, bench in enumerate(found.speed, 1)]
    if found.published:
        made.append(_published(found.published))
    return made


def _frontier(number: int, found: Frontier, published: Sequence[Published]) -> Section:
    name = f"frontier-{number}"
    section = Section(name, f"Frontier: {found.name}", f"Frontier {number}")
    section.notes = [f"Judged by {found.judge}.", *_warnings(found)]
    section.pictures = [draw_frontier.frontier(f"{name}-entropy", found)]
    if any(one.drawn and one.gen_ppl and one.entropy for one in published):
        section.pictures.append(draw_frontier.frontier(f"{name}-published", found, published))
    section.pictures.append(draw_frontier.against_steps(f"{name}-steps", found))
    calls = draw_frontier.against_calls(f"{name}-calls", found)
    section.pictures += [calls] if calls else []
    section.tables = [_points(name, found)]
    if found.at_entropy:
        note = (
            "The teacher's GenPPL is read off its curve at the same entropy: a ratio below 1 is in "
            "the student's favour. Outside the curve there is no number."
        )
        title = "Against the teacher at equal entropy"
        section.tables.append(_compared(f"{name}-at-entropy", title, found.at_entropy, note))
    if found.at_steps:
        note = "At equal steps alone, a lower GenPPL may be bought with entropy: compare both."
        title = "Against the teacher at equal steps"
        section.tables.append(_compared(f"{name}-at-steps", title, found.at_steps, note))
    section.folded = condition_tables(f"{name}-conditions", "Every condition", found.records)
    return section


def _warnings(found: Frontier) -> list[str]:
    """What a reader must know before comparing two rows."""
    notes = []
    counts = [point.num_samples for point in found.points if point.num_samples]
    errors = [(r.get("gen_ppl_stderr"), r.get("gen_ppl")) for r in found.records]
    shares = [e / p for e, p in errors if isinstance(e, float) and isinstance(p, float)]
    if counts:
        worst = f"; their standard errors reach {max(shares):.0%} of a GenPPL" if shares else ""
        notes.append(f"Samples per seed: {min(counts)} at the least{worst}.")
    if found.unscored:
        notes.append(f"Rows without a perplexity, which are in no picture: {found.unscored}.")
    if silent := _counted(found.records, "unscored_samples"):
        notes.append(f"Samples that could not be scored and count in no perplexity: {silent}.")
    if broken := _counted(found.records, "nonfinite_samples"):
        notes.append(
            "Samples whose log-probability under the evaluator is not finite, which leaves their "
            f"whole set without a perplexity: {broken}."
        )
    return [*notes, *(f"Warning: {sentence}" for sentence in found.warnings)]


def _counted(records: Sequence[Record], name: str) -> int:
    """A count of samples, over all records; a record's evaluation may hold it."""
    total = 0
    for record in records:
        inner = record.get("evaluation")
        value = (inner if isinstance(inner, dict) else record).get(name)
        total += value if isinstance(value, int) else 0
    return total


def _points(name: str, found: Frontier) -> Table:
    columns = [Column(t) for t in ("model", "steps", "T", "top-p", "tokens per call")]
    columns += [Column("GenPPL", ".1f"), Column("± sd", ".1f")]
    columns += [Column("entropy (nats)", ".3f"), Column("± sd (nats)", ".3f")]
    columns += [Column("seeds"), Column("samples per seed"), Column("seconds per seed", ".1f")]
    rows: list[tuple[str | int | float | None, ...]] = [
        (
            *(p.label, p.steps, p.temperature, p.top_p, p.tokens_per_call),
            *(p.gen_ppl, p.gen_ppl_sd, p.entropy, p.entropy_sd),
            *(p.seeds, p.num_samples, p.seconds),
        )
        for p in found.points
    ]
    if found.reference is not None:
        entropy, gen_ppl = found.reference
        rows.append(("held-out text", *(None,) * 4, gen_ppl, None, entropy, *(None,) * 4))
    note = "± is one standard deviation over seeds; GenPPL compares only within one entropy."
    return Table(f"{name}-points", "Means over seeds", columns, rows, note)


def _compared(name: str, title: str, rows: Sequence[Record], note: str) -> Table:
    """Comparisons; a way of sampling or judging that all rows share is not repeated in each."""
    flat = [flatten(row) for row in rows]
    keys = list(dict.fromkeys(key for row in flat for key in row))
    same = {k for k in keys if k not in _FIRST and len({row.get(k) for row in flat}) == 1}
    keys = [*(k for k in _FIRST if k in keys), *(k for k in keys if k not in (*_FIRST, *same))]
    titles = {"label": "model", "teacher_gen_ppl": "teacher's GenPPL", "gen_ppl": "GenPPL"}
    titles |= {"entropy": "entropy (nats)", "teacher_entropy": "teacher's entropy (nats)"}
    columns = [Column(titles.get(key, key.replace("_", " ")), ".4g") for key in keys]
    return Table(name, title, columns, [[row.get(key) for key in keys] for row in flat], note)


def _training(number: int, run: Training) -> Section:
    name = f"training-{number}"
    section = Section(name, f"Training: {run.name}", f"Training {number}")
    drawn = (
        draw_training.curves(f"{name}-curves", run),
        draw_training.at_equal_entropy(f"{name}-frontier", run),
    )
    section.pictures = [picture for picture in drawn if picture]
    held_out = [key for key in run.curves if key.startswith("val/")]
    # perplexity and entropy are neighbours
    held_out.sort(key=lambda key: (key not in ("val/gen_ppl", "val/entropy"), key != "val/gen_ppl"))
    if held_out:
        section.tables.append(_validations(name, run, held_out))
    last = [(key, _finite(curve[-1][1])) for key, curve in run.curves.items() if key[:4] != "val/"]
    if last:
        columns = (Column("value"), Column("last"))
        section.folded.append(Table(f"{name}-last", "Last training values", columns, last))
    if run.settings:
        section.folded += condition_tables(f"{name}-settings", "Every setting", [run.settings])
    else:
        section.notes.append("There is no config.yaml beside this log: its settings are unknown.")
    return section


def _validations(name: str, run: Training, keys: Sequence[str]) -> Table:
    values = {key: dict(run.curves[key]) for key in keys}
    places = sorted({place for curve in values.values() for place in curve})
    rows = [[round(place), *(_finite(values[key].get(place)) for key in keys)] for place in places]
    titles = {"val/gen_ppl": "GenPPL", "val/entropy": "entropy (nats)"}
    names = [titles.get(key, key.removeprefix("val/")) for key in keys]
    columns = [Column(run.counter), *(Column(name, ".4g") for name in names)]
    note = "A ratio that is not there lies outside the teacher's curve. Entropies are in nats."
    return Table(f"{name}-validations", "Validations", columns, rows, note)


def _finite(value: float | None) -> float | None:
    return value if value is not None and math.isfinite(value) else None


def _toys(number: int, bench: Bench) -> Section:
    name = f"toys-{number}"
    section = Section(name, f"Toys: {bench.name}", f"Toys {number}")
    section.notes.append(
        "Every method on data whose distribution is an exact table. Numbers are total variations "
        "from it, 0 at best; the floor is what as many samples of the table itself have."
    )
    try:
        data = smaller(bench.path.with_suffix(".png").read_bytes())
    except (OSError, ValueError):
        section.notes.append("No figure of the bench is beside its records, so none is shown.")
    else:
        sets = len({record["dataset"] for record in bench.records})
        alt = (
            f"Heat maps of {sets} data sets: the true density, and what each method draws in one "
            "step, with its total variation from the truth; the numbers are in the table below."
        )
        caption = "The bench's figure: samples of one step, and their total variation."
        section.images.append(Image(data, alt, caption))
    section.tables = [toy_table(f"{name}-tv", bench)]
    results = ("tv", "js", "floor_tv", "floor_js", "train_seconds")
    groups = grouped(bench.records, over=("dataset", "seed", "steps"), without=results)
    section.folded = condition_tables(f"{name}-conditions", "Every condition", groups)
    return section


def _oracle(number: int, bench: Bench) -> Section:
    name = f"oracle-{number}"
    section = Section(name, f"Oracle language: {bench.name}", f"Oracle {number}")
    section.notes = ["A text-like language whose likelihood is known exactly."]
    picture = draw_bench.oracle(f"{name}-steps", bench)
    section.pictures = [picture] if picture else []
    section.tables = [oracle_table(f"{name}-scores", bench)]
    kept = ("dataset", "method", "process", "latent", "samples", "epsilon", "plan", "settings")
    names = {key for record in bench.records for key in record}
    results = [key for key in names if key not in (*kept, "seed", "steps")]
    groups = grouped(bench.records, over=("seed", "steps"), without=results)
    section.folded = condition_tables(f"{name}-conditions", "Every condition", groups)
    return section


def _speed(number: int, bench: Bench) -> Section:
    name = f"speed-{number}"
    section = Section(name, f"Speed: {bench.name}", f"Speed {number}")
    picture = draw_bench.sampling_speed(f"{name}-sampler", bench)
    section.pictures = [picture] if picture else []
    section.tables = speed_tables(name, bench)
    section.folded = condition_tables(f"{name}-conditions", "Every condition", bench.records)
    return section


def _published(found: Sequence[Published]) -> Section:
    section = Section("published", "Published numbers, under other conditions", "Published")
    section.notes.append(
        "As their papers state them. Evaluator, corpus, length, sample count and precision differ "
        "between rows, so none compares with another row or with ours unless the row says so."
    )
    bare = [one for one in found if one.gen_ppl is not None and one.entropy is None]
    if bare:
        section.notes.append(
            f"Rows that state a GenPPL without entropy: {len(bare)}. It is left out: alone it says "
            "nothing."
        )
    keys = list(found[0].row)
    rows = []
    for one in found:
        row = dict(one.row)
        if one in bare:
            row["genppl"] = ""
        numbers = {"genppl": one.gen_ppl, "entropy": one.entropy, "steps": one.steps}
        rows.append([_number(row[key], numbers.get(key)) for key in keys])
    columns = [Column({"genppl": "GenPPL", "entropy": "entropy (nats)"}.get(k, k)) for k in keys]
    section.tables = [Table("published-numbers", "Published numbers", columns, rows)]
    return section


def _number(cell: str, value: float | None) -> str | float | None:
    """A number where the cell is nothing else, so that a column of numbers stands right."""
    try:
        return value if value is not None and float(cell) == value else cell.strip() or None
    except ValueError:
        return cell.strip() or None
