from __future__ import annotations

import io
import json
import os
import re
import shlex
import shutil
import sys

import pytest
import torch
from accelerate import PartialState

import idlm
from idlm import sampling
from idlm.cli import evaluate, generate, generate_options, launch, main, shared
from idlm.errors import UserError
from idlm.evaluation.cells import weights_revision
from idlm.models import decode, load_tokenizer
from idlm.paths import check_writable, repo_dir
from idlm.samples import read_samples
from idlm.sampling import sharded
from tests.tiny_models import LENGTH, Folders, make_models

PAGE = (repo_dir() / "docs" / "generation.md").read_text(encoding="utf-8")
LONG = "return the value of an object " * LENGTH


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Folders:
    return make_models(tmp_path_factory.mktemp("models"))


@pytest.fixture(scope="module")
def bare(folders, tmp_path_factory):
    """The student without its tokenizer."""
    folder = tmp_path_factory.mktemp("bare") / "student"
    shutil.copytree(folders.student, folder, ignore=shutil.ignore_patterns("token*", "special*"))
    return folder


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
        "compiled": False,
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
        patch.setattr(sharded, "generate", interrupted)
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
    assert "4/4" in barred.err
    assert "4/4" not in plain.err


def test_a_character_that_stdout_cannot_write_shows_as_its_number(arguments, folders, monkeypatch):
    stream = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    monkeypatch.setattr(sys, "stdout", stream)
    generate.run([*arguments, "--prompt", "the — value", "--no-progress"])
    stream.flush()
    assert b"the \\u2014 value" in stream.buffer.getvalue()


def test_a_mark_at_the_beginning_of_a_file_is_no_part_of_its_prompt(arguments, tmp_path):
    (tmp_path / "p.txt").write_bytes(b"\xef\xbb\xbfreturn")
    _, rows = written(tmp_path / "s", *arguments, "--prompt-file", str(tmp_path / "p.txt"))
    assert rows[0]["prompt"] == "return"


def test_a_pipe_can_be_the_output_and_gets_the_samples_alone(
    arguments, tmp_path, capsys, monkeypatch
):
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    reader = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)
    try:
        generate.run([*arguments, "--output", str(pipe)])
        lines = os.read(reader, 1 << 16).decode().splitlines()
    finally:
        os.close(reader)
    assert [json.loads(line).get("index") for line in lines] == [None, 0, 1]
    out, err = capsys.readouterr()
    assert out == ""  # stdout may be that pipe
    assert "2 samples of" in err
    assert pipe.is_fifo()
    monkeypatch.setattr(os, "access", lambda *args: False)
    with pytest.raises(UserError, match=r"--output .*pipe cannot be written: no permission"):
        generate.run([*arguments, "--output", str(pipe)])


def test_half_precision_networks_generate_too(arguments, capsys):
    generate.run([*arguments, "--dtype", "bfloat16"])
    assert "2 samples of" in capsys.readouterr().err


def written(path, *arguments):
    generate.run([*arguments, "--output", str(path)])
    return read_samples(path)


def test_every_prompt_is_continued_as_often_as_asked(arguments, folders, tmp_path):
    prompts = ["return the value", "raise"]
    header, rows = written(
        tmp_path / "s", *arguments, *[w for p in prompts for w in ("--prompt", p)]
    )
    assert header["given"] == "prompt"
    assert header["num_samples"] == 4
    assert [row["prompt"] for row in rows] == [prompts[0]] * 2 + [prompts[1]] * 2
    tokenizer = load_tokenizer(folders.student)
    for row in rows:
        assert row["length"] == len(row["tokens"]) == LENGTH
        assert tokenizer.decode(row["tokens"][: row["prompt_length"]]) == row["prompt"]
    expected = idlm.generate(
        idlm.load(folders.student), prompt=[prompts[0]] * 2 + [prompts[1]] * 2, steps=4, seed=3
    )
    assert [row["tokens"] for row in rows] == expected.tokens.tolist()


def test_the_number_of_samples_is_four_or_one_of_each_prompt(arguments, tmp_path):
    at = arguments.index("--num-samples")
    bare = arguments[:at] + arguments[at + 2 :]
    counts = [
        len(written(tmp_path / "s", *bare, *extra)[1])
        for extra in ([], ["--prompt", "the"], ["--prompt", "the", "--prompt", "in"], ["--watch"])
    ]
    assert counts == [4, 4, 2, 1]


def test_prompts_come_from_files_too(arguments, folders, tmp_path):
    tokenizer = load_tokenizer(folders.student)
    ids = tokenizer.encode("return the")
    (tmp_path / "p.txt").write_text("return the\n")
    (tmp_path / "p.jsonl").write_text('"return the"\n\n{"prompt": "raise", "other": 1}\n')
    (tmp_path / "ids.jsonl").write_text(f"{ids}\n")
    rows = {
        name: written(tmp_path / "s", *arguments, "--prompt-file", str(tmp_path / name))[1]
        for name in ("p.txt", "p.jsonl", "ids.jsonl")
    }
    assert [row["prompt"] for row in rows["p.txt"]] == ["return the"] * 2
    assert [row["prompt"] for row in rows["p.jsonl"]] == ["return the"] * 2 + ["raise"] * 2
    assert [row["prompt"] for row in rows["ids.jsonl"]] == [ids] * 2
    assert [row["tokens"] for row in rows["p.txt"]] == [row["tokens"] for row in rows["ids.jsonl"]]
    assert rows["p.txt"][0]["prompt_length"] == rows["ids.jsonl"][0]["prompt_length"] == len(ids)


def test_slots_are_written_and_the_text_around_them_is_kept(arguments, folders, tmp_path):
    template = "return[MASK:5] value[MASK]"
    tokenizer = load_tokenizer(folders.student)
    before, after = tokenizer.encode("return"), tokenizer.encode(" value")
    header, rows = written(tmp_path / "s", *arguments, "--infill", template)
    assert header["given"] == "infill"
    (tmp_path / "i.jsonl").write_text(json.dumps([*before, *[None] * 5, *after, None]))
    _, same = written(tmp_path / "s", *arguments, "--infill-file", str(tmp_path / "i.jsonl"))
    assert [row["tokens"] for row in rows] == [row["tokens"] for row in same]
    for row in rows:
        assert row["infill"] == template
        assert row["length"] == len(row["tokens"]) == len(before) + 5 + len(after) + 1
        assert row["tokens"][: len(before)] == before
        assert row["tokens"][len(before) + 5 : -1] == after


def test_infills_of_unequal_length_are_written_each_in_its_own(arguments, tmp_path):
    _, rows = written(
        tmp_path / "s", *arguments, "--infill", "return[MASK:9]", "--infill", "the[MASK]"
    )
    lengths = [row["length"] for row in rows]
    assert lengths[0] == lengths[1] > 9 > lengths[2] == lengths[3]
    assert [len(row["tokens"]) for row in rows] == lengths
    assert "[MASK]" not in "".join(row["text"] for row in rows)


def test_windows_and_stop_tokens_are_told_in_the_header(arguments, tmp_path):
    header, rows = written(
        tmp_path / "s", *arguments, "--length", str(3 * LENGTH), "--stride", "8", "--stop",
        *map(str, range(150)), "--order", "confidence",
    )  # fmt: skip
    assert header["stride"] == 8
    assert header["stop"] == list(range(150))
    assert header["order"] == "confidence"
    assert header["length"] == 3 * LENGTH  # what was asked for
    for row in rows:
        assert row["length"] == len(row["tokens"]) < 3 * LENGTH
        assert [token < 150 for token in row["tokens"]] == [False] * (row["length"] - 1) + [True]
    longer = written(tmp_path / "s", *arguments, "--length", "50", "--stride", "8")[1]
    assert [len(row["tokens"]) for row in longer] == [50, 50]


def test_a_model_without_tokenizer_writes_token_ids(arguments, folders, bare, tmp_path, capsys):
    with_text = written(tmp_path / "s", *arguments)[1]
    bare_arguments = [*arguments, "--checkpoint", str(bare), "--no-text"]
    header, rows = written(tmp_path / "s", *bare_arguments)
    assert header["decoded"] is False
    assert [row["text"] for row in rows] == [None, None]
    assert [row["tokens"] for row in rows] == [row["tokens"] for row in with_text]
    capsys.readouterr()
    generate.run([*bare_arguments, "--no-progress"])
    lines = capsys.readouterr().out.splitlines()
    assert lines[0::2] == ["--- sample 0", "--- sample 1"]
    assert [list(map(int, line.split())) for line in lines[1::2]] == [r["tokens"] for r in rows]


def test_a_tokenizer_can_be_named(arguments, folders, bare, tmp_path):
    named = ["--checkpoint", str(bare), "--tokenizer", str(folders.student)]
    header, rows = written(tmp_path / "s", *arguments, *named)
    assert header["tokenizer"] == str(folders.student)
    assert [row["text"] for row in rows] == [
        row["text"] for row in written(tmp_path / "s", *arguments)[1]
    ]


def test_samples_without_text_are_measured_on_their_tokens_or_refused_in_a_sentence(
    arguments, folders, tmp_path, capsys
):
    path = tmp_path / "samples.jsonl"
    written(path, *arguments, "--no-text")
    command = ["--samples", str(path), "--evaluator", str(folders.evaluator), "--device", "cpu"]
    with pytest.raises(UserError, match=r"holds tokens without text.*with --no-retokenize"):
        evaluate.run(command)
    evaluate.run([*command, "--no-retokenize"])
    assert "GenPPL" in capsys.readouterr().out


@pytest.mark.parametrize(("extra", "largest"), [([], 4), (["--batch-size", "3"], 3)])
def test_no_more_samples_are_in_flight_than_fit(arguments, tmp_path, monkeypatch, extra, largest):
    sizes = []
    real = idlm.load

    def load(*args, **kwargs):
        model = real(*args, **kwargs)
        model.backbone.register_forward_hook(lambda _, inputs, out: sizes.append(len(inputs[0])))
        return model

    monkeypatch.setattr(idlm, "load", load, raising=False)
    monkeypatch.setattr(sys.modules["idlm.sampling.generate"], "_TOKENS_PER_BATCH", 4 * LENGTH)
    _, rows = written(tmp_path / "s", *arguments, "--num-samples", "10", *extra)
    assert len(rows) == 10
    assert max(sizes) == largest


def test_the_orders_of_the_option_are_those_of_the_sampler():
    assert set(generate_options.ORDERS) == set(sampling.ORDERS)


MISTAKES = [
    (["--steps", "0"], "steps is 0; it must be at least 1"),
    (["--num-samples", "-1"], "num_samples is -1"),
    (["--num-samples", "9" * 20], "; one run makes at most 100000000, and further ones"),
    (["--length", "9" * 13, "--stride", "4"], "which no memory holds"),
    (["--num-samples", "0", "--prompt", "return"], "num_samples is 0"),
    (["--length", "0"], "length is 0; it must be at least 1"),
    (["--length", "4096"], f"length is 4096 but the model was trained on {LENGTH} tokens"),
    (["--temperature", "0"], "temperature is 0.0"),
    (["--temperature", "nan"], "temperature is nan"),
    (["--top-p", "1.5"], "top_p is 1.5; it must be in (0, 1]"),
    (["--top-p", "0"], "top_p is 0.0; it must be in (0, 1]"),
    (["--top-p", "nan"], "top_p is nan"),
    (["--batch-size", "0"], "batch_size is 0"),
    (["--stride", "0"], "stride is 0"),
    (["--stride", "4096", "--length", "9000"], "stride is 4096 but the model was trained on"),
    (["--order", "alphabetical"], "argument --order: invalid choice: 'alphabetical'"),
    (["--device", "gpu"], "device 'gpu' is unknown; use cpu, cuda or cuda:N"),
    (["--device", "mps"], "device 'mps' is not supported; use cpu, cuda or cuda:N"),
    (["--steps", "many"], "argument --steps: invalid int value: 'many'"),
    (["--dtype", "int8"], "argument --dtype: invalid choice"),
    (["--stepps", "4"], "unrecognized arguments: --stepps 4"),
    (["--checkpoint", "./nowhere"], "checkpoint './nowhere' is not a folder"),
    (["--tokenizer", ""], "has no tokenizer.json"),
    (["--tokenizer", "./nowhere"], "'./nowhere' is not a folder"),
    (["--raw"], "has no raw weights"),
    (["--prompt", LONG], f"tokens and length is {LENGTH}, which counts the prompt in"),
    (["--prompt", "return the", "--length", "2"], "tokens and length is 2"),
    (["--prompt", "a", "--prompt", LONG], "prompt 1 has "),
    (["--prompt", "\udcff"], r"holds '\udcff', which is no character; give it as UTF-8"),
    (["--infill", "[MASK]\udcff"], r"holds '\udcff', which is no character; give it as UTF-8"),
    (["--prompt", ""], "--prompt is empty; give some text, or leave it out"),
    (["--prompt", "a", "--prompt", ""], "--prompt is empty (number 1)"),
    (["--prompt", "two", "words", "--steps", "2"], "unrecognized arguments: words"),
    (["--prompt-file", "./nowhere.txt"], "--prompt-file ./nowhere.txt cannot be read"),
    (["--prompt", "a", "--infill", "b[MASK]"], "--infill: not allowed with argument --prompt"),
    (["--prompt", "a", "--prompt-file", "b"], "--prompt-file: not allowed with argument --prompt"),
    (["--infill", ""], "--infill is empty"),
    (["--infill", "no slot"], "infill has nothing to write; mark it by [MASK]"),
    (["--infill", "a[MASK:0]"], "the slot '[MASK:0]'"),
    (["--infill", "a[MASK:many]"], "the slot '[MASK:many]'"),
    (["--infill", f"a[MASK:{LENGTH}]"], f"the model was trained on {LENGTH} tokens"),
    (["--infill", "a[MASK]", "--length", "9"], "an infill is as long as its text and slots"),
    (["--infill", "a[MASK]", "--stop", "eos"], "an infill has its own end"),
    (["--stop", "end"], "--stop is end; give eos, or token ids such as 0 50256"),
    (["--stop", "-1"], "--stop is -1; give eos, or token ids"),
    (["--stop", "4096"], "4096"),
    (["--watch-delay", "1"], "add --watch"),
    (["--watch", "--watch-delay", "-1"], "--watch-delay is -1.0; give seconds, 0 to 60"),
    (["--watch", "--watch-delay", "inf"], "--watch-delay is inf"),
    (["--watch", "--progress"], "--watch and --progress draw on the same lines"),
    (["--watch", "--no-text"], "--watch shows text and --no-text asks for none"),
    (["--no-text", "--tokenizer", "x"], "--tokenizer has nothing to do with --no-text"),
]


@pytest.mark.parametrize(
    ("extra", "sentence"), MISTAKES, ids=[" ".join(m[0])[:40] for m in MISTAKES]
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


@pytest.mark.parametrize(
    ("name", "content", "sentence"),
    [
        ("p.txt", b"\n", "is empty; give some text"),
        ("p.txt", b"\xff\xfe", "is not UTF-8 (byte 0)"),
        ("p.jsonl", b"\n\n", "is empty; give one prompt a line"),
        ("p.jsonl", b'"a"\n{"prompt": "b"', "line 2 is not JSON"),
        ("p.jsonl", b'"a"\n\n{"text": "b"}', "line 3 holds no prompt; give a string, a list of"),
        ("p.jsonl", b"[1, 2.5]", "line 1 holds no prompt"),
        ("p.jsonl", b"[1, null]", "line 1 holds no prompt"),
        ("p.jsonl", b"[1, true]", "line 1 holds no prompt"),
        ("p.jsonl", b'"a"\n[1, 2]', "mixes text and token ids"),
        ("p.jsonl", b"[" * 100_000, "line 1 is not JSON"),
        ("p.jsonl", b'"a\\ud800"', "which is no character; give it as UTF-8"),
        ("p.jsonl", b"[1, 4096]", "4096"),
    ],
)
def test_a_bad_file_of_prompts_is_one_sentence(arguments, name, content, sentence, tmp_path):
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(UserError, match=re.escape(sentence)) as caught:
        generate.run([*arguments, "--prompt-file", str(path)])
    assert "\n" not in str(caught.value)


def test_a_checkpoint_without_tokenizer_is_one_sentence_that_says_what_to_do(
    arguments, bare, capsys
):
    with pytest.raises(SystemExit) as stop:
        main.main(["generate", *arguments, "--checkpoint", str(bare)])
    assert stop.value.code == 2
    err = capsys.readouterr().err
    assert "has no tokenizer.json" in err
    assert "name one with --tokenizer, or ask for token ids alone with --no-text" in err
    assert err.count("\n") == 1


def test_a_tokenizer_of_another_model_is_refused(arguments, folders, tmp_path):
    larger = tmp_path / "larger"
    shutil.copytree(folders.student, larger)
    tokenizer = load_tokenizer(folders.student)
    tokenizer.add_tokens(["zyx", "xyz", "yzx"])
    tokenizer.save_pretrained(tmp_path / "tokenizer")
    with pytest.raises(UserError, match=r"the tokenizer of .* has 303 tokens"):
        generate.run([*arguments, "--tokenizer", str(tmp_path / "tokenizer")])


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
        check_writable("--output", tmp_path / "a" / "samples.jsonl")


def test_a_bundled_model_that_is_not_there_is_one_sentence(monkeypatch, tmp_path):
    monkeypatch.setattr(shared, "resolve", str)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=r"the bundled model 'python-docs-student-16step' is not"):
        generate.run([])


def test_a_mistake_is_told_also_where_the_processes_cannot_meet(monkeypatch, capsys):
    for name in ("LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.setenv(name, "0")  # so that it is restored
        monkeypatch.delenv(name)
    monkeypatch.setenv("WORLD_SIZE", "2")
    for rank, named in (("0", "options\n"), ("1", "options (process 1 of 2)\n")):
        monkeypatch.setenv("RANK", rank)
        with pytest.raises(SystemExit) as stop:
            main.main(["generate", "--steps", "many"])
        PartialState._reset_state()
        assert stop.value.code == 2
        err = capsys.readouterr().err
        assert err.startswith("idlm: error: argument --steps")
        assert err.endswith(named)


@pytest.mark.parametrize(
    ("environment", "count"),
    [
        ({}, 1),
        ({"WORLD_SIZE": "1"}, 1),
        ({"WORLD_SIZE": "8"}, 8),
        ({"OMPI_COMM_WORLD_SIZE": "3"}, 3),
    ],
)
def test_launchers_are_recognised_by_their_environment(monkeypatch, environment, count):
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert launch.launched_processes() == count


def blocks(language):
    return re.findall(rf"```{language}\n(.*?)```", PAGE, flags=re.DOTALL)


def test_the_callback_of_the_page_runs():
    (example,) = blocks("python")
    names = {}
    exec(example, names)
    assert [frame["step"] for frame in names["recording"]] == list(range(8))
    assert "[MASK]" in names["recording"][0]["text"]


def test_the_commands_of_the_page_are_understood():
    lines = [
        line for block in blocks("bash") for line in block.splitlines() if " generate " in line
    ]
    assert len(lines) == 6
    for line in lines:
        words = shlex.split(line)
        args, _ = generate_options.parse(words[words.index("generate") + 1 :])
        assert args.num_samples >= 1


def test_the_page_names_every_option_and_every_key_of_the_file(arguments, tmp_path, capsys):
    with pytest.raises(SystemExit):
        generate.run(["--help"])
    options = set(re.findall(r"--[a-z][a-z-]+", capsys.readouterr().out))
    # these say all there is to say in their line of --help
    options -= {"--help", "--checkpoint", "--revision", "--raw", "--seed", "--output"}
    options -= {"--progress", "--no-progress"}
    assert {option for option in options if option not in PAGE} == set()
    keys = set()
    for extra in (["--prompt", "the", "--stop", "0"], ["--infill", "the[MASK]"]):
        header, rows = written(tmp_path / "s", *arguments, *extra)
        keys |= {*header, *rows[0]}
    assert {key for key in keys if f"`{key}`" not in PAGE} == set()


def test_the_help_is_exit_0_and_needs_no_torch(capsys, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setitem(sys.modules, "torch", None)  # importing it would now fail
        with pytest.raises(SystemExit) as stop:
            main.main(["generate", "--help"])
    assert stop.value.code == 0
    assert "--temperature" in capsys.readouterr().out
