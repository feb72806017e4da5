"""What the tables of bad input are made of: a case, the good files it starts from, and its run."""

from __future__ import annotations

import hashlib
import json
import shlex
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import yaml
from safetensors.torch import load_file, save_file

from idlm.data import train_bpe
from idlm.models import DiffusionConfig, DiffusionLM, export_folder, load_tokenizer
from idlm.paths import repo_dir
from idlm.samples import write_samples
from tests.tiny_models import LENGTH, SENTENCES, make_models
from tests.training.helpers import write_corpus

DIGITS = "9" * 5000
"""A whole number that Python refuses to read."""
DEEP = "[" * 100_000
SIZES: dict[str, Any] = {
    "model_length": LENGTH,
    "hidden_dim": 16,
    "cond_dim": 8,
    "n_blocks": 1,
    "n_heads": 2,
    "dropout": 0.0,
}


class World(dict[str, str]):
    """Good files by name; a case's command line names them in braces."""

    def make(self, root: Path) -> World:
        """Write them all under ``root``."""
        folders = make_models(root)
        tokenizer = load_tokenizer(folders.teacher)
        torch.manual_seed(0)
        uniform = DiffusionConfig(
            len(tokenizer), process="uniform", time_conditioning=True, **SIZES
        )
        export_folder(DiffusionLM(uniform), root / "uniform", tokenizer=tokenizer)
        small = load_tokenizer(train_bpe(SENTENCES, 280, root / "small_tokenizer"))
        other = DiffusionConfig(len(small) + 1, **SIZES)
        export_folder(DiffusionLM(other), root / "other", tokenizer=small)
        rows = [
            {"text": text, "tokens": [1, 2, 3], "seed": 0, "index": index}
            for index, text in enumerate(SENTENCES[:2])
        ]
        header = {"checkpoint": str(folders.student), "steps": 4}
        write_samples(root / "samples.jsonl", header, rows)
        undecoded = [{**row, "text": None, "tokens": [1, 900]} for row in rows]
        write_samples(root / "tokens.jsonl", {**header, "decoded": False}, undecoded)
        write_corpus(root / "corpus.txt")
        self.update(
            teacher=str(folders.teacher),
            student=str(folders.student),
            evaluator=str(folders.evaluator),
            configs=str(repo_dir() / "configs"),
            **{
                name: str(root / name)
                for name in ("uniform", "other", "small_tokenizer", "samples.jsonl", "corpus.txt")
            },
            tokens=str(root / "tokens.jsonl"),
            samples=str(root / "samples.jsonl"),
            corpus=str(root / "corpus.txt"),
        )
        return self


Make = Callable[[Path, World], None]


@dataclass(frozen=True)
class Case:
    """One thing that a user gets wrong.

    Attributes:
        name: what it is; the test's id.
        line: the command line. ``{name}`` is a good file, ``{here}`` what ``make`` wrote into.
        says: parts of the sentence: what was given, and what to do.
        make: writes the case's own input into an empty folder.
    """

    name: str
    line: str
    says: tuple[str, ...]
    make: Make | None = None

    def arguments(self, world: World, here: Path) -> list[str]:
        """The command line, its names put in after it was cut into words."""
        names = {**world, "here": str(here), "digits": DIGITS, "long": "x" * 5000}
        return [word.format(**names) for word in shlex.split(self.line)]


def tree(folder: Path) -> dict[str, str]:
    """Every file, link and folder under a folder, with the hash of what it holds."""
    found = {}
    for path in sorted(folder.rglob("*")):
        name = str(path.relative_to(folder))
        if path.is_symlink():
            found[name] = f"-> {path.readlink()}"
        elif path.is_file():
            found[name] = hashlib.sha256(path.read_bytes()).hexdigest()
        else:
            found[name] = "folder"
    return found


def text(name: str, content: str | bytes) -> Make:
    """A file of a case."""

    def make(here: Path, world: World) -> None:
        data = content if isinstance(content, bytes) else content.encode("utf-8", "surrogatepass")
        (here / name).write_bytes(data)

    return make


def folder(name: str) -> Make:
    """A folder where a file is expected."""
    return lambda here, world: (here / name).mkdir()


def lines(name: str, *rows: Any) -> Make:
    """A JSONL file."""
    return text(name, "".join(json.dumps(row) + "\n" for row in rows))


def samples(*rows: Any) -> Make:
    """A samples file with a good header."""
    return lines("s.jsonl", {"checkpoint": "x", "steps": 4}, *rows)


def copied(source: str, change: Callable[[Path], None]) -> Make:
    """A damaged copy of a good checkpoint, as ``{here}/model``."""

    def make(here: Path, world: World) -> None:
        change(Path(shutil.copytree(world[source], here / "model")))

    return make


def json_changed(file: str, **changes: Any) -> Callable[[Path], None]:
    """Set keys of a JSON file of a checkpoint; None removes one."""

    def change(model: Path) -> None:
        content = {**json.loads((model / file).read_text()), **changes}
        kept = {key: value for key, value in content.items() if value is not None}
        (model / file).write_text(json.dumps(kept))

    return change


def file_replaced(file: str, content: bytes) -> Callable[[Path], None]:
    """Other bytes in a file of a checkpoint."""
    return lambda model: (model / file).write_bytes(content) and None


def file_cut(file: str) -> Callable[[Path], None]:
    """The first half of a file of a checkpoint."""

    def change(model: Path) -> None:
        data = (model / file).read_bytes()
        (model / file).write_bytes(data[: len(data) // 2])

    return change


def weights_changed(change: Callable[[dict[str, torch.Tensor]], None]) -> Callable[[Path], None]:
    """Other tensors in a checkpoint."""

    def apply(model: Path) -> None:
        tensors = load_file(model / "model.safetensors")
        change(tensors)
        save_file(tensors, model / "model.safetensors", metadata={"format": "pt"})

    return apply


def config(change: Callable[[dict[str, Any]], None]) -> Make:
    """``configs/tiny.yaml`` with a change, as ``{here}/c.yaml``."""

    def make(here: Path, world: World) -> None:
        content = yaml.safe_load((repo_dir() / "configs" / "tiny.yaml").read_text())
        change(content)
        (here / "c.yaml").write_text(yaml.safe_dump(content))

    return make
