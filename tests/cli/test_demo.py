"""``idlm demo``: a page on this machine, with nothing asked of any other."""

from __future__ import annotations

import re
import shlex
import signal
import socket
import subprocess
import sys
import urllib.request
from typing import Any

import pytest

import idlm
from idlm.cli import demo, main
from idlm.cli.demo_page import Writer, facts, markup, page, write
from idlm.cli.frames import MASKED, NEW, Frame
from idlm.models import load_tokenizer
from idlm.paths import repo_dir
from tests.tiny_models import LENGTH, Folders, make_models


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Folders:
    return make_models(tmp_path_factory.mktemp("models"))


@pytest.fixture(scope="module")
def writers(folders: Folders) -> list[Writer]:
    return [
        Writer(name, idlm.load(folder, device="cpu"), load_tokenizer(folder))
        for name, folder in (("student", folders.student), ("teacher", folders.teacher))
    ]


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as found:
        return int(found.getsockname()[1])


def handlers(writers: list[Writer]) -> list[Any]:
    """What the buttons Write and Stop call."""
    return [function.fn for function in page(writers).fns.values()]


def words(html: str) -> str:
    return re.sub("<[^>]*>", "", html)


def test_columns_write_one_after_the_other_and_stay(writers: list[Writer]) -> None:
    found = list(write(writers, "return", LENGTH, 1.0, 0, 2, 4))
    assert [bool(state[2]) for state in found] == [False] * 2 + [True] * 4
    assert found[1][:2] == found[-1][:2]
    assert found[-1][0].startswith("2 network calls · ")
    assert found[-1][2].startswith("4 network calls · ")
    assert all(words(state[1]).startswith("return") for state in found)


def test_a_length_beyond_a_context_is_cut_to_it(writers: list[Writer]) -> None:
    *_, last = write(writers, "", 10 * LENGTH, 1.0, 0, 1, 1)
    assert last[0].startswith(f"1 network call · {LENGTH} tokens per call")


def test_text_is_never_markup() -> None:
    frame = Frame([("<script>x</script>&", None), ("<b>", NEW), ("░", MASKED)], 1, 2, 0.1, None)
    html = markup(frame)
    assert "<script>" not in html
    assert "<b>" not in html
    assert "&lt;script&gt;x&lt;/script&gt;&amp;" in html


def test_facts_say_what_it_cost_and_the_entropy_of_a_whole_text() -> None:
    assert facts(Frame([], 16, 1024, 2.04, 5.553)) == (
        "16 network calls · 64 tokens per call · 2.0 s · entropy 5.55 nats"
    )
    assert "entropy" not in facts(Frame([], 1, 64, 2.0, None))


def test_a_mistake_on_the_page_is_told_on_the_page(writers: list[Writer]) -> None:
    import gradio

    answer, _ = handlers(writers)
    with pytest.raises(gradio.Error, match="prompt"):
        list(answer("return " * LENGTH, LENGTH, 1.0, 0, 2, 2))


def test_stop_ends_what_is_being_written_and_not_what_comes_after(writers: list[Writer]) -> None:
    answer, stop = handlers(writers)
    running = answer("", LENGTH, 1.0, 0, 8, 8)
    next(running)
    stop()
    assert list(running) == []
    assert len(list(answer("", LENGTH, 1.0, 0, 8, 8))) == 16


def test_the_page_asks_for_the_settings_of_every_column(writers: list[Writer]) -> None:
    labels = [getattr(block, "label", None) for block in page(writers).blocks.values()]
    assert {"student: steps", "teacher: steps", "length in tokens", "seed"} <= set(labels)


def test_the_page_is_served_until_interrupted(folders: Folders) -> None:
    port = free_port()
    command = "from idlm.cli.main import main; main()"
    arguments = ["demo", str(folders.student), "--device", "cpu", "--port", str(port)]
    process = subprocess.Popen(
        [sys.executable, "-c", command, *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        # a shell in the background has it ignored, which children would inherit
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    try:
        assert process.stdout is not None
        lines = iter(process.stdout.readline, "")
        said = next(line for line in lines if line.startswith("idlm demo:"))
        assert f"http://127.0.0.1:{port}" in said
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        with opener.open(f"http://127.0.0.1:{port}/", timeout=60) as answer:
            html = answer.read().decode()
        assert "Text in a few network calls" in html
        # what a browser would load from elsewhere; links that nobody follows are none
        assert not re.findall(r'<(?:script|link)[^>]+(?:src|href)="https?://(?!127\.)', html)
    finally:
        process.send_signal(signal.SIGINT)
        assert process.wait(timeout=60) == 0


def test_the_commands_of_the_page_are_understood() -> None:
    text = (repo_dir() / "docs" / "generation.md").read_text(encoding="utf-8")
    lines = re.findall(r"^idlm demo\b(.*)$", text, re.M)
    assert len(lines) == 2
    for line in lines:
        args = demo._parser().parse_args(shlex.split(line, comments=True))
        assert 1 <= len(args.checkpoints) <= 4


def refused(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    with pytest.raises(SystemExit) as stop:
        main.main(["demo", *arguments])
    assert stop.value.code == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    return said


def test_without_gradio_it_says_how_to_get_it(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, folders: Folders
) -> None:
    monkeypatch.setitem(sys.modules, "gradio", None)
    port = str(free_port())
    assert "'.[demo]'" in refused(capsys, str(folders.student), "--port", port)


def test_a_port_that_is_taken_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        assert f"--port {port} cannot be listened on" in refused(capsys, "--port", port)


@pytest.mark.parametrize(
    ("arguments", "part"),
    [
        (["--host", "no.such.host.invalid"], "cannot be listened on"),
        (["nowhere"], "nowhere"),
        (["--device", "tpu"], "'tpu'"),
    ],
)
def test_what_cannot_be_served_is_one_sentence(
    capsys: pytest.CaptureFixture[str], arguments: list[str], part: str
) -> None:
    assert part in refused(capsys, *arguments, "--port", str(free_port()))
