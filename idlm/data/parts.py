"""Large text files a part at a time, so that no file has to fit in memory."""

from __future__ import annotations

import codecs
import re
from collections.abc import Iterator
from pathlib import Path

from idlm.errors import UserError

CHARACTERS = 1 << 18
"""Of a part, at most; a file is one text up to twice as many."""
_BLOCK = 1 << 18  # bytes read at a time

# Where a cut changes no token of a byte-level BPE: behind a line break, or else before a blank,
# that stands alone between two visible characters, where GPT-2's rule cuts text into words anyway.
_LINE = re.compile(r"(?<=\S)\n(?=\S)")
_BLANK = re.compile(r"(?<=\S) (?=\S)")


class Part(str):
    """Text that goes on in the next one: packing puts no end-of-text token behind it."""

    __slots__ = ()


def read_parts(file: Path) -> Iterator[str]:
    """A text file as parts and a last piece of text; a file of ordinary size as one text.

    Raises:
        UserError: if it cannot be read, or is not UTF-8.
    """
    text = ""
    for piece in _decoded(file):
        text += piece
        while len(text) > 2 * CHARACTERS:
            cut = _cut(text)
            yield Part(text[:cut])
            text = text[cut:]
    yield text


def _cut(text: str) -> int:
    """The last good place among the first ``CHARACTERS``; without any, right behind them."""
    window = text[: CHARACTERS + 1]
    if lines := list(_LINE.finditer(window)):
        return lines[-1].end()
    if blanks := list(_BLANK.finditer(window)):
        return blanks[-1].start()
    return CHARACTERS


def _decoded(file: Path) -> Iterator[str]:
    offset, rest = 0, b""
    try:
        with open(file, "rb") as stream:
            while True:
                block = stream.read(_BLOCK)
                data = rest + block
                text, used = codecs.utf_8_decode(data, "strict", not block)
                yield text
                if not block:
                    return
                offset, rest = offset + used, data[used:]
    except UnicodeDecodeError as error:
        raise not_utf8(file, error, offset) from error
    except OSError as error:
        raise UserError(f"{str(file)!r} cannot be read: {error.strerror}") from error


def not_utf8(file: Path, error: UnicodeDecodeError, offset: int) -> UserError:
    """The sentence about a file, of which the bytes from ``offset`` on were decoded."""
    return UserError(
        f"{str(file)!r} is not UTF-8: byte 0x{error.object[error.start]:02x} at offset "
        f"{offset + error.start} ({error.reason}); convert it, for instance with "
        "iconv -t UTF-8"
    )
