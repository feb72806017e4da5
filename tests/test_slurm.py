"""The job script, with an ``srun`` and a ``scontrol`` that only take notes."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import time
from pathlib import Path

import pytest
import yaml

from idlm.cli.main import main
from idlm.paths import repo_dir

SCRIPT = repo_dir() / "scripts" / "slurm.sh"
BASH = shutil.which("bash") or "/bin/bash"
# like the real one, srun itself kills its tasks when it is told to end
SRUN = """#!/bin/bash
trap 'echo killed >>"$NOTES/signals"; exit 1' TERM
trap 'echo saved >>"$NOTES/signals"; exit 0' USR2
echo $$ >"$NOTES/pid"
printf '%s\\n' "$@" >"$NOTES/srun"
[ -z "${SRUN_RUNS:-}" ] || { sleep 20 >/dev/null 2>&1 & wait $!; }
exit "${SRUN_STATUS:-0}"
"""
SCONTROL = """#!/bin/bash
echo "$*" >"$NOTES/scontrol"
"""
# what reaches the tasks without srun noticing
SCANCEL = """#!/bin/bash
echo "$*" >"$NOTES/scancel"
kill -USR2 "$(cat "$NOTES/pid")"
"""


@pytest.fixture
def cluster(tmp_path: Path) -> dict[str, str]:
    """The environment of a job on two nodes with two tasks each."""
    tools, notes = tmp_path / "tools", tmp_path / "notes"
    tools.mkdir()
    notes.mkdir()
    for name, text in {"srun": SRUN, "scontrol": SCONTROL, "scancel": SCANCEL}.items():
        (tools / name).write_text(text)
        (tools / name).chmod(0o755)
    return {
        "PATH": f"{tools}:{os.environ['PATH']}",
        "NOTES": str(notes),
        "SLURM_JOB_ID": "77",
        "SLURM_NNODES": "2",
        "SLURM_NTASKS_PER_NODE": "2",
        "IDLM": "idlm",
        "RUN": str(tmp_path / "run"),
    }


def start(environment: dict[str, str], *arguments: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [BASH, str(SCRIPT), *arguments],
        env=environment,
        cwd=repo_dir(),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def test_bash_can_parse_the_job_script_and_sbatch_its_options() -> None:
    assert subprocess.run([BASH, "-n", str(SCRIPT)], check=False).returncode == 0
    lines = SCRIPT.read_text().splitlines()
    options = dict(
        line.split()[1].split("=", 1)
        for line in lines
        if line.startswith("#SBATCH --") and "=" in line
    )
    assert options["--signal"] == "B:USR1@300"
    assert options["--gpus-per-node"] == options["--ntasks-per-node"]
    # SLURM reads them only before the first command
    last = max(n for n, line in enumerate(lines) if line.startswith("#SBATCH"))
    assert all(line.startswith("#") for line in lines[:last])
    assert "#SBATCH --requeue" in lines


def test_the_job_runs_a_fit_that_the_program_accepts_and_continues(
    cluster: dict[str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    more = ("--model.init_args.lr=0.5", "--trainer.strategy=sharded")
    checkpoint = tmp_path / "run" / "checkpoints" / "last.ckpt"
    for exists in (False, True):
        if exists:
            checkpoint.parent.mkdir(parents=True)
            checkpoint.write_bytes(b"")
        job = start(cluster, "configs/tiny.yaml", *more)
        said, _ = job.communicate(timeout=30)
        assert job.returncode == 0
        assert ("continuing from" in said) == exists
        _, program, *arguments = (tmp_path / "notes" / "srun").read_text().splitlines()
        assert program == "idlm"
        assert ("--ckpt_path" in arguments) == exists
    with pytest.raises(SystemExit) as stop:
        main([*arguments, "--print_config"])
    assert stop.value.code == 0
    settings = yaml.safe_load(capsys.readouterr().out)
    assert settings["ckpt_path"] == str(checkpoint)
    assert settings["model"]["init_args"]["lr"] == 0.5
    trainer = settings["trainer"]
    assert (trainer["num_nodes"], int(trainer["devices"])) == (2, 2)
    assert trainer["strategy"] == "sharded"
    [plugin] = trainer["plugins"]
    assert plugin["init_args"]["auto_requeue"] is False
    assert not (tmp_path / "notes" / "scontrol").exists()


def test_without_a_name_the_run_is_the_folder_of_the_configuration(
    cluster: dict[str, str], tmp_path: Path
) -> None:
    del cluster["RUN"]
    (tmp_path / "runs" / "tiny" / "checkpoints").mkdir(parents=True)
    (tmp_path / "runs" / "tiny" / "checkpoints" / "last.ckpt").write_bytes(b"")
    job = subprocess.run(
        [BASH, str(SCRIPT), str(repo_dir() / "configs" / "tiny.yaml")],
        env=cluster,
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert "slurm: continuing from runs/tiny/checkpoints/last.ckpt" in job.stdout


def continued(cluster: dict[str, str], folder: Path, *arguments: str) -> str | None:
    """The checkpoint that a job in a folder gives to the program; no process waits for another."""
    job = subprocess.run(
        [BASH, str(SCRIPT), *arguments],
        env=cluster,
        cwd=folder,
        capture_output=True,
        text=True,
        check=False,
    )
    assert job.returncode == 0, job.stderr
    words = (Path(cluster["NOTES"]) / "srun").read_text().splitlines()
    found = words[words.index("--ckpt_path") + 1] if "--ckpt_path" in words else None
    assert (f"continuing from {found}" in job.stdout) == (found is not None)
    return found


def checkpoint(folder: Path, name: str = "last.ckpt") -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / name).write_bytes(b"")


def test_without_last_the_job_continues_from_the_one_before(
    cluster: dict[str, str], tmp_path: Path
) -> None:
    folder, config = tmp_path / "run" / "checkpoints", str(repo_dir() / "configs" / "tiny.yaml")
    checkpoint(folder, "last.previous.ckpt")
    assert continued(cluster, tmp_path, config) == str(folder / "last.previous.ckpt")
    checkpoint(folder)
    assert continued(cluster, tmp_path, config) == str(folder / "last.ckpt")


OPTION = "--trainer.default_root_dir"


@pytest.mark.parametrize(
    ("arguments", "folder"),
    [
        ((OPTION, "elsewhere"), "elsewhere"),
        ((f"{OPTION}=else where",), "else where"),
        ((OPTION, "no", "--seed_everything", "1", f"{OPTION}=yes"), "yes"),
        (("--config", "second.yaml"), "second"),
        (("--config=second.yaml", OPTION, "third"), "third"),
        ((OPTION, "third", "-c", "second.yaml"), "second"),
        (("--config", "quiet.yaml"), "runs/first"),
        (("--config", "trainer: {max_epochs: 1}"), "runs/first"),
        ((), "runs/first"),
    ],
)
def test_the_folder_of_the_run_is_what_the_line_says_last(
    cluster: dict[str, str], tmp_path: Path, arguments: tuple[str, ...], folder: str
) -> None:
    del cluster["RUN"]
    files = {
        "first.yaml": "trainer:\n  default_root_dir: runs/first # here\n",
        "second.yaml": '{\n "trainer": {\n  "default_root_dir": "second",\n  "devices": 1}}\n',
        "quiet.yaml": "trainer:\n    default_root_dir: null\n    max_epochs: 1\n",
    }
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    assert continued(cluster, tmp_path, "first.yaml", *arguments) is None
    checkpoint(tmp_path / "runs" / "first" / "checkpoints")
    checkpoint(tmp_path / folder / "checkpoints")
    found = continued(cluster, tmp_path, "first.yaml", *arguments)
    assert found == f"{folder}/checkpoints/last.ckpt"
    # RUN is above all
    checkpoint(tmp_path / "mine" / "checkpoints")
    found = continued(cluster | {"RUN": "mine"}, tmp_path, "first.yaml", *arguments)
    assert found == "mine/checkpoints/last.ckpt"


def test_checkpoints_that_stay_where_the_configuration_keeps_them_are_found(
    cluster: dict[str, str], tmp_path: Path
) -> None:
    """Or every job would begin anew."""
    del cluster["RUN"]
    config, kept = tmp_path / "mine.yaml", "runs/mine/checkpoints"
    config.write_text(f"trainer:\n  default_root_dir: runs/mine\n  dirpath: {kept}\n")
    checkpoint(tmp_path / kept)
    found = continued(cluster, tmp_path, str(config), OPTION, "elsewhere")
    assert found == f"{kept}/last.ckpt"
    checkpoint(tmp_path / "elsewhere" / "checkpoints")
    found = continued(cluster, tmp_path, str(config), OPTION, "elsewhere")
    assert found == "elsewhere/checkpoints/last.ckpt"


def test_folders_that_follow_the_run_are_looked_for_in_it_and_not_in_another_run(
    cluster: dict[str, str], tmp_path: Path
) -> None:
    del cluster["RUN"]
    shipped = str(repo_dir() / "configs" / "tiny.yaml")
    checkpoint(tmp_path / "runs" / "tiny" / "checkpoints")
    assert continued(cluster, tmp_path, shipped, OPTION, "else where") is None
    mine = tmp_path / "mine.yaml"
    mine.write_text("trainer:\n  dirpath: ${trainer.default_root_dir}/kept\n")
    checkpoint(tmp_path / "else where" / "kept")
    found = continued(cluster, tmp_path, str(mine), OPTION, "else where")
    assert found == "else where/kept/last.ckpt"


def test_when_time_is_up_the_run_gets_sigterm_and_the_job_is_queued_again(
    cluster: dict[str, str], tmp_path: Path
) -> None:
    job = start(cluster | {"SRUN_RUNS": "yes"}, "configs/tiny.yaml")
    while not (tmp_path / "notes" / "srun").exists():
        assert job.poll() is None
        time.sleep(0.02)
    job.send_signal(signal.SIGUSR1)
    said, _ = job.communicate(timeout=30)
    assert job.returncode == 0
    assert "time is up" in said
    assert (tmp_path / "notes" / "scancel").read_text() == "--signal=TERM 77.0\n"
    assert (tmp_path / "notes" / "signals").read_text() == "saved\n"
    assert (tmp_path / "notes" / "scontrol").read_text() == "requeue 77\n"


def test_a_run_that_fails_fails_the_job(cluster: dict[str, str], tmp_path: Path) -> None:
    job = start(cluster | {"SRUN_STATUS": "2"}, "configs/tiny.yaml")
    job.communicate(timeout=30)
    assert job.returncode == 2
    assert not (tmp_path / "notes" / "scontrol").exists()


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ((), "give a configuration first"),
        (("configs/none.yaml",), "not 'configs/none.yaml'"),
        (("configs/tiny.yaml",), "no SLURM job; submit it with sbatch scripts/slurm.sh"),
    ],
)
def test_what_cannot_run_is_refused_in_a_sentence(
    cluster: dict[str, str], arguments: tuple[str, ...], sentence: str
) -> None:
    del cluster["SLURM_JOB_ID"]
    job = start(cluster, *arguments)
    _, error = job.communicate(timeout=30)
    assert job.returncode == 2
    assert sentence in error
    assert error.count("\n") == 1
