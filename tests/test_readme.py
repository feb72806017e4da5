"""The README's commands, links and Python do what it says."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest

import idlm
from idlm.cli.main import COMMANDS, main
from idlm.evaluation.protocol import read_protocol
from idlm.paths import BUNDLED_MODELS, repo_dir

README = (repo_dir() / "README.md").read_text(encoding="utf-8")


def blocks(language: str) -> list[str]:
    """The README's fenced blocks of one language, continuation lines joined."""
    found = re.findall(rf"```{language}\n(.*?)```", README, flags=re.DOTALL)
    return [block.replace("\\\n", " ") for block in found]


def commands() -> list[list[str]]:
    """Every command line of the README, comments dropped."""
    lines = [line for block in blocks("bash") for line in block.splitlines()]
    return [words for line in lines if (words := shlex.split(line, comments=True))]


def run(words: list[str], folder: Path) -> None:
    """Run a README command, with its output files in ``folder``; exit code 0 or SystemExit."""
    local = [str(folder / word) if word.endswith("samples.jsonl") else word for word in words]
    try:
        main(local[1:])
    except SystemExit as stop:
        if stop.code not in (0, None):
            pytest.fail(f"{words} ended with {stop.code}")


def test_every_command_of_the_readme_is_a_script_or_a_known_command() -> None:
    assert len(commands()) >= 6
    for words in commands():
        if words[0].startswith("scripts/"):
            assert (repo_dir() / words[0]).is_file(), words
        else:
            assert words[0] in ("idlm", "lightning"), words
            assert words[1] in COMMANDS, words


def test_every_file_the_readme_links_to_exists() -> None:
    links = [link for link in re.findall(r"\]\(([^)]+)\)", README) if "://" not in link]
    assert len(links) >= 6
    assert [link for link in links if not (repo_dir() / link).exists()] == []


def test_every_bundled_model_is_there() -> None:
    for name in BUNDLED_MODELS:
        assert (repo_dir() / "data" / "models" / name / "model.safetensors").is_file(), name


def test_generating_and_evaluating_work_as_the_readme_types_them(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    local = [words for words in commands() if "kuleshov-group/mdlm-owt" not in words]
    long = ("--likelihood", "--protocol")
    verbs = [
        words
        for words in local
        if words[1:2] in (["generate"], ["evaluate"]) and not {*long} & {*words}
    ]
    # the samples are made further below than they are first judged
    verbs.sort(key=lambda words: words[1], reverse=True)
    assert [words[1] for words in verbs] == [*["generate"] * 3, *["evaluate"] * 2]
    for words in verbs:
        run([*words, "--watch-delay", "0"] if "--watch" in words else words, tmp_path)
    assert (tmp_path / "samples.jsonl").stat().st_size > 1000
    printed = capsys.readouterr().out.lower()
    assert "entropy" in printed
    assert "self-bleu" in printed


def test_likelihood_protocol_and_report_work_as_the_readme_types_them(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(repo_dir())
    (likelihood,) = [words for words in commands() if "--likelihood" in words]
    run([*likelihood, "--rows", "1", "--draws", "2", "--length", "64"], tmp_path)
    assert "perplexity" in capsys.readouterr().out.lower()
    (protocol,) = [words for words in commands() if "--protocol" in words]
    # hours of work: what it would do is read, and nothing of it is asked for
    described = read_protocol(Path(protocol[protocol.index("--protocol") + 1]))
    assert {model.label for model in described.models} == {"student", "teacher"}
    (report,) = [words for words in commands() if words[1:2] == ["report"]]
    main([*report[1:-1], str(tmp_path / report[-1])])
    assert (tmp_path / report[-1] / "index.html").stat().st_size > 100_000


def test_the_owt_configuration_prints_anywhere(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    printing = [words for words in commands() if "--print_config" in words]
    assert len(printing) == 1
    monkeypatch.chdir(repo_dir())
    run(printing[0], Path())
    assert "kuleshov-group/mdlm-owt" in capsys.readouterr().out


def test_the_library_example_runs(capsys: pytest.CaptureFixture[str]) -> None:
    (example,) = blocks("python")
    exec(compile(example, "README.md", "exec"), {})
    assert "torch.Size([4, 1024]) 16 64.0" in capsys.readouterr().out


def test_the_bundled_student_makes_1024_tokens_in_16_calls_of_the_network() -> None:
    model = idlm.load("python-docs-student-16step")
    calls: list[tuple[int, ...]] = []
    # counted at the network itself, whatever the sampler says
    handle = model.backbone.register_forward_hook(lambda _, args, out: calls.append(args[0].shape))
    tokens = idlm.generate(model, 2, 1024, 16, seed=0).tokens
    handle.remove()
    assert [shape[1] for shape in calls] == [1024] * 16
    assert tokens.shape == (2, 1024)
    assert int(tokens.max()) < model.config.vocab_size - 1  # no mask is left
