"""Cards keep the facts they are given, and say of the rest that it is not stated."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import yaml
from huggingface_hub import ModelCard

from idlm.errors import UserError
from idlm.models.cards import Card, export_card, is_hub_id, student_card, teacher_card

THEIRS = """---
license: mit
datasets: [owner/corpus]
pipeline_tag: fill-mask
---

# Their model

Do as they say.

```python
## no heading, a comment
model = theirs()
```

## Numbers

Perplexity 23.
"""


def validated(text: str) -> ModelCard:
    """The card as huggingface_hub reads it; bad metadata raises."""
    return ModelCard(text, ignore_metadata_errors=False)


def test_a_teachers_card_has_its_facts_and_no_licence_that_nobody_chose() -> None:
    settings = {"lr": 3e-4, "init": "owner/name", "betas": (0.9, 0.98)}
    text = teacher_card(settings, 7, {"val/nelbo": 3.25, "train/x": 1.0}, {"corpus": "mine"})
    data = validated(text).data
    assert (data.library_name, data.pipeline_tag) == ("idlm", "text-generation")
    assert (data.license, data.base_model) == (None, "owner/name")
    for row in ("| val/nelbo | 3.25 |", "| corpus | mine |", "| updates | 7 |", "| lr | 0.0003 |"):
        assert row in text
    assert "train/x" not in text
    assert "exponential moving average" in text


def test_a_students_card_names_objective_and_teacher() -> None:
    counts = {"student_updates": 3, "fake_updates": 4}
    text = student_card({"teacher": "kuleshov-group/mdlm-owt"}, "IDLM (a=1)", counts, {}, {})
    assert validated(text).data.base_model == "kuleshov-group/mdlm-owt"
    assert "Distilled with IDLM (a=1)." in text
    assert "| fake_updates | 4 |" in text
    assert Card.parse(text).sections["Data"] == "Not stated."
    raw = student_card({"teacher": "./folder"}, "IDLM", counts, {}, {}, averaged=False)
    assert validated(raw).data.base_model is None  # a folder of this machine means nothing there
    assert "moving average" not in raw


def test_a_perplexity_from_the_log_is_not_printed_without_its_conditions() -> None:
    logged = {"val/gen_ppl": 12.5, "val/frontier_ratio": 0.75, "val/entropy": 5.5}
    text = student_card({"teacher": "t"}, "IDLM", {}, logged, {})
    assert "12.5" not in text
    assert "0.75" not in text
    assert "| val/entropy | 5.5 |" in text
    assert "shown only with its conditions" in text


def test_a_card_survives_being_taken_apart() -> None:
    text = teacher_card({"lr": 1.0}, 7, {"val/nelbo": 3.25}, {"corpus": "a | b"})
    assert Card.parse(text).text() == text
    theirs = Card.parse(THEIRS)
    assert list(theirs.sections) == ["Numbers"]
    assert "## no heading" in theirs.intro
    assert Card.parse("no front matter").front == {}


@pytest.mark.parametrize("front", ["a: [", "- a list"])
def test_front_matter_that_is_no_mapping_is_named(front: str) -> None:
    with pytest.raises(UserError, match="front matter of the card is no YAML"):
        Card.parse(f"---\n{front}\n---\n# Title\n")


def test_an_export_keeps_every_fact_of_our_own_card() -> None:
    before = student_card(
        {"teacher": "t", "lr": 0.25}, "DMMD (x=2)", {"student_updates": 3}, {"loss": 1.5}, {"c": 1}
    )
    text = export_card(Card.parse(before), {"layout": "mdlm"}, name="new", license="apache-2.0")
    after = Card.parse(text)
    assert validated(text).data.license == "apache-2.0"
    assert after.intro == Card.parse(before).intro
    assert next(iter(after.sections)) == "Checkpoint"
    assert "| layout | mdlm |" in after.sections.pop("Checkpoint")
    assert after.sections == Card.parse(before).sections


def test_exporting_an_export_changes_no_fact() -> None:
    once = export_card(None, {"layout": "idlm"}, name="x", metrics="old numbers", license="mit")
    again = export_card(Card.parse(once), {"layout": "mdlm"}, name="y", metrics="new numbers")
    assert again == once.replace("| layout | idlm |", "| layout | mdlm |").replace("old n", "new n")


def test_what_nobody_stated_is_said_to_be_not_stated() -> None:
    text = export_card(None, {"process": "absorbing, log-linear"}, name="x")
    card = Card.parse(text)
    assert validated(text).data.license is None
    assert card.intro.startswith("# x\n")
    assert "Method of training: not stated." in card.intro
    assert [card.sections[k] for k in ("Metrics", "Data", "Training")] == ["Not stated."] * 3


def test_another_programs_card_is_kept_whole_under_its_own_heading() -> None:
    text = export_card(Card.parse(THEIRS), {"layout": "idlm"}, name="x", base_model="o/n")
    data = validated(text).data
    assert (data.license, data.datasets, data.base_model) == ("mit", ["owner/corpus"], "o/n")
    assert (data.library_name, data.pipeline_tag) == ("idlm", "text-generation")
    kept = Card.parse(text).sections["Card of the source checkpoint"]
    assert kept.startswith("### Their model")
    assert "#### Numbers\n\nPerplexity 23." in kept
    assert "\n## no heading, a comment\n" in kept  # inside a code block nothing is a heading
    assert re.findall(r"not stated[^.]*", text.split("## Checkpoint")[0]) == [
        "not stated here; see the section 'Card of the source checkpoint'"
    ]


def test_front_matter_is_plain_yaml() -> None:
    text = export_card(None, {}, name="x", license="apache-2.0")
    assert yaml.safe_load(text.split("---")[1])["license"] == "apache-2.0"


@pytest.mark.parametrize(
    ("name", "is_id"),
    [
        ("kuleshov-group/mdlm-owt", True),
        ("idlm/models", False),  # a folder here
        ("gpt2", False),
        ("./a/b", False),
        ("../b", False),
        ("/a/b", False),
        ("a/b/c", False),
        (None, False),
    ],
)
def test_a_hub_id_is_told_from_a_path(
    name: str, is_id: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("idlm/models").mkdir(parents=True)
    assert is_hub_id(name) is is_id
