from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
import types

import pytest

from idlm import __version__
from idlm.cli import main as cli
from idlm.errors import UserError


@pytest.fixture
def command(monkeypatch: pytest.MonkeyPatch):
    """Put a function in the place of the `run` of `idlm generate`."""

    def install(run, name: str = "generate") -> None:
        module = types.ModuleType("fake_command")
        module.run = run
        monkeypatch.setitem(sys.modules, "fake_command", module)
        monkeypatch.setitem(cli.COMMANDS, name, ("fake_command", "help"))

    return install


def raising(error: BaseException):
    def run(argv: list[str]) -> None:
        raise error

    return run


def exit_code(*argv: str) -> object:
    with pytest.raises(SystemExit) as stop:
        cli.main(list(argv))
    return stop.value.code


def python(code: str, **env: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        env=os.environ | env,
        check=False,
        timeout=60,
    )


@pytest.mark.parametrize("argv", [[], ["-h"], ["--help"]])
def test_help_names_every_command(argv, capsys):
    cli.main(argv)
    out = capsys.readouterr().out
    assert all(f"  {name} " in out for name in cli.COMMANDS)
    assert all(len(line) <= 100 for line in out.splitlines())


@pytest.mark.parametrize("flag", ["-V", "--version"])
def test_version_is_the_packages(flag, capsys):
    cli.main([flag])
    assert capsys.readouterr().out == f"idlm {__version__}\n"


def test_help_version_and_mistakes_never_import_anything_heavy():
    heavy = ["torch", "lightning", "transformers", "numpy", "jsonargparse", "rich"]
    code = (
        "import sys\nfrom idlm.cli.main import main\nmain(['--help'])\nmain(['--version'])\n"
        "try:\n    main(['generat'])\nexcept SystemExit:\n    pass\n"
        f"print('loaded', [name for name in {heavy} if name in sys.modules])"
    )
    result = python(code)
    assert result.returncode == 0, result.stderr
    assert result.stdout.endswith("loaded []\n")


@pytest.mark.parametrize("name", sorted(cli.COMMANDS))
def test_every_command_in_the_table_has_a_module(name):
    module, line = cli.COMMANDS[name]
    assert importlib.util.find_spec(module) is not None
    assert line


def test_fit_validate_and_test_reach_lightning_with_their_own_name_first(command, tmp_path):
    seen, there = [], tmp_path / "a.yaml"
    there.touch()
    for name in cli.LIGHTNING_SUBCOMMANDS:
        command(seen.append, name)
        cli.main([name, "--config", str(there)])
    assert seen == [[name, "--config", str(there)] for name in cli.LIGHTNING_SUBCOMMANDS]


def test_other_commands_get_only_their_arguments(command):
    seen = []
    command(seen.append)
    cli.main(["generate", "--steps", "16"])
    assert seen == [["--steps", "16"]]


def test_arguments_default_to_those_of_the_process(command, monkeypatch):
    seen = []
    command(seen.append)
    monkeypatch.setattr(sys, "argv", ["lightning", "generate", "--seed", "1"])
    cli.main()
    assert seen == [["--seed", "1"]]


@pytest.mark.parametrize(
    ("typed", "meant"), [("generat", "generate"), ("Fit", "fit"), ("quick-start", "quickstart")]
)
def test_a_mistyped_command_is_answered_with_the_nearest_one(typed, meant, capsys):
    assert exit_code(typed) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.count("\n") == 1
    assert f"no command {typed!r}" in err
    assert f"`idlm {meant}`" in err


def test_a_command_like_no_other_is_answered_with_the_list(capsys):
    assert exit_code("xyzzy") == 2
    err = capsys.readouterr().err
    assert "did you mean" not in err
    assert "fit, validate, test" in err


def test_an_option_before_the_command_is_answered_with_its_place(capsys):
    assert exit_code("--config") == 2
    assert "`idlm COMMAND --config`" in capsys.readouterr().err


def test_a_user_error_is_one_line_and_exit_2(command, capsys, monkeypatch):
    monkeypatch.delenv("IDLM_DEBUG", raising=False)
    command(raising(UserError("steps is 0; it must be 1 or more; pass --steps 16")))
    assert exit_code("generate") == 2
    assert capsys.readouterr().err == (
        "idlm: error: steps is 0; it must be 1 or more; pass --steps 16\n"
    )


def test_idlm_debug_shows_where_a_user_error_came_from(command, capsys, monkeypatch):
    monkeypatch.setenv("IDLM_DEBUG", "1")
    command(raising(UserError("a sentence")))
    assert exit_code("generate") == 2
    err = capsys.readouterr().err
    assert "Traceback" in err
    assert err.endswith("idlm: error: a sentence\n")


def test_any_other_error_is_a_traceback_and_exit_1(command, capsys):
    command(raising(ZeroDivisionError("oops")))
    assert exit_code("generate") == 1
    err = capsys.readouterr().err
    assert "ZeroDivisionError: oops" in err
    assert "issue tracker" in err.splitlines()[-1]


def test_an_interrupt_is_one_line_and_exit_130(command, capsys):
    command(raising(KeyboardInterrupt()))
    assert exit_code("generate") == 130
    assert capsys.readouterr().err == "idlm: interrupted\n"


def test_lightnings_answer_to_an_interrupt_is_exit_130_too(command):
    def run(argv: list[str]) -> None:
        try:
            raise KeyboardInterrupt
        except KeyboardInterrupt:
            sys.exit(1)  # as lightning.pytorch.trainer.call does

    command(run)
    assert exit_code("generate") == 130


@pytest.mark.parametrize("code", [0, 2])
def test_exits_of_argument_parsers_pass_through(command, code):
    command(raising(SystemExit(code)))
    assert exit_code("generate") == code


def test_a_reader_that_stops_early_is_no_error():
    # The child fills the pipe long after its reader has gone.
    code = (
        "import sys, types\nfrom idlm.cli import main as cli\n"
        "module = types.ModuleType('fake')\n"
        "module.run = lambda argv: [print('x' * 1000) for _ in range(10000)]\n"
        "sys.modules['fake'] = module\ncli.COMMANDS['generate'] = ('fake', '')\n"
        "cli.main(['generate'])"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as child:
        child.stdout.readline()
        child.stdout.close()
        err = child.stderr.read()
        child.wait(timeout=60)
    assert child.returncode == 141
    assert err == b""


def test_a_broken_pipe_that_is_not_stdout_is_a_fault(command):
    command(raising(BrokenPipeError("worker died")))
    assert exit_code("generate") == 1
