"""Early refusals agree with LightningCLI about what exists, and come before it is loaded."""

from __future__ import annotations

import importlib
import re
import subprocess
import sys
from pathlib import Path

import pytest

from idlm.cli.early import ROOTS, check, help_text
from idlm.errors import UserError


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (("--config", "nowhere.yaml"), "--config is nowhere.yaml, where there is no file"),
        (("--config=nowhere.yaml",), "--config is nowhere.yaml, where there is no file"),
        (("-c", "nowhere.yaml"), "--config is nowhere.yaml, where there is no file"),
        (("--config", "."), r"--config is \., a folder; name a YAML file"),
        (("--modle.lr=3",), "--modle begins no option; did you mean --model"),
        (("--xyzzy",), "--xyzzy begins no option; there is no such option"),
    ],
)
def test_what_is_wrong_at_first_sight_is_refused(arguments: tuple[str, ...], sentence: str) -> None:
    with pytest.raises(UserError, match=sentence):
        check("fit", list(arguments))


def test_what_lightning_takes_is_let_through(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    there = tmp_path / "a.yaml"
    there.touch()
    for arguments in (
        ["--config", str(there), "--trainer.max_steps", "-1", "--print_config"],
        ["--config=~/a.yaml"],  # which no shell expands
        ["--config", "https://example.org/a.yaml"],
        ["--conf", "abbreviated.yaml", "--traine.max_steps", "3"],  # Lightning's to judge
        ["--trainer.callbacks+", "X", "--model.init_args.lr=3", "--data", "--config"],
        ["-h", "", "--", "word"],
    ):
        check("fit", arguments)


# one process for the three, since most of the time goes into imports
_EVERY_HELP = """
import contextlib
from idlm.cli.main import main
for command in ("fit", "validate", "test"):
    with contextlib.suppress(SystemExit):
        main([command, "--help=all"])
    print("<next>")
"""


def test_the_options_are_those_of_the_parser() -> None:
    """A new Lightning with another option shows here, not at a user's."""
    run = subprocess.run(
        [sys.executable, "-c", _EVERY_HELP], capture_output=True, text=True, check=True
    )
    *helps, rest = run.stdout.split("<next>")
    assert len(helps) == 3
    assert not rest.strip()
    for text in helps:
        words = re.sub(r"[,\[\]=]", " ", text).split()
        options = {word[2:].split(".")[0].rstrip("+") for word in words if word.startswith("--")}
        assert options - {""} <= set(ROOTS)
        assert {"trainer", "model", "data", "config", "ckpt_path"} <= options


@pytest.mark.parametrize("command", ["fit", "validate", "test"])
def test_the_short_help_names_what_there_is(command: str) -> None:
    text = help_text(command, ["--trainer.max_steps", "3", "-h"])
    assert text is not None
    assert help_text(command, ["--help=all"]) is None
    options = set(re.findall(r"--(\w+)", text)) - {"KEY"}
    assert options <= set(ROOTS)
    assert {"config", "print_config", "ckpt_path", "trainer", "model", "data"} <= options
    for name in re.findall(r"idlm(?:\.\w+)+", text):
        module, _, attribute = name.rpartition(".")
        assert hasattr(importlib.import_module(module), attribute), name
    assert max(map(len, text.splitlines())) <= 100


def test_lightning_is_not_loaded_for_them() -> None:
    code = (
        "import sys; from idlm.cli.main import main\n"
        "main(['fit', '--help'])\n"
        "try: main(['fit', '--config', 'nowhere.yaml'])\n"
        "except SystemExit as stop: print(stop.code, 'torch' in sys.modules)"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.split()[-2:] == ["2", "False"]
    assert run.stderr.count("\n") == 1
