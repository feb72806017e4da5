"""The corpus that every machine already has: the English prose inside CPython.

Two sources: the language reference as ``pydoc`` ships it (``pydoc_data.topics``) and the
docstrings of the standard library, read with ``ast`` so that nothing is imported or run. About
2 MB. **The text depends on the CPython version**, so every result obtained on it should carry
``fingerprint()``.
"""

from __future__ import annotations

import ast
import functools
import hashlib
import inspect
import os
import platform
import sysconfig
import warnings
from collections.abc import Iterator
from pathlib import Path

from idlm.errors import UserError

SPLITS = ("train", "validation")

MIN_CHARACTERS = 40
"""Shorter docstrings ("Return the name.") teach little and repeat each other."""

VALIDATION_ONE_IN = 20

_Documented = ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef

_SKIPPED_FOLDERS = frozenset(
    {
        "__pycache__",
        "_bundled",  # ensurepip's wheels
        "dist-packages",
        "idle_test",
        "pydoc_data",  # read as topics, not as source
        "site-packages",
        "test",
        "tests",
    }
)


def documents(split: str | None = None) -> Iterator[str]:
    """Yield the documents in a fixed order: topics by name, then docstrings by file and line.

    Exact duplicates and documents below ``MIN_CHARACTERS`` are dropped.

    Args:
        split: ``"train"``, ``"validation"``, or None for both in one sequence.

    Raises:
        ValueError: for any other ``split``.
    """
    if split is not None and split not in SPLITS:
        raise ValueError(f"split={split!r} is not one of {', '.join(SPLITS)} or None")
    for text in _all_documents():
        if split is None or split_of(text) == split:
            yield text


def split_of(text: str) -> str:
    """Which split a document belongs to: about one in twenty is validation.

    The choice is a hash of the text itself, so it needs no random state and a document stays
    on its side when a new CPython adds or removes others.
    """
    digest = hashlib.sha256(text.encode("utf-8")).digest()
    is_validation = int.from_bytes(digest[:8], "big") % VALIDATION_ONE_IN == 0
    return "validation" if is_validation else "train"


def fingerprint() -> str:
    """``"cpython-3.11.7-<sha256 of the text>"``: the condition to print beside every number."""
    digest = hashlib.sha256()
    for text in _all_documents():
        digest.update(text.encode("utf-8"))
        digest.update(b"\0")
    return f"cpython-{platform.python_version()}-{digest.hexdigest()}"


@functools.lru_cache(maxsize=1)
def _all_documents() -> tuple[str, ...]:
    seen: dict[str, None] = {}
    for text in _candidates():
        if len(text) >= MIN_CHARACTERS:
            seen.setdefault(text)
    return tuple(seen)


def _candidates() -> Iterator[str]:
    try:
        from pydoc_data import topics
    except ImportError as error:  # a few distributions package it separately
        raise UserError(
            "the corpus python_docs needs the module pydoc_data, which this Python lacks; "
            "install your distribution's full standard library or give another corpus"
        ) from error

    for name in sorted(topics.topics):
        yield inspect.cleandoc(topics.topics[name])
    for path in _source_files(Path(sysconfig.get_paths()["stdlib"])):
        yield from _docstrings(path)


def _source_files(root: Path) -> Iterator[Path]:
    found: list[Path] = []
    for folder, folders, names in os.walk(root):
        folders[:] = [name for name in folders if name not in _SKIPPED_FOLDERS]
        found += [Path(folder, name) for name in names if name.endswith(".py")]
    # Sorted by parts, not by string: the order must not depend on the path separator.
    yield from sorted(found, key=lambda path: path.relative_to(root).parts)


def _docstrings(path: Path) -> Iterator[str]:
    """Docstrings of a module, its classes and functions, in source order, cleaned."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # invalid escapes in old modules are not our news
        try:
            tree = ast.parse(path.read_bytes())
        except (SyntaxError, ValueError):
            return  # deliberately broken files that a distribution may ship
    for node in _definitions(tree):
        text = ast.get_docstring(node, clean=True)
        if text:
            # A lone surrogate escape (in docstrings about them) has no UTF-8 form.
            yield text.encode("utf-8", "replace").decode("utf-8").strip()


def _definitions(node: ast.AST) -> Iterator[_Documented]:
    """The module, classes and functions at or below a statement, in source order."""
    if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
        yield node
    # Only statements can hold definitions; walking the expressions too takes twice the time.
    for name in ("body", "handlers", "cases", "orelse", "finalbody"):
        below = getattr(node, name, None)
        if isinstance(below, list):
            for child in below:
                yield from _definitions(child)
