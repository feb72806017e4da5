"""Commands under a launch: the files of one process, one voice, and who is a task of srun."""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from idlm.cli import launch
from idlm.errors import UserError
from idlm.locks import alone_writing
from idlm.paths import repo_dir
from idlm.samples import read_samples
from tests.launched import Said, command, spoken
from tests.tiny_models import LENGTH, SENTENCES, Folders, make_models


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """As the processes of a launch have, so that last digits are compared with their like."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Folders:
    made = make_models(tmp_path_factory.mktemp("models"))
    # what forked processes would otherwise import or start each for themselves
    root = tmp_path_factory.mktemp("warm")
    spoken(["evaluate", *sampling(made), "--output", str(root / "x.json")])
    return made


@pytest.fixture(autouse=True)
def _short_farewell(monkeypatch: pytest.MonkeyPatch) -> None:
    # no launcher ends these processes
    monkeypatch.setattr("idlm.cli.team._FAREWELL", 0.0)


@pytest.fixture
def corpus(tmp_path: Path) -> str:
    path = tmp_path / "text.txt"
    path.write_text("\n".join(SENTENCES * 30), encoding="utf-8")
    return str(path)


def sampling(folders: Folders) -> list[str]:
    models = ["--checkpoint", str(folders.student), "--evaluator", str(folders.evaluator)]
    return [*models, "--steps", "2", "--num-samples", "5", "--device", "cpu"]


def same_from_two(argv: list[str], tmp_path: Path) -> tuple[Said, Any]:
    """What one process says and writes, once two have written the same and one of them spoken."""
    alone, output = tmp_path / "alone.json", tmp_path / "together.json"
    one = spoken([*argv, "--output", str(alone)])
    assert one.code == 0, one.err
    main, other = command(2, [*argv, "--output", str(output)])
    assert (main.code, other.code) == (0, 0), main.err + other.err
    assert (other.out, other.err) == ("", "")
    assert main.out.replace(str(output), str(alone)) == one.out
    found = json.loads(alone.read_text())
    assert plain(json.loads(output.read_text())) == plain(found)
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []
    return main, found


def plain(value: Any) -> Any:
    """Without times, and without the name of the file."""
    if isinstance(value, dict):
        return {
            key: plain(inner)
            for key, inner in value.items()
            if not key.startswith("seconds") and key != "command"
        }
    return [plain(inner) for inner in value] if isinstance(value, list) else value


def test_generated_samples_have_the_numbers_and_files_of_one_process(
    folders: Folders, corpus: str, tmp_path: Path
) -> None:
    argv = ["evaluate", *sampling(folders), "--reference", corpus, "--seed", "0", "1"]
    argv += ["--batch-size", "2", "--half-batch", "1", "--eos", "both", "--metrics", "gen_ppl"]
    argv += ["entropy_pooled", "self_bleu_2", "gradient_moment"]
    kept = tmp_path / "kept"
    _, found = same_from_two([*argv, "--save-samples", str(kept)], tmp_path)
    assert [row["num_samples"] for row in found["results"]] == [5, 5, 5]
    assert found["summary"][0]["sets"] == 2
    assert found["results"][0]["gradient_moment_details"]["pairs"] == 2
    assert len(list(kept.iterdir())) == 2


def test_samples_of_a_file_have_the_numbers_of_one_process(
    folders: Folders, tmp_path: Path
) -> None:
    samples = tmp_path / "samples.jsonl"
    made = ["--checkpoint", str(folders.student), "--steps", "2", "--num-samples", "7"]
    assert spoken(["generate", *made, "--device", "cpu", "--output", str(samples)]).code == 0
    argv = ["evaluate", "--samples", str(samples), "--evaluator", str(folders.evaluator)]
    # fewer batches than processes, too
    for size in ("2", "7"):
        _, found = same_from_two([*argv, "--batch-size", size, "--device", "cpu"], tmp_path)
        assert found["results"][0]["gen_ppl_sample_count"] == 7


def test_a_likelihood_is_the_very_number_of_one_process(
    folders: Folders, corpus: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("IDLM_CACHE", str(tmp_path / "cache"))
    argv = ["evaluate", "--likelihood", "--checkpoint", str(folders.teacher)]
    argv += ["--corpus", corpus, "--rows", "7", "--batch-size", "2", "--device", "cpu"]
    _, found = same_from_two(argv, tmp_path)
    assert found["results"][0]["rows"] == 7


def test_gsm8k_has_the_answers_of_one_process(
    folders: Folders, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from idlm.evaluation import gsm8k

    monkeypatch.setattr(gsm8k, "PART", 2)
    questions = ["How many?", "why " * 100, "How many?", "How many?", "How many?"]
    records = [{"question": text, "answer": "#### 5"} for text in questions]
    file = tmp_path / "test.jsonl"
    file.write_text("".join(json.dumps(record) + "\n" for record in records))
    argv = ["evaluate", "--gsm8k", str(file), "--checkpoint", str(folders.student)]
    argv += ["--steps", "2", "--seed", "3", "4", "--answer", "last", "--device", "cpu"]
    main, found = same_from_two(argv, tmp_path)
    assert main.err.count("5 problems: the standard error") == 1
    for result in found["results"]:
        assert (result["problems"], result["too_long"]) == (5, 1)
        texts = [answer["completion"] for answer in result["answers"]]
        assert texts[1] is None
        assert len(set(texts)) == 5  # each with randomness of its own
    assert found["results"][0]["answers"] != found["results"][1]["answers"]


def test_the_cells_of_a_protocol_have_the_numbers_of_one_process(
    folders: Folders, tmp_path: Path
) -> None:
    """Processes measure different cells: no metric may add up what the others have seen."""
    settings = {
        "teacher": "teacher",
        "models": [{"label": "teacher", "checkpoint": str(folders.teacher), "steps": [1, 2, 4]}],
        "seeds": [0],
        "num_samples": 3,
        "length": LENGTH,
        "evaluator": str(folders.evaluator),
    }
    (tmp_path / "plan.yaml").write_text(yaml.safe_dump(settings))
    argv = ["evaluate", "--protocol", str(tmp_path / "plan.yaml"), "--device", "cpu", "--output"]
    assert spoken([*argv, str(tmp_path / "one.json")]).code == 0
    both = command(2, [*argv, str(tmp_path / "two.json")])
    assert [said.code for said in both] == [0, 0]
    one, two = (
        {cell["steps"]: plain(cell) for cell in json.loads((tmp_path / name).read_text())["cells"]}
        for name in ("one.json", "two.json")
    )
    assert list(one) == [1, 2, 4]
    assert two == one


def test_the_harness_is_refused_by_one_of_two_processes() -> None:
    main, other = command(2, ["evaluate", "--lm-eval", "--model", "idlm"])
    assert (main.code, other.code) == (2, 2)
    said = "idlm: error: --lm-eval runs in one process and there are 2, each of which would do all"
    assert main.err.startswith(said)
    assert (main.err.count("\n"), other.err) == (1, "")


WRONG: dict[str, tuple[list[str], str]] = {
    "usage": (["generate", "--steps", "many"], "argument --steps: invalid int value"),
    "device": (
        ["generate", "--checkpoint", "STUDENT", "--steps", "1", "--device", "cpu:0"],
        "device 'cpu:0' is one device and there are 2 processes",
    ),
    "samples": (["evaluate", "--samples", "gone.jsonl"], "samples file 'gone.jsonl' cannot be"),
    "steps": (
        ["evaluate", "--checkpoint", "STUDENT", "--evaluator", "EVALUATOR", "--steps", "0"],
        "steps is 0; it must be at least 1",
    ),
    "device map": (
        ["evaluate", "--samples", "x", "--device-map", "auto"],
        "--device-map auto spreads one evaluator over all devices and there are 2 processes",
    ),
    "likelihood": (
        ["evaluate", "--likelihood", "--checkpoint", "STUDENT", "--corpus", "gone.txt"],
        "--corpus gone.txt",
    ),
    "gsm8k": (["evaluate", "--gsm8k", "gone.jsonl", "--checkpoint", "STUDENT"], "no file"),
    "protocol": (["evaluate", "--protocol", "gone.yaml"], "gone.yaml"),
}


@pytest.mark.parametrize("case", WRONG)
def test_an_error_of_all_processes_is_one_sentence_of_the_main_one(
    case: str, folders: Folders, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    argv, sentence = WRONG[case]
    names = {"STUDENT": str(folders.student), "EVALUATOR": str(folders.evaluator)}
    main, other = command(2, [names.get(word, word) for word in argv])
    assert (main.code, other.code) == (2, 2)
    assert sentence in main.err
    assert (main.err.count("\n"), main.out) == (1, "")
    assert (other.err, other.out) == ("", "")
    assert list(tmp_path.iterdir()) == []


def test_help_is_printed_once() -> None:
    main, other = command(2, ["evaluate", "--likelihood", "--help"])
    assert (main.code, other.code, other.out) == (0, 0, "")
    assert main.out.startswith("usage: idlm evaluate --likelihood")


def failing(rank: int, target: str, error: Exception) -> Callable[[int], None]:
    """Make one process fail."""

    def before(own: int) -> None:
        def fail(*args: Any, **kwargs: Any) -> Any:
            raise error

        if own == rank:
            pytest.MonkeyPatch().setattr(target, fail)

    return before


@pytest.mark.parametrize(
    "target",
    [
        "idlm.cli.evaluate.check_options",  # before the processes have met
        "idlm.cli.evaluate.open_judges",
        "idlm.sampling.sharded.generate",
        "idlm.metrics.perplexity.GenerativePerplexity._score",
    ],
)
def test_an_error_of_another_process_alone_is_told_by_it_with_its_number(
    target: str, folders: Folders, tmp_path: Path
) -> None:
    argv = ["evaluate", *sampling(folders), "--batch-size", "1"]
    argv += ["--output", str(tmp_path / "out.json")]
    error = UserError("out of luck; try again")
    main, other = command(2, argv, before=failing(1, target, error))
    assert (main.code, other.code) == (2, 2)
    assert (main.out, main.err, other.out) == ("", "", "")
    assert other.err == "idlm: error: out of luck; try again (process 1 of 2)\n"
    assert list(tmp_path.iterdir()) == []


def test_a_fault_of_one_process_has_one_traceback_and_memory_one_sentence(
    folders: Folders,
) -> None:
    argv = ["evaluate", *sampling(folders)]
    target = "idlm.cli.evaluate.open_judges"
    main, other = command(2, argv, before=failing(1, target, ZeroDivisionError("at last")))
    assert (main.code, main.err, other.code) == (1, "", 1)
    assert other.err.count("ZeroDivisionError: at last") == 1
    error = torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
    main, other = command(2, argv, before=failing(1, target, error))
    assert (main.code, main.err, other.code) == (2, "", 2)
    assert other.err.startswith("idlm: error: the GPU ran out of memory (2.00 GiB more")
    assert other.err.endswith(" (process 1 of 2)\n")


@pytest.mark.parametrize(
    ("argv", "end"),
    [
        (["fit", "--config", "gone.yaml"], "owt_16step.yaml"),
        (["inspect", "--gone"], "for the options"),
        (["gone"], "for what each does"),
    ],
)
def test_where_processes_do_not_meet_the_others_let_the_main_one_speak_first(
    argv: list[str], end: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    slept: list[float] = []
    monkeypatch.setattr(time, "sleep", slept.append)
    monkeypatch.setenv("WORLD_SIZE", "4")
    for rank, named in (("0", f"{end}\n"), ("3", f"{end} (process 3 of 4)\n")):
        monkeypatch.setenv("RANK", rank)
        said = spoken(argv)
        assert said.code == 2
        assert said.err.endswith(named)
        assert bool(slept) is (rank == "3")


@pytest.mark.parametrize(
    ("environment", "code"),
    [
        ({"RANK": "1", "LOCAL_RANK": "1"}, 143),
        ({"OMPI_COMM_WORLD_RANK": "1"}, 143),
        ({"SLURM_PROCID": "1", "SLURM_STEP_ID": "0", "SLURM_STEP_NUM_TASKS": "2"}, 143),
        # Lightning would kill the process that started this one
        ({"LOCAL_RANK": "1", "NODE_RANK": "0"}, 0),
    ],
)
def test_a_training_that_is_stopped_ends_all_processes_of_a_launcher_with_one_code(
    environment: dict[str, str], code: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    from lightning.pytorch.utilities import rank_zero_only
    from lightning.pytorch.utilities.exceptions import SIGTERMException

    from idlm.cli.fit_errors import in_sentences
    from idlm.errors import Stopped

    slept: list[float] = []
    monkeypatch.setattr(time, "sleep", slept.append)
    monkeypatch.setattr(rank_zero_only, "rank", 1)
    for name, value in {"WORLD_SIZE": "2", **environment}.items():
        monkeypatch.setenv(name, value)
    for error in (Stopped("stopped", signal.SIGTERM), SIGTERMException()):
        with pytest.raises(SystemExit) as stop, in_sentences(["fit"]):
            raise error
        assert stop.value.code == code
    # a launcher ends the main process, too, when another one ends: it speaks first
    assert len(slept) == (2 if code else 0)


@pytest.mark.parametrize("command_line", [["fit"], ["generate"]])
def test_an_interruption_of_all_is_told_once(
    command_line: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from idlm.cli import main

    def interrupt(arguments: list[str]) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(main, "_dispatch", interrupt)
    monkeypatch.setenv("WORLD_SIZE", "2")
    said = []
    for rank in ("0", "1"):
        monkeypatch.setenv("RANK", rank)
        said.append(spoken(command_line))
    assert said == [Said(130, "", "idlm: interrupted\n"), Said(130, "", "")]


def test_a_training_that_stops_together_says_so_once(monkeypatch: pytest.MonkeyPatch) -> None:
    from idlm.cli import main
    from idlm.errors import Stopped

    def stop(arguments: list[str]) -> None:
        raise Stopped("stopped at step 3", signal.SIGTERM)

    monkeypatch.setattr(main, "_dispatch", stop)
    monkeypatch.setenv("WORLD_SIZE", "2")
    said = []
    for rank in ("0", "1"):
        monkeypatch.setenv("RANK", rank)
        said.append(spoken(["fit"]))
    assert said == [Said(143, "", "idlm: stopped at step 3\n"), Said(143, "", "")]


@pytest.mark.parametrize("count", [1, 2])
@pytest.mark.parametrize("mode", ["samples", "--likelihood", "--gsm8k"])
def test_a_command_whose_output_another_makes_is_refused_once(
    mode: str, count: int, folders: Folders, tmp_path: Path
) -> None:
    output = tmp_path / "out.json"
    argv = {
        "samples": ["evaluate", *sampling(folders)],
        "--likelihood": ["evaluate", "--likelihood", "--checkpoint", str(folders.student)],
        "--gsm8k": ["evaluate", "--gsm8k", "x", "--checkpoint", str(folders.student)],
    }[mode]
    with alone_writing(output, remedy=""):
        said = command(count, [*argv, "--device", "cpu", "--output", str(output)])
    assert [one.code for one in said] == [2] * count
    assert f"out.json is in use by process {os.getpid()} " in said[0].err
    assert [one.err.count("\n") for one in said] == [1, 0][:count]
    assert not output.exists()


TORCHRUN = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "GROUP_RANK", "MASTER_ADDR")
STEP = {"SLURM_JOB_ID": "1234567", "SLURM_STEP_ID": "2", "SLURM_STEP_NUM_TASKS": "2"}
TASK = {**STEP, "SLURM_NTASKS": "2", "SLURM_PROCID": "1", "SLURM_LOCALID": "1"}


def slurm(**more: str) -> Callable[[int], None]:
    """Turn a process of the test's launch into a task of srun."""

    def before(rank: int) -> None:
        for name in (*TORCHRUN, "TORCHELASTIC_RUN_ID"):
            os.environ.pop(name, None)
        os.environ.update(TASK | {"SLURM_PROCID": str(rank), "SLURM_LOCALID": str(rank)} | more)

    return before


def test_the_tasks_of_srun_make_the_file_of_one_process(folders: Folders, tmp_path: Path) -> None:
    argv = ["generate", "--checkpoint", str(folders.student), "--steps", "2", "--seed", "1"]
    argv += ["--num-samples", "3", "--device", "cpu", "--output"]
    assert spoken([*argv, str(tmp_path / "one.jsonl")]).code == 0
    main, other = command(2, [*argv, str(tmp_path / "two.jsonl")], before=slurm())
    assert (main.code, other.code, other.out) == (0, 0, ""), main.err + other.err
    assert "3 samples of" in main.out
    (_, one), (header, two) = (read_samples(tmp_path / f"{n}.jsonl") for n in ("one", "two"))
    assert two == one
    assert header["num_samples"] == 3


def test_the_tasks_of_srun_evaluate_together_and_fail_with_one_sentence(
    folders: Folders, tmp_path: Path
) -> None:
    argv = ["evaluate", *sampling(folders), "--output", str(tmp_path / "out.json")]
    main, other = command(2, argv, before=slurm())
    assert (main.code, other.code, other.out) == (0, 0, ""), main.err + other.err
    main, other = command(2, [*argv, "--top-p", "7"], before=slurm())
    assert (main.code, other.code, other.err) == (2, 2, "")
    assert main.err.startswith("idlm: error: top_p is 7")


def test_a_single_task_and_a_shell_in_an_allocation_are_single_processes(
    folders: Folders,
) -> None:
    argv = ["generate", "--checkpoint", str(folders.student), "--steps", "1", "--device", "cpu"]
    argv += ["--num-samples", "1"]
    single = {"SLURM_NTASKS": "1", "SLURM_STEP_NUM_TASKS": "1"}
    [said] = command(1, argv, before=slurm(**single))
    assert (said.code, "1 sample of" in said.err) == (0, True), said.err

    def salloc(rank: int) -> None:
        slurm()(rank)
        for name in (*STEP, "SLURM_PROCID", "SLURM_LOCALID"):
            del os.environ[name]

    for said in command(2, argv, before=salloc):
        assert (said.code, "1 sample of" in said.err) == (0, True), said.err


@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        (TASK, {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "19569"}),
        ({**TASK, "SLURM_STEP_NUM_TASKS": ""}, {"WORLD_SIZE": "2"}),
        ({**TASK, "MASTER_ADDR": "here", "MASTER_PORT": "1"}, {"MASTER_ADDR": "here"}),
        ({**TASK, "MASTER_ADDR": "here", "MASTER_PORT": "1"}, {"MASTER_PORT": "1"}),
        ({**TASK, "SLURM_NNODES": "2", "SLURM_NODELIST": "a7,b"}, {"MASTER_ADDR": "a7"}),
        (
            {
                **TASK,
                "SLURM_STEP_NUM_NODES": "3",
                "SLURM_STEP_NODELIST": "gpu-[007-008,12].net,b",
                "SLURM_NODELIST": "other",
            },
            {"MASTER_ADDR": "gpu-007.net"},
        ),
        ({**TASK, "CUDA_VISIBLE_DEVICES": "3"}, {"LOCAL_RANK": "0"}),
        ({**TASK, "CUDA_VISIBLE_DEVICES": "2,3"}, {"LOCAL_RANK": "1"}),
        # single processes
        ({"SLURM_JOB_ID": "7", "SLURM_NTASKS": "4"}, None),
        ({"SLURM_JOB_ID": "7", "SLURM_NTASKS": "4", "SLURM_PROCID": "0"}, None),
        ({**TASK, "SLURM_STEP_ID": "4294967291"}, None),
        ({**TASK, "SLURM_PTY_PORT": "40000"}, None),
        ({**TASK, "SLURM_STEP_NUM_TASKS": "1"}, None),
        # another launcher inside a task
        ({**TASK, "RANK": "3", "WORLD_SIZE": "8"}, None),
        # recipes export these in the batch script
        ({**TASK, "WORLD_SIZE": "2"}, {"RANK": "1"}),
    ],
)
def test_only_tasks_of_srun_are_a_launch(
    environment: dict[str, str], expected: dict[str, str] | None
) -> None:
    found = launch.slurm_step(environment)
    if expected is None:
        assert found == {}
    else:
        assert found | expected == found
        assert (found["RANK"], found["WORLD_SIZE"]) == ("1", "2")


@pytest.mark.parametrize(
    ("environment", "is_task"),
    [
        (TASK, True),
        ({"SLURM_JOB_ID": "7", "SLURM_NTASKS": "4"}, False),
        ({**TASK, "SLURM_STEP_ID": "4294967291"}, False),
        ({**TASK, "SLURM_PTY_PORT": "40000"}, False),
    ],
)
def test_lightning_takes_only_a_task_of_srun_for_one(
    environment: dict[str, str], is_task: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    from lightning.fabric.plugins.environments import SLURMEnvironment

    for name in STEP:
        monkeypatch.delenv(name, raising=False)
    for job in (None, "train"):
        named = {} if job is None else {"SLURM_JOB_NAME": job}
        for name, value in {**environment, **named, "SLURM_NTASKS": "4"}.items():
            monkeypatch.setenv(name, value)
        assert SLURMEnvironment.detect()
        with launch.lightning_environment():
            assert SLURMEnvironment.detect() is is_task
        assert os.environ.get("SLURM_JOB_NAME") == job


def test_tasks_that_lightning_does_not_take_are_one_sentence(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    for name, value in {**TASK, "SLURM_NTASKS": "4", "SLURM_PROCID": "0"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.delenv("SLURM_NTASKS_PER_NODE", raising=False)
    monkeypatch.chdir(tmp_path)
    config = repo_dir() / "configs" / "owt_16step.yaml"
    said = spoken(["fit", "--config", str(config), "--trainer.logger", "false"])
    assert said.code == 2
    assert said.err.startswith("idlm: error: SLURM does not fit: You set `--ntasks=4`")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("names", [{"RANK": "0"}, {"OMPI_COMM_WORLD_RANK": "0"}])
def test_a_trainer_of_fewer_processes_than_were_launched_is_refused(
    names: dict[str, str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    for name, value in {**names, "LOCAL_RANK": "0", "WORLD_SIZE": "2"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.chdir(tmp_path)
    config = repo_dir() / "configs" / "owt_16step.yaml"
    options = ["--trainer.devices=1", "--trainer.strategy=auto", "--trainer.accelerator=cpu"]
    said = spoken(["fit", "--config", str(config), *options, "--trainer.precision=32"])
    assert said.code == 2
    assert "a launcher started 2 processes, and the trainer is made for 1; give" in said.err
    assert list(tmp_path.iterdir()) == []
    launch.check_count(2)
    monkeypatch.setenv("WORLD_SIZE", "1")
    launch.check_count(4)


def test_the_names_of_torchrun_are_there_only_while_the_processes_are_together(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name in TORCHRUN:
        monkeypatch.delenv(name, raising=False)
    for name, value in (TASK | {"MASTER_PORT": "5"}).items():
        monkeypatch.setenv(name, value)
    assert (launch.launched_processes(), launch.process_index()) == (2, 1)
    with launch.torchrun_environment():
        assert (os.environ["RANK"], os.environ["MASTER_PORT"]) == ("1", "5")
        assert (launch.launched_processes(), launch.process_index()) == (2, 1)
    assert "RANK" not in os.environ
    assert os.environ["MASTER_PORT"] == "5"
