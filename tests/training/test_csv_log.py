"""A log that is gone on with in one folder: every step once."""

from __future__ import annotations

import csv
import errno
import multiprocessing
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from lightning.pytorch.cli import LightningArgumentParser

from idlm.cli.main import main
from idlm.errors import UserError
from idlm.locks import alone_in
from idlm.reliability.compare import losses
from idlm.reliability.tiny import Tiny, make_tiny
from idlm.training import DistillationModule
from idlm.training.checkpoint_io import CheckedCheckpointIO
from idlm.training.csv_log import ContinuedCSVLogger, ContinuedWriter

FIXED = "--trainer.logger.init_args.version=run"
Row = dict[str, str]


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Tiny:
    torch.set_num_threads(1)
    return make_tiny(tmp_path_factory.mktemp("tiny") / "tiny")


def rows(file: Path) -> list[Row]:
    with file.open(newline="") as lines:
        return list(csv.DictReader(lines))


def killed(command: list[str], place: type, method: str, call: int, *, after: bool = False) -> None:
    """Run a command in a process of its own that dies at a method's n-th call."""
    real: Callable[..., Any] = getattr(place, method)
    calls: list[int] = []

    def dying(self: Any, *args: Any, **kwargs: Any) -> Any:
        calls.append(1)
        value = real(self, *args, **kwargs) if after or len(calls) < call else None
        if len(calls) == call:
            os.kill(os.getpid(), signal.SIGKILL)
        return value

    def work() -> None:
        setattr(place, method, dying)
        main(command)

    process = multiprocessing.get_context("fork").Process(target=work)
    process.start()
    process.join(60)
    assert process.exitcode == -signal.SIGKILL


@pytest.mark.parametrize(
    ("place", "method", "call", "after"),
    [
        (DistillationModule, "update", 9, False),  # 8 rows, a checkpoint at 6: two are made again
        (CheckedCheckpointIO, "save_checkpoint", 2, True),  # a checkpoint, and nothing after it
    ],
    ids=["between checkpoints", "right after one"],
)
def test_a_run_killed_and_resumed_in_one_folder_has_logged_every_step_once(
    place: type, method: str, call: int, after: bool, tiny: Tiny, tmp_path: Path
) -> None:
    straight, again = tmp_path / "straight", tmp_path / "again"
    command = [*tiny.command(again, updates=5), FIXED]
    killed(command, place, method, call, after=after)
    log = again / "logs" / "run" / "metrics.csv"
    assert len(rows(log)) == (8 if method == "update" else 6)
    with log.open("a") as file:
        file.write("0,3.0,0.5")  # cut off in the middle of a row
    main([*command, f"--ckpt_path={again / 'checkpoints' / 'last.ckpt'}"])
    main([*tiny.command(straight, updates=5), FIXED])
    found = rows(log)
    steps = [int(row["step"]) for row in found if row["student_updates"]]
    assert steps == list(range(15))
    # the validations after updates 12 and 15 are rows of their own
    assert [int(row["step"]) for row in found if row["val/student_loss"]] == [11, 14]
    assert losses(log.parent) == losses(straight / "logs" / "run")
    assert [p.name for p in log.parent.glob("metrics*")] == ["metrics.csv"]


def test_a_run_that_starts_anew_keeps_the_log_of_the_former_one(tiny: Tiny, tmp_path: Path) -> None:
    command = [*tiny.command(tmp_path, updates=1), FIXED]
    main(command)
    folder = tmp_path / "logs" / "run"
    former = (folder / "metrics.csv").read_bytes()
    main(command)
    assert (folder / "metrics.previous.csv").read_bytes() == former
    assert [int(row["step"]) for row in rows(folder / "metrics.csv")][:3] == [0, 1, 2]


def test_a_validation_or_test_in_the_folder_of_a_training_leaves_its_files_alone(
    tiny: Tiny, tmp_path: Path
) -> None:
    fit = [*tiny.command(tmp_path, updates=1), FIXED]
    main(fit)
    folder = tmp_path / "logs" / "run"
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    assert {"metrics.csv", "config.yaml", "hparams.yaml"} <= before.keys()
    last = f"--ckpt_path={tmp_path / 'checkpoints' / 'last.ckpt'}"
    for command in ("validate", "validate", "test"):
        main([command, *fit[1:], last, "--model.init_args.micro_batch_size=1"])
    assert {name: (folder / name).read_bytes() for name in before} == before
    assert len(rows(folder / "validate.csv")) == 2
    assert float(rows(folder / "test.csv")[0]["val/student_loss"]) != 0
    assert {path.name for path in folder.iterdir()} - before.keys() == {"validate.csv", "test.csv"}


def test_a_validation_in_a_folder_of_its_own_writes_no_configuration(
    tiny: Tiny, tmp_path: Path
) -> None:
    fit = tiny.command(tmp_path, updates=1)
    main(fit)
    last = f"--ckpt_path={tmp_path / 'checkpoints' / 'last.ckpt'}"
    main(["validate", *fit[1:], last])
    assert (tmp_path / "logs" / "version_1" / "metrics.csv").exists()
    assert not (tmp_path / "logs" / "version_1" / "config.yaml").exists()


def test_the_configuration_is_replaced_whole_and_under_the_lock_of_the_run(
    tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    command = [*tiny.command(tmp_path, updates=1), FIXED]
    main(command)
    folder = tmp_path / "logs" / "run"
    before = (folder / "config.yaml").read_text()
    dump, seen = LightningArgumentParser.dump, []

    def full_disk(self: Any, *args: Any, **kwargs: Any) -> str:
        text = dump(self, *args, **kwargs)
        if "max_student_updates" not in text:  # a part, which it asks for first
            return text
        with pytest.raises(UserError, match="is in use by process"), alone_in([folder], remedy=""):
            pass
        seen.append(text)
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(LightningArgumentParser, "dump", full_disk)
    with pytest.raises(SystemExit) as stop:
        main([*command, "--model.init_args.warmup=3"])
    assert stop.value.code == 2
    assert "warmup: 3" in "".join(seen)
    assert (folder / "config.yaml").read_text() == before
    assert not list(folder.glob(".config*"))


def test_two_runs_that_share_only_the_folder_of_their_log_refuse_each_other(
    tiny: Tiny, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = [*tiny.command(tmp_path / "b", updates=1), FIXED]
    logs = tmp_path / "a" / "logs" / "run"
    with alone_in([logs], remedy=""), pytest.raises(SystemExit) as stop:
        main([*command, f"--trainer.logger.init_args.save_dir={tmp_path / 'a'}"])
    assert stop.value.code == 2
    assert f"{logs} is in use by process {os.getpid()}" in capsys.readouterr().err
    assert not (tmp_path / "b" / "checkpoints").exists()


def test_a_new_column_is_added_to_the_whole_file_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Lightning empties the file first: a kill would leave none of it."""
    writer = ContinuedWriter(str(tmp_path))
    file = tmp_path / "metrics.csv"
    writer.log_metrics({"a": 1.0}, 0)
    writer.save()
    before = file.read_bytes()
    with monkeypatch.context() as patch:

        def full(path: str, pieces: list[str]) -> None:
            raise OSError("no space")

        patch.setattr("idlm.training.csv_log.replace_file", full)
        writer.log_metrics({"b": 2.0}, 1)
        with pytest.raises(OSError, match="no space"):
            writer.save()
    assert file.read_bytes() == before
    other = ContinuedWriter(str(tmp_path))
    other.log_metrics({"b": 2.0}, 1)
    other.save()
    assert rows(file) == [{"a": "1.0", "b": "", "step": "0"}, {"a": "", "b": "2.0", "step": "1"}]


def test_a_damaged_line_is_dropped_and_a_file_that_is_no_table_refused(tmp_path: Path) -> None:
    file = tmp_path / "metrics.csv"
    file.write_bytes(b"step,a\n0,1.0\n\xff\xfe\n1,2\x00.0\n" + b"\x00" * 50)
    ContinuedWriter(str(tmp_path)).continue_from(2)
    assert rows(file) == [{"step": "0", "a": "1.0"}, {"step": "1", "a": "2.0"}]
    file.write_bytes(b"step,a\n" + b"9" * (csv.field_size_limit() + 1) + b",1\n")
    before = file.read_bytes()
    with pytest.raises(UserError, match=r"metrics\.csv is no log of a run \(.*\); move it away"):
        ContinuedWriter(str(tmp_path))
    assert file.read_bytes() == before


def test_a_row_that_is_logged_twice_is_written_once(tmp_path: Path) -> None:
    writer = ContinuedWriter(str(tmp_path))
    for row in ({"a": 1.0, "epoch": 0}, {"a": 1.0, "epoch": 0}, {"v": 2.0, "epoch": 0}):
        writer.log_metrics(row, 4)
    writer.log_metrics({"a": 1.0}, 5)
    writer.save()
    found = [(row["step"], row["a"], row["v"]) for row in rows(tmp_path / "metrics.csv")]
    assert found == [("4", "1.0", ""), ("4", "", "2.0"), ("5", "1.0", "")]


def test_a_logger_of_another_kind_stays_what_it_is(tmp_path: Path) -> None:
    from idlm.cli.fit_parts import checked_trainer

    class Own(L.pytorch.loggers.CSVLogger):
        pass

    own, plain = Own(tmp_path), L.pytorch.loggers.CSVLogger(tmp_path, "n", "v", "p", 7)
    trainer = L.Trainer(logger=[own, plain], accelerator="cpu", enable_progress_bar=False)
    first, second = checked_trainer(trainer, command="fit").loggers
    assert first is own
    assert isinstance(second, ContinuedCSVLogger)
    assert (second.log_dir, second.file) == (plain.log_dir, "metrics.csv")
    assert (second._prefix, second._flush_logs_every_n_steps) == ("p", 7)
