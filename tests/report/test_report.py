from __future__ import annotations

import base64
import csv
import io
import json
import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import pytest
from PIL import Image

from idlm.cli.main import main
from idlm.errors import UserError
from idlm.paths import repo_dir
from idlm.report import make_report

# Elements that HTML closes by themselves.
_VOID = {"meta", "img", "br", "hr", "input", "link"}


class Reader(HTMLParser):
    """Elements, attributes and text of a page; tags that do not nest are a failure."""

    def __init__(self, page: str) -> None:
        super().__init__(convert_charrefs=True)
        self.stack: list[str] = []
        self.elements: list[tuple[str, dict[str, str]]] = []
        self.text = ""
        self.cells: list[str] = []
        self.feed(page)
        self.close()

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, {key: value or "" for key, value in attrs}))
        if tag in ("td", "th"):
            self.cells.append("")
        if tag not in _VOID:
            self.stack.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.elements.append((tag, {key: value or "" for key, value in attrs}))

    def handle_endtag(self, tag):
        assert self.stack.pop() == tag

    def handle_data(self, data):
        if self.stack and self.stack[-1] in ("td", "th"):
            self.cells[-1] += data
        if self.stack and self.stack[-1] not in ("style", "script"):
            self.text += data

    def all(self, tag: str) -> list[dict[str, str]]:
        return [attributes for name, attributes in self.elements if name == tag]


def read(folder: Path) -> tuple[str, Reader]:
    page = (folder / "index.html").read_text(encoding="utf-8")
    return page, Reader(page)


def test_the_page_needs_no_other_file_and_no_network(report):
    page, reader = read(report.page.parent)
    assert not re.search(r"https?://", page)
    for _, attributes in reader.elements:
        for name in ("src", "href", "xlink:href", "srcset", "data", "poster", "action"):
            value = attributes.get(name, "#")
            assert value.startswith(("#", "data:image/png;base64,")), value
    assert not {"link", "iframe", "object", "embed", "base", "form"} & {
        tag for tag, _ in reader.elements
    }
    assert "@import" not in page
    assert not re.search(r"url\((?!#)", page)
    (policy,) = [m for m in reader.all("meta") if m.get("http-equiv") == "Content-Security-Policy"]
    assert policy["content"].startswith("default-src 'none'")


def test_the_page_has_all_parts_and_each_link_of_its_contents_leads_to_one(report):
    _, reader = read(report.page.parent)
    ids = [attributes["id"] for _, attributes in reader.elements if "id" in attributes]
    assert len(ids) == len(set(ids))
    links = {a["href"].removeprefix("#") for a in reader.all("a")}
    assert links <= set(ids)
    assert {"frontier-1", "samples", "training-1", "toys-1", "oracle-1", "speed-1"} <= links
    assert {"published", "sources"} <= links
    for name in ("entropy", "published", "steps", "calls"):
        assert f"frontier-1-{name}" in ids


def test_references_inside_the_drawings_stay_inside_their_own(report):
    _, reader = read(report.page.parent)
    ids = {attributes["id"] for _, attributes in reader.elements if "id" in attributes}
    used = [a["href"] for a in reader.all("use")]
    assert used
    assert {name.removeprefix("#") for name in used} <= ids
    clips = [a["clip-path"] for _, a in reader.elements if "clip-path" in a]
    assert {re.fullmatch(r"url\(#(.*)\)", clip)[1] for clip in clips} <= ids


def test_every_figure_says_in_words_what_it_shows(report):
    _, reader = read(report.page.parent)
    drawings = reader.all("svg")
    assert len(drawings) >= 7
    assert all(a["role"] == "img" and len(a["aria-label"]) > 30 for a in drawings)
    assert all(len(a["alt"]) > 30 for a in reader.all("img"))
    assert len(reader.all("img")) == 1


def test_drawings_take_the_colours_of_the_page(report):
    page, reader = read(report.page.parent)
    used = set(re.findall(r"var\(--([\w-]+)\)", page))
    light, dark = (
        set(re.findall(r"--(\w[\w-]*):", part)) for part in page.split("@media screen")[:2]
    )
    assert used <= light
    assert light == dark
    styles = " ".join(a.get("style", "") for tag, a in reader.elements if tag in ("path", "text"))
    assert "var(--series-0)" in styles
    assert not re.search(r"(fill|stroke): #", styles)


def test_the_page_holds_the_conditions_of_every_record(report):
    _, reader = read(report.page.parent)
    shown = " ".join(reader.cells)
    for value in ("sha256:00ff", "models/student", "float64", "judge", "bf16-mixed", "a-teacher"):
        assert value in shown, value
    found = (report.page.parent / "tables" / "frontier-1-conditions.csv").read_text()
    rows = list(csv.DictReader(io.StringIO(found)))
    cells = json.loads((report.results / "frontier.json").read_text())["cells"]
    assert [float(row["gen_ppl"]) for row in rows] == [cell["gen_ppl"] for cell in cells]
    same = (report.page.parent / "tables" / "frontier-1-conditions-shared.csv").read_text()
    everywhere = {row["condition"] for row in csv.DictReader(io.StringIO(same))} | set(rows[0])
    assert {"evaluation.evaluator_revision", "machine.threads", "seed", "length"} <= everywhere


def test_conditions_of_a_bench_name_every_setting(report):
    folder = report.page.parent / "tables"
    text = "".join(path.read_text() for path in folder.glob("toys-1-conditions*.csv"))
    for name in ("settings.lr", "settings.objective.name", "plan.bins", "samples", "IDLM", "DMMD"):
        assert name in text, name


def test_tables_come_in_three_forms_that_say_the_same(report):
    folder = report.page.parent / "tables"
    names = {path.stem for path in folder.iterdir()}
    for name in names:
        assert {path.suffix for path in folder.glob(f"{name}.*")} == {".csv", ".md", ".tex"}
    rows = list(csv.reader(io.StringIO((folder / "toys-1-tv.csv").read_text())))
    idlm = next(row for row in rows if "idlm" in row)
    assert [float(cell) for cell in idlm[5:7]] == [0.5, pytest.approx(0.125**0.5)]
    assert "0.500" in (folder / "toys-1-tv.md").read_text()
    assert "0.500" in (folder / "toys-1-tv.tex").read_text()


def test_what_a_reader_copies_is_what_the_files_hold(report):
    _, reader = read(report.page.parent)
    folder = report.page.parent / "tables"
    assert (folder / "frontier-1-points.csv").read_text() in reader.text
    assert (folder / "frontier-1-points.tex").read_text() in reader.text
    copied = [a["data-copies"] for a in reader.all("button")]
    ids = {a.get("id") for a in reader.all("pre")}
    assert copied
    assert set(copied) <= ids


def test_a_perplexity_stands_beside_its_entropy_in_every_table(report):
    for path in (report.page.parent / "tables").glob("*.csv"):
        head = path.read_text().splitlines()[0].lower()
        if re.search(r"gen_?ppl", head):
            assert "entropy" in head, path.name


def test_a_published_perplexity_without_entropy_is_left_out_aloud(report):
    _, reader = read(report.page.parent)
    table = (report.page.parent / "tables" / "published-numbers.csv").read_text()
    assert "12.5" not in table
    assert "Bare" in table
    assert "Rows that state a GenPPL without entropy: 1." in reader.text
    assert "32.75±1.62" in table


def test_published_points_are_marked_as_other_conditions(report):
    page, _ = read(report.page.parent)
    figure = re.search(r'<figure id="frontier-1-published">.*?</figure>', page, re.DOTALL)[0]
    assert "measured under other conditions" in figure
    assert ">published elsewhere:</text>" in figure
    assert ">MDLM</text>" in figure
    assert ">Bare</text>" not in figure


def test_without_published_numbers_the_page_says_so(results, tmp_path):
    made = make_report([results / "frontier.json"], tmp_path / "out")
    page, reader = read(made.page.parent)
    assert "published numbers" in reader.text.partition("Not in this report")[2][:150]
    assert "frontier-1-published" not in page


def test_names_and_texts_from_outside_are_never_markup_nor_paths(make, tmp_path):
    folder = tmp_path / "runs"
    hostile = make.HOSTILE
    found = make.frontier(hostile)
    found["cells"][2]["evaluation"] = {**make.EVALUATION, "evaluator": hostile}
    make.write_json(folder / "f.json", found)
    other = {**make.toy("idlm", 0, 1, 0.5), "dataset": "../../" + hostile, "method": hostile}
    make.write_json(folder / "t.json", [other])
    make.write_json(folder / "o.json", [{**make.oracle("a", 1, 2.0), "method": hostile}])
    make.write_json(folder / "s.json", [make.sampler(hostile)])
    end = "</pre></textarea></script><script>alert(1)</script><img src=x onerror=alert(1)>"
    make.write_texts(folder / "x.jsonl", "teacher", [end], order=hostile)
    make.write_texts(folder / "y.jsonl", "../" + hostile, ["{{ 7 * 7 }} {% raw %}" + end])
    run = folder / "<b>run<b>"
    run.mkdir()
    (run / "metrics.csv").write_text(make.METRICS.replace("train/fake_loss", "train/<i>"))
    (run / "config.yaml").write_text(f"a: {json.dumps(hostile)}\n<u>: 1\n")
    published = tmp_path / "p.csv"
    published.write_text(make.PUBLISHED.replace("MDLM", '"<script>alert(2)</script>"'))
    made = make_report([folder], tmp_path / "out", published=published, title=hostile)
    _, reader = read(made.page.parent)
    tags = {tag for tag, _ in reader.elements}
    assert not tags & {"i", "b", "u", "iframe", "input"}
    assert len(reader.all("script")) == 1
    assert reader.all("img") == []
    assert not any(name.startswith("on") for _, a in reader.elements for name in a)
    assert hostile in reader.text
    assert end in reader.text
    assert "{{ 7 * 7 }} {% raw %}" in reader.text
    assert {path.suffix for path in (tmp_path / "out").rglob("*.*")} == {
        *(".html", ".png", ".csv", ".md", ".tex")
    }
    named = re.compile(r"[a-z0-9-]+\.(html|png|csv|md|tex)")
    assert all(named.fullmatch(p.name) for p in (tmp_path / "out").rglob("*") if p.is_file())


def test_texts_stand_beside_the_teachers_at_the_nearest_conditions(make, tmp_path):
    folder = tmp_path / "samples"
    make.write_texts(folder / "a.jsonl", "teacher", ["far"], steps=64, temperature=1.0)
    make.write_texts(folder / "b.jsonl", "teacher", ["near"], steps=16, temperature=1.0)
    make.write_texts(folder / "c.jsonl", "teacher", ["cold"], steps=16, temperature=0.5)
    make.write_texts(folder / "d.jsonl", "student", ["own", "second"], steps=16, temperature=1.0)
    page, _ = read(make_report([folder], tmp_path / "out").page.parent)
    pairs = re.findall(r'<div class="pair">(.*?)</div>', page, re.DOTALL)
    texts = [re.findall(r"<pre[^>]*>(.*?)</pre>", pair, re.DOTALL) for pair in pairs]
    assert texts == [["near", "own"], ["second"]]


def test_the_teacher_can_be_named_and_must_be_there(make, tmp_path):
    folder = tmp_path / "samples"
    make.write_texts(folder / "a.jsonl", "first", ["one"])
    make.write_texts(folder / "b.jsonl", "second", ["two"])
    made = make_report([folder], tmp_path / "out", teacher="second")
    page, _ = read(made.page.parent)
    assert page.index(">two</pre>") < page.index(">one</pre>")
    with pytest.raises(UserError, match=r"--teacher is 'third'.*first, second"):
        make_report([folder], tmp_path / "out", teacher="third")


def test_a_long_text_is_cut_and_says_by_how_much(make, tmp_path):
    make.write_texts(tmp_path / "a.jsonl", "teacher", ["x" * 2000])
    _, reader = read(make_report([tmp_path / "a.jsonl"], tmp_path / "out").page.parent)
    assert "… and 400 more characters" in reader.text


def test_a_student_on_its_teachers_curve_is_said_to_have_gained_nothing(make, tmp_path):
    found = make.frontier()
    kept = {**found["matched"][0], "gen_ppl": 70.0, "entropy": 4.75, "sweep": "temperature"}
    rows = [
        {**kept, "ratio": 0.99, "ratio_low": 0.95, "ratio_high": 1.03, "verdict": "no gain"},
        {**kept, "ratio": 0.85, "ratio_low": 0.8, "ratio_high": 0.9, "verdict": "gain"},
        {**kept, "ratio": None, "steps": 4, "verdict": "undecided"},
    ]
    found["gains"] = {"equal_entropy": rows, "equal_steps": []}
    path = make.write_json(tmp_path / "a.json", found)
    _, reader = read(make_report([path], tmp_path / "out").page.parent)
    text = " ".join(reader.text.split())
    assert "0.99 times (interval 0.95 to 1.03)" in text
    assert "nothing is gained over moving along that curve" in text
    assert "0.85 times (interval 0.80 to 0.90)" in text
    assert "no comparison at equal steps and entropy for student at 4 steps" in text


def test_a_comparison_that_states_no_entropy_gets_that_of_its_row(report):
    table = (report.page.parent / "tables" / "frontier-1-at-entropy.csv").read_text()
    (row,) = csv.DictReader(io.StringIO(table))
    assert float(row["entropy (nats)"]) == 4.75
    assert float(row["GenPPL"]) == 60.123456789012345


def test_samples_that_could_not_be_scored_are_counted_on_the_page(make, tmp_path):
    found = make.frontier()
    found["cells"][0]["evaluation"] = {**make.EVALUATION, "unscored_samples": 3}
    found["summary"][1]["gen_ppl_mean"] = None
    path = make.write_json(tmp_path / "a.json", found)
    _, reader = read(make_report([path], tmp_path / "out").page.parent)
    assert "Samples that could not be scored and count in no perplexity: 3." in reader.text
    assert "Rows without a perplexity, which are in no picture: 1." in reader.text


def test_warnings_and_samples_that_are_not_finite_stand_on_the_page(make, tmp_path):
    own = {"checkpoint": "m", "nfe": 4, "length": 64, "num_samples": 8, "seed": 0, "entropy": 5.0}
    results = [
        {**own, "source": "a", "steps": 4, "gen_ppl": 9.0, "nonfinite_samples": 0},
        {**own, "source": "b", "steps": 8, "gen_ppl": None, "nonfinite_samples": 2},
    ]
    said = ["a: 8 samples are <few>"]
    found = {"summary": [], "results": results, "warnings": said}
    path = make.write_json(tmp_path / "a.json", found)
    _, reader = read(make_report([path], tmp_path / "out").page.parent)
    assert "Warning: a: 8 samples are <few>" in reader.text
    assert "not finite, which leaves their whole set without a perplexity: 2." in reader.text


def test_a_student_whose_steps_the_teacher_lacks_is_named_among_the_findings(make, tmp_path):
    found = make.frontier()
    found["matched"] += [
        {**found["matched"][0], "steps": 8, "teacher_steps": steps} for steps in (4, 16)
    ]
    path = make.write_json(tmp_path / "a.json", found)
    _, reader = read(make_report([path], tmp_path / "out").page.parent)
    assert (
        "no comparison at equal steps for student at 8 steps (the teacher was not measured there)"
    ) in " ".join(reader.text.split())


def test_the_floor_of_the_collapse_monitor_is_drawn(report):
    page, _ = read(report.page.parent)
    figure = re.search(r'<figure id="training-1-curves">.*?</figure>', page, re.DOTALL)[0]
    assert "guard's floor" in figure
    assert "collapse monitor" in figure


def test_a_ratio_outside_the_curve_is_an_empty_cell(report):
    table = (report.page.parent / "tables" / "training-1-validations.csv").read_text()
    first, second = csv.DictReader(io.StringIO(table))
    assert (first["student updates"], first["frontier_ratio"]) == ("2", "")
    assert (float(second["GenPPL"]), float(second["entropy (nats)"])) == (80.25, 5.1)


def test_the_toy_figure_is_the_benchs_own_and_its_absence_is_said(make, results, tmp_path):
    _, reader = read(make_report([results / "toys.json"], tmp_path / "a").page.parent)
    (image,) = reader.all("img")
    kind, _, data = image["src"].partition(",")
    assert kind == "data:image/png;base64"
    assert pixel(base64.b64decode(data)) == pixel(make.PNG)
    for number, broken in enumerate((b"<svg onload=alert(1)>", make.PNG[:40], None)):
        (results / "toys.png").unlink()
        if broken:
            (results / "toys.png").write_bytes(broken)
        made = make_report([results / "toys.json"], tmp_path / f"b{number}")
        _, reader = read(made.page.parent)
        assert reader.all("img") == []
        assert "No figure of the bench is beside its records" in reader.text
        (results / "toys.png").touch()


def pixel(png: bytes) -> tuple[int, ...]:
    """The first pixel of a picture."""
    return Image.open(io.BytesIO(png)).convert("RGB").getpixel((0, 0))


def test_two_reports_of_the_same_files_are_the_same(report, tmp_path):
    published = report.results.parent / "published.csv"
    again = make_report([report.results], tmp_path / "out", published=published)
    assert again.page.read_bytes() == report.page.read_bytes()
    for one, other in zip(again.files, report.files, strict=True):
        assert one.name == other.name
        assert one.read_bytes() == other.read_bytes()


def test_a_report_that_fails_leaves_the_one_before_it_whole(results, tmp_path, monkeypatch):
    made = make_report([results / "toys.json"], tmp_path / "out")
    before = made.page.read_bytes()
    monkeypatch.setattr("os.replace", _fail)
    with pytest.raises(UserError, match="cannot be written"):
        make_report([results], tmp_path / "out")
    assert made.page.read_bytes() == before
    assert not list((tmp_path / "out").rglob(".*"))


def _fail(*_):
    raise OSError(28, "No space left on device")


def test_pictures_are_pngs_with_legends_and_no_warning(report):
    pictures = sorted((report.page.parent / "figures").iterdir())
    assert len(pictures) >= 7
    assert all(path.read_bytes().startswith(b"\x89PNG\r\n\x1a\n") for path in pictures)


def test_letters_that_no_font_has_are_drawn_without_a_warning(make, tmp_path):
    path = make.write_json(tmp_path / "a.json", make.frontier("学生 _x $"))
    page, _ = read(make_report([path], tmp_path / "out").page.parent)
    assert "学生 _x $" in page


def test_the_command_writes_the_report_and_says_where(results, tmp_path, capsys):
    for name in ("frontier.json", "speed.json", "oracle.json"):
        (results / name).write_text("{}")
    published = str(tmp_path / "published.csv")
    main(["report", str(results), "--output", str(tmp_path / "out"), "--published", published])
    said = capsys.readouterr()
    assert str(tmp_path / "out" / "index.html") in said.out
    assert "left out: " in said.err
    assert "speed.json" in said.err
    assert "Bare" in (tmp_path / "out" / "index.html").read_text()


def test_the_page_names_published_numbers_from_where_it_was_made(results, tmp_path, monkeypatch):
    monkeypatch.chdir(repo_dir())
    main(["report", str(results / "toys.json"), "--output", str(tmp_path / "out")])
    table = (tmp_path / "out" / "tables" / "source-files.csv").read_text()
    assert "\neval/published.csv," in table


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["report"], "RUN"),
        (["report", "nowhere.json"], "nowhere.json does not exist"),
        (["report", "pyproject.toml"], "pyproject.toml is no JSON"),
        (["report", "x", "--texts", "-1"], "--texts is -1"),
        (["report", "x", "--output", "pyproject.toml"], "is a file; name a folder"),
    ],
)
def test_bad_usage_is_one_sentence_and_exit_code_2(arguments, sentence, capsys, monkeypatch):
    monkeypatch.chdir(Path(__file__).parents[2])
    with pytest.raises(SystemExit) as stopped:
        main(arguments)
    said = capsys.readouterr().err
    assert stopped.value.code == 2
    assert sentence in said
    assert said.count("\n") == 1


def test_the_report_needs_no_torch(results, tmp_path):
    code = (
        "import sys; from idlm.report import make_report; "
        f"make_report([{str(results)!r}], {str(tmp_path / 'out')!r}); "
        "assert not {'torch', 'lightning', 'transformers'} & set(sys.modules), 'heavy'"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)
