from __future__ import annotations

import io
import re
import time

import pytest
import torch
from rich.console import Console

import idlm
from idlm.cli import generate, watch
from idlm.cli.watch import Pieces, Watch, printable
from idlm.models import decode, load_tokenizer
from idlm.sampling import StepState
from tests.tiny_models import LENGTH, Folders, make_models

# Letters of two, three and four bytes, and a sequence of joined signs.
MULTIBYTE = "naïve — “quoted” 日本語 🙂 👩‍👩‍👧 x"
ESCAPE = "\x1b"


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Folders:
    return make_models(tmp_path_factory.mktemp("models"))


@pytest.fixture(scope="module")
def tokenizer(folders):
    return load_tokenizer(folders.student)


@pytest.fixture(scope="module")
def model(folders):
    return idlm.load(folders.student)


def terminal(width: int = 60, height: int = 12, *, real: bool = True) -> Console:
    colours = "standard" if real else None
    return Console(
        file=io.StringIO(), width=width, height=height, force_terminal=real, color_system=colours
    )


def drawn(console: Console) -> str:
    return console.file.getvalue()


def watched(model, words, console, *, samples=1, length=LENGTH, steps=4, **settings):
    """Frames of a generation, and what it returned."""
    frames = []
    with Watch(words, model.process.mask_id, delay=0.0, console=console) as draw:

        def step(state):
            before = len(drawn(console))
            draw(state)
            frames.append(drawn(console)[before:])

        out = idlm.generate(model, samples, length, steps, seed=1, callback=step, **settings)
    return frames, out


def test_without_a_terminal_every_frame_is_plain_text_and_the_last_one_is_the_sample(
    model, tokenizer
):
    frames, out = watched(model, tokenizer, terminal(real=False), steps=4)
    assert len(frames) == 4
    assert ESCAPE not in "".join(frames)
    for number, frame in enumerate(frames):
        body, footer = frame.rstrip("\n").rsplit("\n", 1)
        masks = body.count("░")
        assert footer.startswith(f"step {number + 1}/4 | ")
        assert f" {LENGTH - masks}/{LENGTH} tokens " in footer
    # rich takes the trailing spaces of a line away
    strip = lambda text: [line.rstrip() for line in text.split("\n")]  # noqa: E731
    assert strip(body) == strip(printable(decode(tokenizer, out.tokens)[0]))
    assert footer.split(" | ")[1] == f"nfe {out.nfe}"


def test_tokens_just_written_add_up_to_the_whole(model, tokenizer):
    frames, _ = watched(model, tokenizer, terminal(real=False), steps=5)
    counts = [int(re.search(r"\(\+(\d+)\)", frame)[1]) for frame in frames]
    assert sum(counts) == LENGTH


def test_on_a_terminal_frames_are_redrawn_in_place_and_fresh_tokens_are_highlighted(
    model, tokenizer
):
    frames, _ = watched(model, tokenizer, terminal(), steps=4)
    assert "\x1b[1A" in frames[1]  # the cursor goes up over the first frame
    for frame in frames:
        fresh = int(re.search(r"\(\+(\d+)\)", frame)[1])
        assert ("\x1b[1;30;102m" in frame) == (fresh > 0)


@pytest.mark.parametrize(("width", "height"), [(60, 12), (20, 5), (10, 3), (200, 50)])
def test_a_frame_fits_the_terminal(model, tokenizer, width, height):
    console = terminal(width, height)
    frames, _ = watched(model, tokenizer, console, steps=4)
    plain = [re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]|\r", "", frame) for frame in frames]
    for frame in plain:
        lines = frame.split("\n")
        assert len(lines) <= height
        assert max(map(len, lines)) <= width


def test_a_sequence_longer_than_the_terminal_is_shown_where_something_happens(tokenizer):
    console = terminal(width=100, height=8)
    newline = tokenizer.encode("\n")[0]
    word = tokenizer.encode("return")[0]
    tokens = torch.full((1, 40), newline)
    tokens[0, 30] = word
    fresh = torch.zeros(1, 40, dtype=torch.bool)
    fresh[0, 30] = True
    with Watch(tokenizer, 9999, delay=0.0, console=console) as draw:
        draw(StepState(0, 1, tokens, fresh, 1, torch.tensor([0])))
    assert tokenizer.decode([word]) in drawn(console)
    assert "lines 30-35/40" in drawn(console)


def test_given_tokens_are_not_counted_and_stay_visible(model, tokenizer):
    prompt = "return the value of an object"
    size = len(tokenizer.encode(prompt))
    frames, _ = watched(
        model, tokenizer, terminal(200, real=False), prompt=prompt, tokenizer=tokenizer
    )
    for frame in frames:
        assert frame.startswith(prompt)
        assert f"/{LENGTH - size} tokens " in frame
    frames, _ = watched(
        model, tokenizer, terminal(200, real=False), length=None,
        infill="return[MASK:6] value", tokenizer=tokenizer,
    )  # fmt: skip
    for frame in frames:
        assert frame.startswith("return")
        assert "/6 tokens " in frame
        assert "value\nstep" in frame


def test_windows_are_numbered_and_the_whole_sequence_is_counted(model, tokenizer):
    length = 2 * LENGTH
    frames, _ = watched(
        model, tokenizer, terminal(200, real=False), length=length, stride=LENGTH // 2, steps=2
    )
    assert [frame.count("window") for frame in frames] == [0, 0, 1, 1, 1, 1]
    assert f" {length}/{length} tokens " in frames[-1]
    assert "window 3 | step 2/2" in frames[-1]


def test_the_first_sample_of_every_batch_is_shown(model, tokenizer):
    frames, _ = watched(
        model, tokenizer, terminal(200, real=False), samples=4, batch_size=2, steps=2
    )
    assert [frame.count("sample 2 |") for frame in frames] == [0, 0, 1, 1]


def test_characters_of_several_tokens_are_not_garbled(tokenizer):
    ids = tokenizer.encode(MULTIBYTE)
    assert any("\ufffd" in tokenizer.decode([token]) for token in ids)
    pieces = Pieces(tokenizer)
    assert "".join(pieces.texts(ids)) == tokenizer.decode(ids) == MULTIBYTE
    for every in range(2, 9):
        for first in range(every):
            row = [None if i % every == first else token for i, token in enumerate(ids)]
            shown = pieces.texts(row)
            assert "\ufffd" not in "".join(shown)
            assert all(shown[i] == "" for i, token in enumerate(row) if token is None)
            # no character appears that is not in the text
            assert set("".join(shown)) <= {*MULTIBYTE, "▒"}


def test_bytes_that_are_no_character_are_shown_as_the_decoder_shows_them(tokenizer):
    ids = tokenizer.encode("日")[:2] + tokenizer.encode(" return")
    assert "".join(Pieces(tokenizer).texts(ids)) == tokenizer.decode(ids)


def test_a_tokenizer_that_strips_leading_spaces_keeps_its_words_apart():
    class Words:
        words = ("the", "value", "of")

        def decode(self, tokens):
            return " ".join(self.words[token] for token in tokens)

    assert "".join(Pieces(Words()).texts([0, 1, 2])) == "the value of"


def test_control_characters_never_reach_the_terminal():
    assert printable("a\x1b[2Jb\r\n\tc\u2028é") == "a [2Jb \n c é"


def test_what_a_callback_does_to_a_state_changes_nothing(model):
    def spoil(state):
        state.tokens.zero_()
        state.revealed.zero_()

    plain = idlm.generate(model, 2, LENGTH, 4, seed=1)
    assert torch.equal(
        idlm.generate(model, 2, LENGTH, 4, seed=1, callback=spoil).tokens, plain.tokens
    )


def test_the_delay_is_kept_and_its_time_is_told(model, tokenizer):
    started = time.perf_counter()
    with Watch(tokenizer, model.process.mask_id, delay=0.05, console=terminal()) as seen:
        idlm.generate(model, 1, LENGTH, 4, seed=1, callback=seen)
    assert 4 * 0.05 <= seen.seconds <= time.perf_counter() - started


def test_the_command_shows_frames_on_stderr_and_prints_the_same_text(folders, capsys):
    arguments = ["--checkpoint", str(folders.student), "--steps", "4", "--seed", "3"]
    arguments += ["--device", "cpu", "--prompt", "return the"]
    generate.run([*arguments, "--watch", "--watch-delay", "0"])
    seen = capsys.readouterr()
    generate.run([*arguments, "--num-samples", "1", "--no-progress"])
    plain = capsys.readouterr()
    assert seen.out == plain.out
    assert [f"step {n}/4 | nfe {n}" in seen.err for n in range(1, 5)] == [True] * 4


def test_the_time_of_watching_is_not_counted_as_generating(folders, capsys, monkeypatch):
    class Slow(Watch):
        def __call__(self, state):
            super().__call__(state)
            self.seconds += 1000.0

    monkeypatch.setattr(watch, "Watch", Slow)
    arguments = ["--checkpoint", str(folders.student), "--steps", "1", "--seed", "3"]
    generate.run([*arguments, "--device", "cpu", "--watch", "--watch-delay", "0"])
    assert float(re.search(r"([-\d.]+) s, seed 3", capsys.readouterr().err)[1]) < -500
