"""A fresh ``idlm fit`` loses nothing of an earlier run, and writes where it is told to."""

from __future__ import annotations

import errno
import types
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
import yaml
from lightning.pytorch.callbacks import RichProgressBar

from idlm.cli.fit_parts import checked_trainer
from idlm.cli.main import main
from idlm.errors import UserError
from idlm.locks import RUN_LOCK, alone_in
from idlm.paths import repo_dir
from idlm.reliability.tiny import LENGTH, Tiny, make_tiny
from idlm.training.earlier import KeepEarlierCheckpoints, moved_aside

CONFIGS = repo_dir() / "configs"
BEST = {
    "class_path": "lightning.pytorch.callbacks.ModelCheckpoint",
    "init_args": {"filename": "best-{step}", "monitor": "val/student_loss"},
}
MOVED = "idlm: the checkpoints of an earlier run in {0} are now in {0}.{1}; --ckpt_path last"


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Tiny:
    torch.set_num_threads(1)
    return make_tiny(tmp_path_factory.mktemp("tiny") / "tiny")


def command(tiny: Tiny, folder: Path, updates: int = 1) -> list[str]:
    best = {**BEST, "init_args": {**BEST["init_args"], "dirpath": str(folder / "checkpoints")}}
    return tiny.command(folder, updates=updates, save_every=1, callbacks=[best])


@pytest.fixture(scope="module")
def ran(tiny: Tiny, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run that no test changes."""
    folder = tmp_path_factory.mktemp("ran") / "run"
    main(command(tiny, folder, 2))
    return folder


@pytest.fixture
def earlier(ran: Path, tmp_path: Path) -> Path:
    """A folder with the checkpoints of an earlier run, one of them a folder, and a note."""
    kept = tmp_path / "run" / "checkpoints"
    kept.mkdir(parents=True)
    for path in (ran / "checkpoints").glob("*.ckpt"):
        (kept / path.name).write_bytes(path.read_bytes())
    (kept / "sharded.ckpt").mkdir()
    (kept / "sharded.ckpt" / "part").write_text("a share")
    (kept / "note.txt").write_text("mine")
    return tmp_path / "run"


def contents(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def refused(*arguments: str) -> None:
    with pytest.raises(SystemExit) as stop:
        main(list(arguments))
    assert stop.value.code == 2


def test_a_run_that_starts_anew_moves_the_checkpoints_of_the_one_before_aside(
    tiny: Tiny, earlier: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(earlier.parent)
    kept = earlier / "checkpoints"
    before = contents(kept)
    assert {"last.ckpt", "last.previous.ckpt", "sharded.ckpt/part", "note.txt"} <= before.keys()
    assert any(name.startswith("best-") for name in before)
    note = before.pop("note.txt")
    main(command(tiny, earlier, 1))
    assert MOVED.format("run/checkpoints", 1) in capsys.readouterr().err
    assert contents(earlier / "checkpoints.1") == before
    assert (kept / "note.txt").read_bytes() == note
    assert torch.load(kept / "last.ckpt", weights_only=True)["student_updates"] == 1
    assert not (kept / "sharded.ckpt").exists()
    second = contents(kept)
    del second["note.txt"]
    main(command(tiny, earlier, 1))
    assert MOVED.format("run/checkpoints", 2) in capsys.readouterr().err
    assert contents(earlier / "checkpoints.1") == before
    assert contents(earlier / "checkpoints.2") == second
    assert not list(earlier.rglob(RUN_LOCK))


@pytest.mark.parametrize("given", ["last", "file"])
def test_a_run_that_is_continued_moves_nothing(
    given: str, tiny: Tiny, earlier: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    last = earlier / "checkpoints" / "last.ckpt"
    main([*command(tiny, earlier, 3), "--ckpt_path", str(last) if given == "file" else given])
    assert "earlier run" not in capsys.readouterr().err
    assert not (earlier / "checkpoints.1").exists()
    assert torch.load(last, weights_only=True)["student_updates"] == 3


@pytest.mark.parametrize(
    "option",
    [
        "--model.init_args.teacher=nowhere",
        "--model.init_args.no_such_key=1",
        "--trainer.precision=16-true",
        "--data.init_args.corpus=nowhere",
        "--trainer.max_epochs=many",
    ],
)
def test_a_run_that_is_refused_moves_nothing(option: str, tiny: Tiny, earlier: Path) -> None:
    before = contents(earlier)
    run = command(tiny, earlier)
    refused(*run, option)
    (earlier / "fit.yaml").unlink()
    assert contents(earlier) == before


def test_neither_a_printed_configuration_nor_a_second_run_moves_anything(
    tiny: Tiny, earlier: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = contents(earlier / "checkpoints")
    with pytest.raises(SystemExit) as stop:
        main([*command(tiny, earlier), "--print_config"])
    assert stop.value.code == 0
    with alone_in([earlier / "checkpoints"], remedy=""):
        refused(*command(tiny, earlier))
    assert "is in use by process" in capsys.readouterr().err
    assert contents(earlier / "checkpoints") == before
    assert not (earlier / "checkpoints.1").exists()


def test_checkpoints_that_cannot_be_moved_all_stay_where_they_were(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "checkpoints"
    folder.mkdir()
    for name in ("a.ckpt", "b.ckpt"):
        (folder / name).write_text(name)
    rename = Path.rename

    def second_fails(self: Path, target: Path) -> Path:
        if self.name == "b.ckpt":
            raise OSError(errno.EXDEV, "Invalid cross-device link")
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", second_fails)
    with pytest.raises(UserError, match=r"cannot be moved aside \(Invalid cross-device link\)"):
        moved_aside(folder)
    assert contents(tmp_path) == {"checkpoints/a.ckpt": b"a.ckpt", "checkpoints/b.ckpt": b"b.ckpt"}
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoints"]


def test_an_empty_folder_and_a_missing_one_get_no_folder_beside_them(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    assert moved_aside(tmp_path / "empty") is None
    assert moved_aside(tmp_path / "missing") is None
    assert [path.name for path in tmp_path.iterdir()] == ["empty"]


@pytest.mark.parametrize("main_process", [True, False])
def test_the_main_process_moves_and_the_others_wait_for_it(
    main_process: bool, tmp_path: Path
) -> None:
    folder = tmp_path / "checkpoints"
    folder.mkdir()
    (folder / "last.ckpt").write_text("earlier")
    moved_at_barrier: list[bool] = []
    # one folder of two callbacks, a callback without, and one that is far away
    folders = (str(folder), str(folder), None, "s3://bucket/run")
    trainer: Any = types.SimpleNamespace(
        ckpt_path=None,
        is_global_zero=main_process,
        checkpoint_callbacks=[types.SimpleNamespace(dirpath=path) for path in folders],
        strategy=types.SimpleNamespace(
            barrier=lambda: moved_at_barrier.append((tmp_path / "checkpoints.1").exists())
        ),
    )
    KeepEarlierCheckpoints().on_train_start(trainer, L.LightningModule())
    assert moved_at_barrier == [main_process]
    assert (folder / "last.ckpt").exists() != main_process


def printed(capsys: pytest.CaptureFixture[str], *arguments: str) -> dict[str, Any]:
    with pytest.raises(SystemExit) as stop:
        main(["fit", *arguments, "--print_config"])
    assert stop.value.code == 0
    trainer: dict[str, Any] = yaml.safe_load(capsys.readouterr().out)["trainer"]
    return trainer


def folders(trainer: dict[str, Any]) -> set[str]:
    """Where checkpoints and logs go, by a configuration that was printed."""
    made = [c.get("init_args", {}) for c in trainer["callbacks"] or []]
    return {c["dirpath"] for c in made if c.get("dirpath")} | {
        trainer["logger"]["init_args"]["save_dir"]
    }


@pytest.mark.parametrize("file", sorted(CONFIGS.glob("*.yaml")), ids=lambda file: file.stem)
def test_the_folders_of_every_config_follow_the_folder_of_the_run(
    file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shipped = yaml.safe_load(file.read_text())["trainer"]
    assert shipped["default_root_dir"].startswith("runs/")
    root = "my runs/a: b"
    moved = printed(capsys, f"--config={file}", f"--trainer.default_root_dir={root}")
    named = str(shipped).count("dirpath")
    assert folders(moved) == {root, *([f"{root}/checkpoints"] if named else [])}
    assert str(moved).count(root) == 2 + named


def test_what_the_line_says_last_is_followed_and_a_folder_it_names_is_kept(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tiny, second = f"--config={CONFIGS / 'tiny.yaml'}", tmp_path / "second.yaml"
    second.write_text("trainer:\n  default_root_dir: second\n")
    assert folders(printed(capsys, tiny)) == {"runs/tiny", "runs/tiny/checkpoints"}
    assert folders(printed(capsys, tiny, f"--config={second}")) == {"second", "second/checkpoints"}
    named = "--trainer.logger.init_args.save_dir=logs of mine"
    found = folders(printed(capsys, tiny, "--trainer.default_root_dir=third", named))
    assert found == {"logs of mine", "third/checkpoints"}


def test_a_run_in_a_folder_of_its_own_writes_nowhere_else_and_its_config_can_be_used_again(
    tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    main(
        [
            *("fit", f"--config={CONFIGS / 'tiny.yaml'}", "--trainer.default_root_dir=mine"),
            *(f"--model.init_args.teacher={tiny.teacher}", "--model.init_args.latent_global=4"),
            *("--model.init_args.max_student_updates=1", "--trainer.enable_progress_bar=false"),
            *(f"--data.init_args.corpus={tiny.corpus}", f"--data.init_args.length={LENGTH}"),
            f"--data.init_args.cache_dir={tmp_path / 'cache'}",
        ]
    )
    assert {path.name for path in tmp_path.iterdir()} == {"mine", "cache"}
    assert {path.name for path in Path("mine").iterdir()} == {"checkpoints", "export", "logs"}
    capsys.readouterr()
    [saved] = Path("mine").rglob("config.yaml")
    again = printed(capsys, f"--config={saved}")
    assert again["default_root_dir"] == "mine"
    assert folders(again) == {"mine", "mine/checkpoints"}


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["configs/tiny.yaml"], "write `idlm fit --config configs/tiny.yaml`"),
        (["--deterministic", "a.yml"], "write `idlm fit --config a.yml`"),
        (["--trainer.max_steps=3", "a.yml"], "write `idlm fit --config a.yml`"),
        (
            ["--model.init_args.lrr=1"],
            "did you mean 'lr'? `idlm fit --model.help idlm.training.DistillationModule` lists",
        ),
        (["--data.init_args.lenth=1"], "`idlm fit --data.help idlm.data.PackedDataModule` lists"),
        (
            ["--model.init_args.objective.init_args.x=1"],
            "--model idlm.training.DistillationModule --model.objective.help idlm.objectives.DMMD`",
        ),
        (["--model=idlm.training.Nope"], "`idlm fit --model.help CLASS` lists"),
        (["--trainer.max_stepz=1"], "did you mean 'max_steps'? `idlm fit --help=all` lists"),
    ],
)
def test_a_mistake_is_answered_with_the_help_that_lists_what_there_is(
    arguments: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    bare = any(word.endswith((".yaml", ".yml")) for word in arguments)
    refused("fit", *([] if bare else [f"--config={CONFIGS / 'tiny.yaml'}"]), *arguments)
    error = capsys.readouterr().err
    assert said in error
    assert error.count("\n") == 1


@pytest.mark.parametrize(
    "arguments",
    [
        ("--model.help", "idlm.training.DistillationModule"),
        ("--data.help", "idlm.data.PackedDataModule"),
        ("--model=idlm.training.DistillationModule", "--model.objective.help=idlm.objectives.DMMD"),
    ],
)
def test_the_help_that_is_named_works(
    arguments: tuple[str, ...], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as stop:
        main(["fit", *arguments])
    assert stop.value.code == 0
    assert {"lr", "length", "target_steps"} & set(capsys.readouterr().out.replace(".", " ").split())


def test_the_bar_of_a_run_without_a_last_epoch_names_none(tmp_path: Path) -> None:
    def described(epochs: int) -> str:
        trainer = L.Trainer(
            accelerator="cpu",
            max_epochs=epochs,
            logger=False,
            enable_checkpointing=False,
            default_root_dir=tmp_path,
            callbacks=[RichProgressBar(refresh_rate=7)],
        )
        bar = checked_trainer(trainer, command="fit").progress_bar_callback
        assert isinstance(bar, RichProgressBar)
        assert bar.refresh_rate == 7
        bar._trainer = trainer
        return bar._get_train_description(0).rstrip()

    assert described(-1) == "Epoch 0"
    assert described(3) == "Epoch 0/2"
