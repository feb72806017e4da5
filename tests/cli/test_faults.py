"""What the machine lacks is a sentence with a remedy, not a traceback."""

from __future__ import annotations

import errno
import os
import re
import types
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from idlm.cli import evaluate, export, generate, main, quickstart, report
from idlm.cli.faults import ADVICE, explained
from idlm.errors import UserError
from tests.tiny_models import make_models

CUDA = (
    "CUDA out of memory. Tried to allocate 2.50 GiB. GPU 0 has a total capacity of 23.00 GiB of "
    "which 1.00 GiB is free."
)
CPU = "DefaultCPUAllocator: can't allocate memory: you tried to allocate 9223372036854775807 bytes."


def said(error: Exception, command: str = "fit") -> str:
    with pytest.raises(UserError) as caught, explained(command):
        raise error
    return str(caught.value)


@pytest.mark.parametrize(
    ("error", "start"),
    [
        (torch.OutOfMemoryError(CUDA), "the GPU ran out of memory (2.50 GiB more were asked for)"),
        (RuntimeError("CUDA error: out of memory"), "the GPU ran out of memory;"),
        (MemoryError(), "this machine ran out of memory;"),
        (RuntimeError(CPU), "this machine ran out of memory (9223372036854775807 bytes more"),
        (RuntimeError("[enforce fail] not enough memory: you tried"), "this machine ran out"),
        (OSError(errno.ENOMEM, "Cannot allocate memory"), "this machine ran out of memory;"),
    ],
)
def test_a_lack_of_memory_names_what_to_lower(error: Exception, start: str) -> None:
    sentence = said(error)
    assert sentence.startswith(start)
    for setting in ("micro_batch_size", "gradient_checkpointing", "length", "precision"):
        assert setting in sentence


def test_memory_that_torch_really_cannot_get_is_a_lack_of_memory() -> None:
    with pytest.raises(UserError, match="ran out of memory"), explained("generate"):
        torch.empty(1 << 60, dtype=torch.uint8)


@pytest.mark.parametrize("module", [generate, evaluate])
def test_every_option_that_is_to_be_lowered_exists(module: types.ModuleType, capsys) -> None:
    name = module.__name__.rpartition(".")[2]
    with pytest.raises(SystemExit):
        module.run(["--help"])
    printed = capsys.readouterr().out
    options = re.findall(r"--[a-z-]+", ADVICE[name])
    assert len(options) >= 3
    for option in options:
        assert option in printed


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (OSError(errno.ENOSPC, "No space left on device", "/a/b"), "/a/b cannot be written"),
        (OSError(errno.EDQUOT, "Disk quota exceeded"), "a file of this run .* quota exceeded"),
        (OSError(errno.EFBIG, "File too large", "/a/b"), "/a/b .*File too large"),
        (RuntimeError("I/O error: No space left on device (os error 28)"), "No space left"),
        (RuntimeError("I/O error: File too large (os error 27)"), "written .*File too large"),
        (RuntimeError("I/O error: Permission denied (os error 13)"), "opened .*Permission denied"),
        (OSError(errno.EROFS, "Read-only file system", "/a/b"), "/a/b cannot be opened or written"),
        (PermissionError(errno.EACCES, "Permission denied", "/a/b"), "/a/b .*Permission denied"),
    ],
)
def test_a_disk_that_is_full_or_closed_is_one_sentence(error: Exception, words: str) -> None:
    sentence = said(error)
    assert re.search(words, sentence)
    assert "\n" not in sentence


@pytest.mark.parametrize(
    "error",
    [
        RuntimeError("shape mismatch"),
        OSError(errno.EPIPE, "pipe"),
        RuntimeError("broken (os error 5)"),
    ],
)
def test_every_other_error_passes(error: Exception) -> None:
    with pytest.raises(type(error)) as caught, explained("fit"):
        raise error
    assert caught.value is error


@pytest.mark.parametrize(
    ("command", "raises", "option"),
    [
        ("generate", "idlm.sampling.sharded.generate_sharded", "--batch-size"),
        ("evaluate", "idlm.metrics.report.measure", "--evaluator-dtype"),
    ],
)
def test_commands_that_run_out_of_memory_say_it_and_exit_2(
    command: str,
    raises: str,
    option: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def out_of_memory(*args: object, **kwargs: object) -> None:
        raise torch.OutOfMemoryError(CUDA)

    models = make_models(tmp_path)
    monkeypatch.setattr(raises, out_of_memory)
    arguments = {
        "generate": ["--checkpoint", str(models.student), "--steps", "2"],
        "evaluate": [
            *("--checkpoint", str(models.student), "--steps", "2", "--num-samples", "1"),
            *("--evaluator", str(models.evaluator)),
        ],
    }
    with pytest.raises(SystemExit) as stop:
        main.main([command, *arguments[command], "--device", "cpu"])
    assert stop.value.code == 2
    err = capsys.readouterr().err.splitlines()[-1]
    assert err.startswith("idlm: error: the GPU ran out of memory")
    assert option in err


@pytest.mark.parametrize("run", [generate.run, evaluate.run])
def test_two_runs_with_one_output_refuse_each_other(
    run: Callable[[list[str]], None], tmp_path: Path
) -> None:
    from idlm.locks import alone_writing

    models, output = make_models(tmp_path / "models"), tmp_path / "out"
    arguments = ["--checkpoint", str(models.student), "--output", str(output)]
    said = rf"out is in use by process {os.getpid()} .*--output"
    with alone_writing(output, remedy=""), pytest.raises(UserError, match=said):
        run(arguments)
    assert not output.exists()


def test_every_program_that_fills_a_place_refuses_a_second_one_there(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Those whose work takes longer have a test of their own, above or in test_launch.py."""
    from idlm.evaluation import precision, recipes
    from idlm.locks import alone_in, alone_writing, held

    models = make_models(tmp_path / "models")
    place = tmp_path / "place"
    said = rf"place is in use by process {os.getpid()} "
    with alone_writing(place, remedy=""):
        with pytest.raises(UserError, match=said):
            export.run(["--checkpoint", str(models.student), "--output", str(place)])
        with pytest.raises(SystemExit):
            recipes.main(["--output", str(place)])
        assert re.search(said, capsys.readouterr().err)
    with held(tmp_path / ".place.study.lock", subject="", remedy=""), pytest.raises(SystemExit):
        precision.main(["--output", str(place)])
    assert re.search(said, capsys.readouterr().err)
    with alone_in([place], remedy=""):
        for run, argv in ((report.run, [str(models.student)]), (quickstart.run, [])):
            with pytest.raises(UserError, match=said):
                run([*argv, "--output", str(place)])
    assert [path.name for path in tmp_path.iterdir()] == ["models"]
