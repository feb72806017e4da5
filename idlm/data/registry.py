"""From what a user typed as a corpus to the corpus."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path

from idlm.data.corpora import TEXT_SUFFIXES, Corpus, LocalText
from idlm.data.huggingface import HuggingFaceDataset
from idlm.data.recipes import corpus_of, load_recipe, nearest, recipe_file, recipe_names
from idlm.errors import UserError

_HUB_NAME = re.compile(r"[\w.-]+(/[\w.-]+)?(:[\w.-]+)?")
_DATASET_SUFFIXES = (".parquet", ".arrow")


def open_corpus(
    corpus: str,
    *,
    text_field: str | None = None,
    revision: str | None = None,
    streaming: bool = False,
) -> Corpus:
    """Open a recipe, a local file or folder, or a Hugging Face dataset, tried in this order.

    Args:
        corpus: a shipped recipe's name; a path ending in ``.yaml``, ``.txt`` or ``.jsonl``; a
            folder of text files or of data files; or ``owner/name`` or ``owner/name:config``
            on the hub. ``./name`` is always local.
        text_field: the field that holds the text; None for the recipe's, or ``text``.
        revision: of a dataset on the hub; None for the recipe's.
        streaming: read a Hugging Face dataset as needed instead of downloading it first.

    Raises:
        UserError: if there is no such thing, or an option does not apply to it.
    """
    if (file := recipe_file(corpus)) is not None:
        recipe = load_recipe(file)
        if recipe.source != "huggingface":
            _refuse(corpus, "revision", revision, "is not on the hub")
        if recipe.source == "python_docs":
            _refuse(corpus, "text_field", text_field, "has no fields")
        recipe = dataclasses.replace(
            recipe,
            text_field=text_field or recipe.text_field,
            revision=revision or recipe.revision,
        )
        return corpus_of(recipe, base=file.parent, streaming=streaming)
    path = Path(corpus).expanduser()
    if path.exists():
        _refuse(corpus, "revision", revision, "is not on the hub")
        if path.is_dir() and _holds_dataset(path):
            return HuggingFaceDataset(
                str(path), text_field=text_field or "text", streaming=streaming
            )
        return LocalText(path, text_field=text_field or "text")
    _check_hub_name(corpus)
    name, _, config = corpus.partition(":")
    return HuggingFaceDataset(
        name,
        config=config or None,
        revision=revision,
        text_field=text_field or "text",
        streaming=streaming,
    )


def _check_hub_name(corpus: str) -> None:
    """Refuse what can only be a misspelt path or recipe, before asking the hub for it."""
    recipes = recipe_names()
    is_path = corpus.startswith((".", "/", "~")) or corpus.endswith(TEXT_SUFFIXES)
    if is_path or not _HUB_NAME.fullmatch(corpus):
        raise UserError(
            f"there is no file or folder {corpus!r}; give a path that exists, a recipe "
            f"({', '.join(recipes)}) or a Hugging Face dataset as owner/name"
        )
    match = nearest(corpus, recipes)
    if "/" not in corpus and match:
        raise UserError(
            f"there is no corpus {corpus!r}; did you mean the recipe {match!r}? Recipes are "
            f"{', '.join(recipes)}; a Hugging Face dataset is written owner/name"
        )


def _holds_dataset(folder: Path) -> bool:
    return any(file.suffix in _DATASET_SUFFIXES for file in folder.rglob("*"))


def _refuse(corpus: str, option: str, value: str | None, reason: str) -> None:
    if value is not None:
        raise UserError(
            f"{option}={value!r} cannot be used here: the corpus {corpus!r} {reason}; "
            f"leave {option} out"
        )
