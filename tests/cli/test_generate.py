from __future__ import annotations

import os
import sys

import pytest
import torch

import idlm
from idlm.cli import generate, main, shared
from idlm.errors import UserError
from idlm.evaluation.cells import weights_revision
from idlm.models import decode, load_tokenizer
from idlm.samples import read_samples
from tests.tiny_models import LENGTH, Folders, make_models


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Folders:
    return make_models(tmp_path_factory.mktemp("models"))


@pytest.fixture
def arguments(folders):
    return [
        "--checkpoint",
        str(folders.student),
        "--steps",
        "4",
        "--num-samples",
        "2",
        "--seed",
        "3",
        "--device",
        "cpu",
    ]


def test_without_output_the_texts_are_printed_and_the_cost_goes_to_stderr(
    arguments, folders, capsys
):
    generate.run([*arguments, "--no-progress"])
    out, err = capsys.readouterr()
    expected = idlm.generate(idlm.load(folders.student), 2, LENGTH, 4, seed=3)
    texts = decode(load_tokenizer(folders.student), expected.tokens)
    assert out == f"--- sample 0\n{texts[0]}\n--- sample 1\n{texts[1]}\n"
    assert err.startswith(
        f"2 samples of {LENGTH} tokens in {expected.nfe} network calls each, "
        f"{LENGTH / expected.nfe:.4g} tokens per call, "
    )
    assert err.endswith("seed 3\n")


def test_with_output_the_samples_are_written_with_their_conditions(
    arguments, folders, capsys, tmp_path
):
    path = tmp_path / "new" / "samples.jsonl"
    generate.run([*arguments, "--output", str(path), "--temperature", "0.8", "--top-p", "0.9"])
    out = capsys.readouterr().out
    assert out.startswith(f"{path}: 2 samples of {LENGTH} tokens in ")
    assert out.count("\n") == 1
    header, rows = read_samples(path)
    assert header["checkpoint"] == str(folders.student)
    assert header["revision"] == weights_revision(folders.student)
    assert header["sampling_dtype"] == "float64"
    expected = {
        "steps": 4,
        "length": LENGTH,
        "temperature": 0.8,
        "top_p": 0.9,
        "num_samples": 2,
        "seed": 3,
        "network_dtype": "float32",
    }
    assert {key: header[key] for key in expected} == expected
    assert header["nfe"] <= 4
    assert header["seconds"] > 0
    assert [(row["seed"], row["index"]) for row in rows] == [(3, 0), (3, 1)]
    assert all(len(row["tokens"]) == LENGTH for row in rows)


def test_an_existing_file_is_replaced_only_by_a_complete_one(arguments, tmp_path, monkeypatch):
    path = tmp_path / "samples.jsonl"
    path.write_text("precious")

    def interrupted(*args, **kwargs):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(idlm, "generate", interrupted, raising=False)
        with pytest.raises(KeyboardInterrupt):
            generate.run([*arguments, "--output", str(path)])
    assert path.read_text() == "precious"
    generate.run([*arguments, "--output", str(path)])
    assert len(read_samples(path)[1]) == 2
    assert os.listdir(tmp_path) == ["samples.jsonl"]


def test_the_batch_size_changes_nothing_in_the_samples(arguments, tmp_path):
    written = []
    for size in ("1", "2"):
        path = tmp_path / size
        generate.run([*arguments, "--batch-size", size, "--output", str(path)])
        written.append([row["tokens"] for row in read_samples(path)[1]])
    assert written[0] == written[1]


def test_a_seed_that_was_not_given_is_told_and_repeats_the_samples(arguments, tmp_path):
    first, again = tmp_path / "first", tmp_path / "again"
    at = arguments.index("--seed")
    without = arguments[:at] + arguments[at + 2 :]
    generate.run([*without, "--output", str(first)])
    header, rows = read_samples(first)
    generate.run([*without, "--output", str(again), "--seed", str(header["seed"])])
    assert [row["tokens"] for row in read_samples(again)[1]] == [row["tokens"] for row in rows]


def test_the_bar_is_on_stderr_and_only_on_request(arguments, capsys):
    generate.run([*arguments, "--no-progress"])
    plain = capsys.readouterr()
    generate.run([*arguments, "--progress"])
    barred = capsys.readouterr()
    assert barred.out == plain.out
    with generate._progress(True, 8) as callback:
        assert callback is not None
    with generate._progress(False, 8) as callback:
        assert callback is None


def test_half_precision_networks_generate_too(arguments, capsys):
    generate.run([*arguments, "--dtype", "bfloat16"])
    assert "2 samples of" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("extra", "sentence"),
    [
        (["--steps", "0"], "steps is 0; it must be at least 1"),
        (["--num-samples", "-1"], "num_samples is -1"),
        (["--length", "4096"], f"length is 4096 but the model was trained on {LENGTH} tokens"),
        (["--temperature", "0"], "temperature is 0.0"),
        (["--top-p", "1.5"], "top_p is 1.5"),
        (["--batch-size", "0"], "batch_size is 0"),
        (["--device", "gpu"], "device 'gpu' is unknown; use cpu, cuda or cuda:N"),
        (["--device", "mps"], "device 'mps' is not supported; use cpu, cuda or cuda:N"),
        (["--steps", "many"], "argument --steps: invalid int value: 'many'"),
        (["--dtype", "int8"], "argument --dtype: invalid choice"),
        (["--stepps", "4"], "unrecognized arguments: --stepps 4"),
        (["--checkpoint", "./nowhere"], "checkpoint './nowhere' is not a folder"),
    ],
)
def test_a_mistake_is_one_sentence_and_exit_2(arguments, extra, sentence, capsys):
    with pytest.raises(SystemExit) as stop:
        main.main(["generate", *arguments, *extra])
    assert stop.value.code == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("idlm: error: ")
    assert err.count("\n") == 1
    assert sentence in err


@pytest.mark.skipif(torch.cuda.is_available(), reason="says what a machine without a GPU says")
def test_a_missing_gpu_is_one_sentence(arguments):
    with pytest.raises(UserError, match=r"device 'cuda' is not here: .* sees 0 CUDA devices"):
        generate.run([*arguments, "--device", "cuda"])


@pytest.mark.parametrize("kind", ["folder", "below a file"])
def test_a_place_that_cannot_be_written_is_said_before_the_model_is_loaded(
    arguments, tmp_path, monkeypatch, kind
):
    def never(*args, **kwargs):
        raise AssertionError("loaded")

    monkeypatch.setattr(idlm, "load", never, raising=False)
    (tmp_path / "file").write_text("")
    path = tmp_path if kind == "folder" else tmp_path / "file" / "samples.jsonl"
    with pytest.raises(UserError, match=r"name a file|is a file, not a folder"):
        generate.run([*arguments, "--output", str(path)])


def test_a_folder_without_permission_is_said_too(tmp_path, monkeypatch):
    # root may write everywhere, so the answer of the system is put in its place
    monkeypatch.setattr(os, "access", lambda *args: False)
    with pytest.raises(UserError, match=f"no permission in {tmp_path}"):
        shared.check_writable("--output", tmp_path / "a" / "samples.jsonl")


def test_a_bundled_model_that_is_not_there_is_one_sentence(monkeypatch, tmp_path):
    monkeypatch.setattr(shared, "resolve", str)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=r"the bundled model 'python-docs-student-16step' is not"):
        generate.run([])


def test_the_help_is_exit_0_and_needs_no_torch(capsys, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setitem(sys.modules, "torch", None)  # importing it would now fail
        with pytest.raises(SystemExit) as stop:
            main.main(["generate", "--help"])
    assert stop.value.code == 0
    assert "--temperature" in capsys.readouterr().out
