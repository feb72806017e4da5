"""``idlm generate --watch``: one sequence being denoised, drawn by the sampler's step callback."""

from __future__ import annotations

import time
import unicodedata
from collections.abc import Sequence
from functools import lru_cache
from types import TracebackType
from typing import TYPE_CHECKING, Any

from rich.console import Console, Group
from rich.live import Live
from rich.text import Text

if TYPE_CHECKING:
    from torch import Tensor

    from idlm.sampling import StepState

_SHADE, _SHADE_ASCII = "░", "#"
_HALF = "▒"
_BROKEN = "\N{REPLACEMENT CHARACTER}"
# A character of UTF-8 has at most four bytes, so no fifth token can be waiting for its end.
_LONGEST_CHARACTER = 4
_MASKED, _FRESH, _GIVEN = "bright_black", "bold black on bright_green", "dim"
# Lines of finished text that stay above the first position where something still happens.
_CONTEXT_LINES = 1


class Watch:
    """A step callback that draws the first sequence of every batch.

    On a terminal one frame is redrawn in place and fits the height; anywhere else every frame is
    printed in full, one after the other, without control codes.

    Args:
        tokenizer: of the checkpoint.
        blank: what stands where nothing is written yet, the mask id where there is one.
        delay: seconds each frame stays, so that a fast machine can be followed.
        console: where to draw; stderr by default, so that stdout keeps the text alone.

    Attributes:
        seconds: time spent in drawing and waiting, which is no cost of generating.
    """

    def __init__(
        self,
        tokenizer: Any,
        blank: int,
        *,
        delay: float = 0.1,
        console: Console | None = None,
    ) -> None:
        self.console = console or Console(stderr=True)
        self.seconds = 0.0
        self._pieces = Pieces(tokenizer)
        self._blank = blank
        self._delay = delay
        self._sample: int | None = None
        self._given: list[bool] = []
        self._before: list[int] = []
        self._live = Live(console=self.console, auto_refresh=False, transient=True)

    def __enter__(self) -> Watch:
        if self.console.is_terminal:
            self._live.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._live.stop()

    def __call__(self, state: StepState) -> None:
        """Draw one frame and leave it standing."""
        started = time.perf_counter()
        body, footer = self._frame(state)
        if self.console.is_terminal:
            body, where = self._cropped(body)
            line = Text(footer + where, style="bold", no_wrap=True, overflow="ellipsis")
            self._live.update(Group(body, line), refresh=True)
        else:
            self.console.print(Text(f"{body.plain}\n{footer}"), soft_wrap=True)
        time.sleep(self._delay)
        self.seconds += time.perf_counter() - started

    def _frame(self, state: StepState) -> tuple[Text, str]:
        row, changed = self._row(state.sample)
        tokens, fresh = state.tokens[row].tolist(), state.revealed[row].tolist()
        masked = [token == self._blank for token in tokens]
        if changed:
            self._given = [not (m or f) for m, f in zip(masked, fresh, strict=True)]
        else:  # a process without a mask redraws all, and most of it stays what it was
            fresh = [f and a != b for f, a, b in zip(fresh, tokens, self._before, strict=True)]
        self._before = tokens
        return self._body(tokens, masked, fresh), self._footer(state, masked, fresh)

    def _row(self, sample: Tensor) -> tuple[int, bool]:
        """The row to draw: one sample as long as it is there, else the batch's first, a new one."""
        numbers = sample.tolist()
        changed = self._sample not in numbers
        if changed:
            self._sample = numbers[0]
        return numbers.index(self._sample), changed

    def _body(self, tokens: list[int], masked: list[bool], fresh: list[bool]) -> Text:
        shade = _SHADE_ASCII if self.console.options.ascii_only else _SHADE
        pieces = self._pieces.texts(
            [None if m else token for token, m in zip(tokens, masked, strict=True)]
        )
        text = Text()
        for position, piece in enumerate(pieces):
            if masked[position]:
                text.append(shade, _MASKED)
            elif fresh[position]:
                text.append(piece, _FRESH)
            else:
                text.append(piece, _GIVEN if self._given[position] else None)
        return text

    def _footer(self, state: StepState, masked: list[bool], fresh: list[bool]) -> str:
        total = len(masked) - sum(self._given)
        parts = [
            f"step {state.step + 1}/{state.steps}",
            f"nfe {state.nfe}",
            f"{total - sum(masked)}/{total} tokens (+{sum(fresh)})",
        ]
        if state.window:
            parts.insert(0, f"window {state.window + 1}")
        if self._sample:
            parts.insert(0, f"sample {self._sample}")
        return " | ".join(parts)

    def _cropped(self, body: Text) -> tuple[Text, str]:
        """The lines that fit above the footer, and which they are."""
        lines = body.wrap(self.console, self.console.width)
        room = max(1, self.console.height - 2)  # one for the footer, one for the cursor
        if len(lines) <= room:
            return Text("\n").join(lines), ""
        busy = (n for n, line in enumerate(lines) if _unfinished(line))
        start = max(0, min(next(busy, 0) - _CONTEXT_LINES, len(lines) - room))
        shown = lines[start : start + room]
        return Text("\n").join(shown), f" | lines {start + 1}-{start + room}/{len(lines)}"


def _unfinished(line: Text) -> bool:
    return any(span.style in (_MASKED, _FRESH) for span in line.spans)


class Pieces:
    """The text of single tokens, as it reads inside the whole.

    A token may hold part of a character (byte-level BPE) or lose its leading space when decoded
    alone (SentencePiece, WordPiece). So each is decoded behind its predecessor, and tokens that
    share a character give it to the last of them.

    Args:
        tokenizer: of the checkpoint.
    """

    def __init__(self, tokenizer: Any) -> None:
        @lru_cache(maxsize=1 << 16)
        def decode(tokens: tuple[int, ...]) -> str:
            return tokenizer.decode(list(tokens)) if tokens else ""

        self._decode = decode

    def texts(self, row: Sequence[int | None]) -> list[str]:
        """One string for each position.

        Args:
            row: token ids ``[L]``, None where a position is masked.

        Returns:
            Printable strings ``[L]``, empty where masked. Joined they are the decoded text, but
            for control characters, which are spaces, and, while anything is masked, for characters
            that lack a byte, which are shades.
        """
        pieces = [""] * len(row)
        context: tuple[int, ...] = ()
        position = 0
        while position < len(row):
            if row[position] is None:
                context, position = (), position + 1
                continue
            group, text = self._character(context, row[position : position + _LONGEST_CHARACTER])
            position += len(group)
            pieces[position - 1] = printable(text)
            # After broken bytes there is no telling how the decoder would join the next ones.
            context = () if _BROKEN in text else group
        if None in row:
            pieces = [piece.replace(_BROKEN, _HALF) for piece in pieces]
        return pieces

    def _character(
        self, context: tuple[int, ...], ahead: Sequence[int | None]
    ) -> tuple[tuple[int, ...], str]:
        """The fewest tokens that end a character, and their text; one if none of them does."""
        known: tuple[int, ...] = ()
        for token in ahead:
            if token is None:
                break
            known += (token,)
        before = len(self._decode(context))
        for size in range(1, len(known) + 1):
            text = self._decode(context + known[:size])[before:]
            if not text.endswith(_BROKEN):
                return known[:size], text
        return known[:1], self._decode(context + known[:1])[before:]


def printable(text: str) -> str:
    """``text`` with a space for every control character but the newline."""
    return "".join(
        " " if unicodedata.category(c) in ("Cc", "Zl", "Zp") and c != "\n" else c for c in text
    )
