"""Any dataset that the ``datasets`` library reads: on the hub, or a local folder of its files."""

from __future__ import annotations

import logging
import re
from collections.abc import Iterable, Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np

from idlm.data.corpora import Corpus, hash_files
from idlm.errors import UserError
from idlm.hub import cached_datasets_only, hub_reachable

log = logging.getLogger(__name__)

_PINNED = re.compile(r"[0-9a-f]{40}")
_HELD_OUT_PERCENT = 5


class HuggingFaceDataset(Corpus):
    """A text column of a dataset.

    The validation split is, in this order: the last ``validation_documents`` of the training
    split if that is given; ``validation_split`` if the dataset has it; else the last 5 % of the
    training split, which is said in the log and is not possible when streaming.

    Args:
        path: a dataset on the hub (``owner/name``) or a local folder of data files.
        config: name of the configuration, where there are several.
        revision: branch, tag or commit; a 40-digit commit makes the cache usable offline.
        data_files: glob patterns per split, where the repository's own layout is not enough.
        text_field: the column that holds the text.
        train_split: name of the training split.
        validation_split: name of the validation split.
        validation_documents: hold out this many documents at the end of the training split.
        total_documents: documents in the training split; needed to stream a held-out end.
        document_start: a regular expression: rows are joined into one document up to the next
            row that matches. None if a row is a document.
        streaming: read over the network as needed instead of downloading first.
    """

    def __init__(
        self,
        path: str,
        *,
        config: str | None = None,
        revision: str | None = None,
        data_files: dict[str, str] | None = None,
        text_field: str = "text",
        train_split: str = "train",
        validation_split: str = "validation",
        validation_documents: int | None = None,
        total_documents: int | None = None,
        document_start: str | None = None,
        streaming: bool = False,
    ) -> None:
        self.path = path
        self.config = config
        self.revision = revision
        self.data_files = data_files
        self.text_field = text_field
        self.train_split = train_split
        self.validation_split = validation_split
        self.validation_documents = validation_documents
        self.total_documents = total_documents
        self.document_start = re.compile(document_start) if document_start else None
        self.streaming = streaming
        self._split_names: list[str] | None = None

    def documents(self, split: str) -> Iterator[str]:
        """The documents of a split, in the order of the data files."""
        if self.streaming:
            for _, text in self.stream(split, seed=0, epoch=0):
                yield text
            return
        dataset = self._load(split=self._split(split))
        self._check_field(dataset.column_names)
        columns = dataset.select_columns([self.text_field]).iter(batch_size=1000)
        rows = ((None, text) for batch in columns for text in batch[self.text_field])
        for _, text in self._join(rows):
            yield text

    def content(self, split: str) -> str:
        """Everything that names the documents: the data's version, the split and the column."""
        options = (
            self.config,
            sorted((self.data_files or {}).items()),
            self.text_field,
            self.document_start.pattern if self.document_start else None,
        )
        return f"huggingface:{self.path}:{self._version()}:{self._held_out(split)}:{options}"

    def stream(
        self, split: str, *, seed: int, epoch: int, state: Any = None
    ) -> Iterator[tuple[Any, str]]:
        """One pass that can be continued, see ``Corpus.stream``.

        The data files are visited in an order drawn from ``(seed, epoch)``, unless the split is
        the beginning or the end of another one; documents keep their order within a file.
        """
        dataset = self._streaming_split(split)
        self._check_field(dataset.column_names)
        if (seed, epoch) != (0, 0):
            # From datasets 5 on this alone permutes the files, without a buffer of documents,
            # which would be lost at a restart. Zero would mean: in the order of their names.
            order = np.random.SeedSequence((seed, epoch)).generate_state(1)[0]
            dataset.set_epoch(1 + int(order) % (2**31 - 1))
        if state is not None:
            dataset.load_state_dict(state)

        def rows() -> Iterator[tuple[Any, str | None]]:
            remaining = iter(dataset)
            before = state
            while (row := next(remaining, None)) is not None:
                yield before, row[self.text_field]
                before = dataset.state_dict()

        return self._join(rows())

    # Loading

    def _load(self, *, split: str, streaming: bool = False) -> Any:
        import datasets

        return self._ask(
            lambda: datasets.load_dataset(
                self.path,
                name=self.config,
                data_files=self.data_files,
                revision=self.revision,
                split=split,
                streaming=streaming,
            )
        )

    def _streaming_split(self, split: str) -> Any:
        count = self.validation_documents
        if count is None:
            return self._load(split=self._split(split), streaming=True)
        if self.total_documents is None:
            raise UserError(
                f"streaming {self.path!r} with validation_documents={count} needs to know where "
                "the split ends; give total_documents in the recipe, or streaming: false"
            )
        dataset = self._load(split=self.train_split, streaming=True)
        kept = self.total_documents - count
        return dataset.take(kept) if split == "train" else dataset.skip(kept)

    def _split(self, split: str) -> str:
        """The split in the slicing language of ``datasets``."""
        name, part = self._held_out(split)
        return name + part

    def _held_out(self, split: str) -> tuple[str, str]:
        is_train = split == "train"
        if self.validation_documents is not None:
            count = self.validation_documents
            return self.train_split, f"[:-{count}]" if is_train else f"[-{count}:]"
        if self.validation_split in self._names():
            return (self.train_split if is_train else self.validation_split), ""
        if self.streaming:
            raise UserError(
                f"the dataset {self.path!r} has no split {self.validation_split!r} and a stream "
                f"cannot be cut; its splits are {', '.join(self._names())}: name one in a recipe "
                "(validation_split), or give --data.init_args.streaming false"
            )
        kept = 100 - _HELD_OUT_PERCENT
        log.info(
            "%s has no split %r: the last %d %% of %r are held out",
            self.path,
            self.validation_split,
            _HELD_OUT_PERCENT,
            self.train_split,
        )
        return self.train_split, f"[:{kept}%]" if is_train else f"[{kept}%:]"

    def _names(self) -> list[str]:
        if self.data_files:
            return list(self.data_files)
        if self._split_names is None:
            import datasets

            self._split_names = self._ask(
                lambda: datasets.get_dataset_split_names(
                    self.path, self.config, revision=self.revision
                )
            )
        return self._split_names

    def _version(self) -> str:
        """The commit on the hub, or the hash of a local folder's files."""
        import datasets

        folder = Path(self.path)
        if folder.is_dir():
            files = sorted(file for file in folder.rglob("*") if file.is_file())
            return hash_files([file for file in files if not file.name.startswith(".")], "")
        if self.revision and _PINNED.fullmatch(self.revision):
            return self.revision
        builder = self._ask(
            lambda: datasets.load_dataset_builder(
                self.path, name=self.config, data_files=self.data_files, revision=self.revision
            )
        )
        return str(builder.hash)

    def _ask(self, question: Any) -> Any:
        """Run a call into ``datasets`` and turn what it may raise into a sentence."""
        import datasets

        is_local = Path(self.path).is_dir()
        online = is_local or hub_reachable()
        try:
            with nullcontext() if online else cached_datasets_only():
                return question()
        except ConnectionError as error:
            raise UserError(
                f"the Hugging Face dataset {self._name()!r} could not be reached and is not "
                "cached on this machine; connect to the network, or give a local text, JSONL "
                "or dataset folder with --data.init_args.corpus PATH"
            ) from error
        except (
            datasets.exceptions.DatasetsError,
            FileNotFoundError,
            ValueError,
            RuntimeError,
        ) as error:
            reason = str(error).strip().split("\n")[0].rstrip(".")
            raise UserError(
                f"the dataset {self._name()!r} could not be loaded: {reason}; check the name, "
                "its configuration (NAME:CONFIG) and the revision"
            ) from error

    def _name(self) -> str:
        return f"{self.path}:{self.config}" if self.config else self.path

    # Rows

    def _check_field(self, columns: list[str] | None) -> None:
        if columns is not None and self.text_field not in columns:
            raise UserError(
                f"the dataset {self._name()!r} has no field {self.text_field!r}; its fields are "
                f"{', '.join(map(repr, columns))}; choose one with "
                "--data.init_args.text_field NAME"
            )

    def _join(self, rows: Iterable[tuple[Any, str | None]]) -> Iterator[tuple[Any, str]]:
        """Make documents of rows; a document's state is that of its first row."""
        state: Any = None
        parts: list[str] = []
        for row_state, text in rows:
            if text is not None and not isinstance(text, str):
                raise UserError(
                    f"the field {self.text_field!r} of {self._name()!r} holds a "
                    f"{type(text).__name__}, not a string; choose another with "
                    "--data.init_args.text_field NAME"
                )
            if self.document_start is None or self.document_start.search(text or ""):
                if document := _visible(parts):
                    yield state, document
                state, parts = row_state, []
            parts.append(text or "")
        if document := _visible(parts):
            yield state, document


def _visible(parts: list[str]) -> str:
    text = "".join(parts)
    return text if text.strip() else ""
