"""Recipes: a corpus written down in a small YAML file, ``data/*.yaml`` for those that ship."""

from __future__ import annotations

import difflib
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import cast

from idlm.data.corpora import VALIDATION_FRACTION, Corpus, LocalText, PythonDocs
from idlm.data.huggingface import HuggingFaceDataset
from idlm.errors import UserError
from idlm.paths import repo_dir

SOURCES = ("huggingface", "local", "python_docs")


@dataclass
class Recipe:
    """The keys of a recipe. Those of another ``source`` than the recipe's have no effect."""

    source: str = "huggingface"
    """``huggingface``, ``local`` or ``python_docs``."""
    description: str = ""
    homepage: str = ""
    license: str = ""
    path: str = ""
    """The dataset's name, or a file or folder, relative to the recipe."""
    text_field: str = "text"
    tokenizer: str | None = None
    """What the corpus is usually tokenised with."""
    special_ends: bool = False
    """Whether rows carry bos and eos at their ends, as MDLM's OpenWebText does."""

    config: str | None = None
    revision: str | None = None
    data_files: dict[str, str] = field(default_factory=dict)
    train_split: str = "train"
    validation_split: str = "validation"
    validation_documents: int | None = None
    total_documents: int | None = None
    document_start: str | None = None

    validation_path: str | None = None
    """``local``: a file or folder for validation, relative to the recipe."""
    validation_fraction: float = VALIDATION_FRACTION
    """``local``: else this share of the characters, from the end."""


def recipe_names() -> list[str]:
    """The recipes that ship with the project."""
    return sorted(file.stem for file in _folder().glob("*.yaml"))


def recipe_file(name: str) -> Path | None:
    """The file of a shipped recipe or of any path that ends in ``.yaml``; None for the rest.

    Raises:
        UserError: if a ``.yaml`` path does not exist.
    """
    if name.endswith((".yaml", ".yml")):
        path = Path(name).expanduser()
        if not path.is_file():
            raise UserError(
                f"there is no recipe {name!r}; shipped recipes are {', '.join(recipe_names())}"
            )
        return path
    return _folder() / f"{name}.yaml" if name in recipe_names() else None


def load_recipe(file: Path) -> Recipe:
    """Read and check a recipe.

    Raises:
        UserError: for YAML that does not parse, an unknown key (named with the nearest known
            one), a value of the wrong type or a missing path.
    """
    import yaml
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    known = [entry.name for entry in fields(Recipe)]
    try:
        raw = OmegaConf.load(file)
        if not OmegaConf.is_dict(raw):
            raise UserError(f"the recipe {str(file)!r} is not a mapping of keys to values")
        for key in raw:
            if key not in known:
                raise UserError(f"{str(file)!r}: unknown key {key!r}; {_suggest(str(key), known)}")
        merged = OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(Recipe), raw))
        recipe = cast(Recipe, merged)
    except (
        *(OmegaConfBaseException, yaml.YAMLError, OSError, UnicodeDecodeError),
        *(RecursionError, ValueError),
    ) as error:
        reason = " ".join(str(error).split("\n    full_key")[0].split())[:300]
        key = getattr(error, "full_key", None)
        raise UserError(
            f"the recipe {str(file)!r} cannot be read: {reason}{f' (at {key})' if key else ''}; "
            "correct it, data/README.md has the keys"
        ) from error
    if recipe.source not in SOURCES:
        raise UserError(
            f"{str(file)!r}: source is {recipe.source!r}; {_suggest(recipe.source, list(SOURCES))}"
        )
    if recipe.source != "python_docs" and not recipe.path:
        raise UserError(f"{str(file)!r}: a recipe of source {recipe.source!r} needs a path")
    return recipe


def corpus_of(recipe: Recipe, *, base: Path, streaming: bool = False) -> Corpus:
    """The corpus that a recipe describes.

    Args:
        recipe: a checked recipe.
        base: the folder that local paths are relative to.
        streaming: see ``HuggingFaceDataset``.
    """
    corpus: Corpus
    if recipe.source == "python_docs":
        corpus = PythonDocs()
    elif recipe.source == "local":
        corpus = LocalText(
            base / recipe.path,
            text_field=recipe.text_field,
            validation=None if recipe.validation_path is None else base / recipe.validation_path,
            validation_fraction=recipe.validation_fraction,
        )
    else:
        folder = base / recipe.path
        corpus = HuggingFaceDataset(
            str(folder) if folder.is_dir() else recipe.path,
            config=recipe.config,
            revision=recipe.revision,
            data_files=recipe.data_files or None,
            text_field=recipe.text_field,
            train_split=recipe.train_split,
            validation_split=recipe.validation_split,
            validation_documents=recipe.validation_documents,
            total_documents=recipe.total_documents,
            document_start=recipe.document_start,
            streaming=streaming,
        )
    corpus.tokenizer = recipe.tokenizer
    corpus.special_ends = recipe.special_ends
    return corpus


def nearest(word: str, known: list[str]) -> str | None:
    """The known word that ``word`` most looks like, or None if none does."""
    return next(iter(difflib.get_close_matches(word, known, n=1, cutoff=0.6)), None)


def _suggest(word: str, known: list[str]) -> str:
    match = nearest(word, known)
    return (f"did you mean {match!r}? " if match else "") + f"Known: {', '.join(known)}"


def _folder() -> Path:
    return repo_dir() / "data"
