"""``idlm generate`` with a model of the uniform process."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console
from transformers import AutoTokenizer

import idlm
from idlm.cli.generate_options import TAILS
from idlm.cli.main import main
from idlm.cli.watch import Watch
from idlm.data import train_bpe
from idlm.metrics.report import summarize
from idlm.models import DiffusionConfig, DiffusionLM, export_folder, load_tokenizer
from idlm.sampling import base
from idlm.sampling.requests import blank_id
from tests.tiny_models import SENTENCES


@pytest.fixture(scope="module", params=["idlm", "duo"])
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp(request.param)
    tokenizer = AutoTokenizer.from_pretrained(train_bpe(SENTENCES, 300, root / "tokenizer"))
    torch.manual_seed(0)
    model = DiffusionLM(
        DiffusionConfig(
            vocab_size=len(tokenizer),
            model_length=32,
            hidden_dim=16,
            cond_dim=8,
            n_blocks=1,
            n_heads=2,
            process="uniform",
            time_conditioning=True,
        )
    )
    torch.nn.init.normal_(model.backbone.output_layer.linear.weight)
    export_folder(model, root / "model", tokenizer=tokenizer, layout=request.param)
    return root / "model"


def write(folder: Path, path: Path, *options: str) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    line = ["--checkpoint", str(folder), "--output", str(path), "--steps", "3", "--seed", "0"]
    main(["generate", *line, *options])
    header, *rows = map(json.loads, path.read_text().splitlines())
    return header, rows


def test_a_file_of_samples_says_which_tail_and_what_it_cost(folder: Path, tmp_path: Path) -> None:
    path = tmp_path / "samples.jsonl"
    model = idlm.load(folder)
    for options, tail, nfe in ([], "ancestral", 3), (["--tail", "greedy"], "greedy", 4):
        header, rows = write(folder, path, "--length", "20", *options)
        assert (header["tail"], header["nfe"], header["steps"]) == (tail, nfe, 3)
        expected = idlm.generate(model, 4, 20, 3, seed=0, tail=tail).tokens
        assert [row["tokens"] for row in rows] == expected.tolist()


def test_slots_are_text_or_null(folder: Path, tmp_path: Path) -> None:
    ids = load_tokenizer(folder).encode("return the", add_special_tokens=False)
    header, (row,) = write(
        folder, tmp_path / "a.jsonl", "--infill", "return the[MASK:5]", "--num-samples", "1"
    )
    assert header["given"] == "infill"
    assert row["tokens"][: len(ids)] == ids
    assert len(row["tokens"]) == len(ids) + 5
    lines = tmp_path / "lines.jsonl"
    lines.write_text(json.dumps([*ids, *[None] * 5]) + "\n" + json.dumps([None, 5, None]))
    _, rows = write(folder, tmp_path / "b.jsonl", "--infill-file", str(lines))
    assert rows[0]["tokens"] == row["tokens"]
    assert rows[1]["tokens"][1] == 5
    assert len(rows[1]["tokens"]) == 3


def test_what_has_no_meaning_is_refused_in_a_sentence(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for options, sentence in (
        (["--order", "margin"], "the uniform process redraws every position in every step"),
        (["--tail", "none"], "argument --tail: invalid choice: 'none'"),
    ):
        with pytest.raises(SystemExit) as left:
            main(["generate", "--checkpoint", str(folder), *options])
        assert left.value.code == 2
        assert sentence in capsys.readouterr().err


def test_watching_highlights_what_changed_and_shades_what_no_window_reached(folder: Path) -> None:
    model, tokenizer = idlm.load(folder), load_tokenizer(folder)
    console = Console(file=io.StringIO(), width=60, force_terminal=False, legacy_windows=False)
    prompt = tokenizer.encode("return", add_special_tokens=False)
    seen: list[torch.Tensor] = []
    with Watch(tokenizer, blank_id(model.process), delay=0.0, console=console) as watch:

        def both(state: base.StepState) -> None:
            seen.append(state.tokens[0])
            watch(state)

        idlm.generate(model, 1, 40, 3, prompt=prompt, stride=8, seed=0, callback=both)
    frames = console.file.getvalue()
    written = 32 - len(prompt)
    assert f"step 1/3 | nfe 1 | {written}/{40 - len(prompt)} tokens (+{written})" in frames
    assert "░" * 8 in frames
    assert f"(+{int((seen[0] != seen[1]).sum())})" in frames


def test_sets_of_two_tails_are_no_repetitions() -> None:
    shared = {"checkpoint": "x", "num_samples": 2, "gen_ppl": 3.0}
    rows = [{**shared, "tail": tail, "seed": seed} for seed, tail in enumerate(TAILS)]
    assert summarize(rows) == []
    assert len(summarize([rows[0], {**rows[0], "seed": 1}])) == 1


def test_the_tails_of_the_option_are_those_of_the_sampler() -> None:
    assert TAILS == base.TAILS
