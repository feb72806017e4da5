"""What a checkpoint is, counted and measured."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from idlm.models import DiffusionConfig, DiffusionLM, export_folder
from idlm.models.cards import AVERAGED, RAW, Card, teacher_card
from idlm.models.describe import (
    describe,
    describe_files,
    kind_of_weights,
    method_of,
)

Make = Callable[..., DiffusionLM]


def test_the_published_size_has_the_published_number_of_parameters() -> None:
    with torch.device("meta"):
        facts = describe(DiffusionLM(DiffusionConfig()))
    assert facts["parameters"] == 169_627_218  # methods A.5
    assert (facts["latent_parameters"], facts["mask_id"]) == (0, 50257)


def test_the_latents_share_of_the_parameters_is_counted(make: Make) -> None:
    plain, facts = make(), describe(make().with_latent(latent_global=5, latent_position=3))
    count = sum(p.numel() for p in plain.parameters())
    assert facts["parameters"] - facts["latent_parameters"] == count
    assert facts["latent_parameters"] == 5 * 8 + 8 + (2 * 6 + 2) * 16 * 8 + 3 * 16


@pytest.mark.parametrize("layout", ["idlm", "mdlm"])
def test_files_are_described_as_they_are_stored(make: Make, tmp_path: Path, layout: str) -> None:
    folder = export_folder(make(), tmp_path / "x", dtype=torch.bfloat16, layout=layout)
    facts = describe_files(folder)
    data = (folder / "model.safetensors").read_bytes()
    assert facts["layout"] == layout
    assert facts["dtype"] == {"bfloat16": 30, "float32": 1}  # the rotary frequencies
    assert facts["bytes"] == len(data)
    assert facts["sha256"] == {"model.safetensors": hashlib.sha256(data).hexdigest()}


@pytest.mark.parametrize("averaged", [True, False])
def test_the_kind_of_weights_is_what_our_own_card_says(averaged: bool) -> None:
    card = Card.parse(teacher_card({}, 3, {}, {}, averaged=averaged))
    assert kind_of_weights(card) == (AVERAGED if averaged else RAW)
    card.front["library_name"] = "other"
    assert kind_of_weights(card) == kind_of_weights(None) == "not stated"


def test_the_method_is_what_our_own_card_says() -> None:
    ours = Card.parse(teacher_card({}, 1, {}, {}))
    assert method_of(ours).startswith("A teacher trained with the continuous-time masked NELBO")
    assert method_of(None) == method_of(Card({}, "# Theirs\n\nTrained.")) == "not stated"
