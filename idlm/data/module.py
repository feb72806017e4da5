"""The Lightning data module: packed rows in, reproducible batches out.

Long because Lightning wants one object for splits, loaders and resuming; the work is elsewhere.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import lightning
import numpy as np
from lightning.pytorch.trainer.states import TrainerFn
from torch.utils.data import DataLoader
from transformers import PreTrainedTokenizerBase

from idlm.data import cache
from idlm.data.corpora import Corpus
from idlm.data.lasting import LastingLoader
from idlm.data.loaders import Batch, BatchPlan, EvaluationRows, ShardedInOrder, TrainingBatches
from idlm.data.registry import open_corpus
from idlm.data.resume import check_resumed
from idlm.data.rows import RowStore
from idlm.data.streaming import Position, RowStream, StreamedBatches
from idlm.data.tokenizer import tokenizer_hash
from idlm.errors import UserError
from idlm.models.tokenizers import load_tokenizer


class PackedDataModule(lightning.LightningDataModule):
    """Batches of packed text, the same on every topology and after every resume.

    Batches are ``{"input_ids": int64 [B, L], "index": int64 [B]}``. In training, batch ``k`` of
    the run is a pure function of ``(seed, k)``: each process takes its slice of the global batch,
    ``index`` is the running number of the sample, and the loader never ends. In validation and
    test, rows come once each in a fixed order, ``index`` is the row's number.

    The state in a checkpoint is what the training loop has taken, not what was prefetched, so a
    killed run continues at the next batch. One instance serves one run.

    Args:
        corpus: a recipe's name (``python_docs``), the path of a recipe (``.yaml``), of a
            ``.txt`` or ``.jsonl`` file or of a folder, or a Hugging Face dataset as ``owner/name``
            or ``owner/name:config``.
        tokenizer: a folder, a bundled model or a Hugging Face id; None for the recipe's.
        length: tokens in a row.
        global_batch_size: samples in a training batch over all processes.
        eval_batch_size: rows in an evaluation batch of one process.
        seed: decides the order of the training rows.
        cache_dir: where packed rows are kept; None for ``$IDLM_CACHE`` or ``~/.cache/idlm``.
        special_ends: a row is bos, ``length - 2`` tokens, eos (MDLM's rule for OpenWebText);
            None for the recipe's choice, which is False unless it says otherwise.
        streaming: pack training rows on the fly and store none.
        num_workers: processes for training that tokenise a stream, or load stored rows, for which
            0 is right on a local disk.
        max_eval_rows: evaluate on this many rows: evenly spaced over the split, or when streaming
            the first. 0 for no evaluation, None for all.
        text_field: the field that holds the text, in JSONL and Hugging Face datasets.
        revision: the revision of a Hugging Face dataset; None for the recipe's.
        shuffle_window: documents of a stream that are shuffled at a time, and held in memory; 0
            leaves the source's order. Stored rows are shuffled as a whole.

    Raises:
        UserError: for sizes below 1, or other numbers below 0.
    """

    def __init__(
        self,
        corpus: str,
        tokenizer: str | None = None,
        length: int = 1024,
        global_batch_size: int = 64,
        eval_batch_size: int = 8,
        seed: int = 0,
        cache_dir: str | None = None,
        special_ends: bool | None = None,
        streaming: bool = False,
        num_workers: int = 0,
        max_eval_rows: int | None = None,
        text_field: str | None = None,
        revision: str | None = None,
        shuffle_window: int = 1024,
    ) -> None:
        super().__init__()
        sizes = {
            "length": length,
            "global_batch_size": global_batch_size,
            "eval_batch_size": eval_batch_size,
        }
        for name, size in sizes.items():
            if size < 1:
                raise UserError(f"{name}={size} is not a positive number; give 1 or more")
        if seed < 0:
            raise UserError(f"seed={seed} is negative; give 0 or more")
        if max_eval_rows is not None and max_eval_rows < 0:
            raise UserError(
                f"max_eval_rows={max_eval_rows} is negative; give 0 for no evaluation, null for all"
            )
        for name, count in {"num_workers": num_workers, "shuffle_window": shuffle_window}.items():
            if count < 0:
                raise UserError(f"{name}={count} is negative; give 0 for none")
        self.corpus_name = corpus
        self.tokenizer_name = tokenizer
        self.length = length
        self.global_batch_size = global_batch_size
        self.eval_batch_size = eval_batch_size
        self.seed = seed
        self.cache_folder: Path = cache.cache_folder(cache_dir)
        self.special_ends = special_ends
        self.streaming = streaming
        self.num_workers = num_workers
        self.max_eval_rows = max_eval_rows
        self.text_field = text_field
        self.revision = revision
        self.shuffle_window = shuffle_window
        self.metadata: dict[str, dict[str, Any]] = {}
        """Conditions and packing report of each split that has been opened."""
        self._corpus: Corpus | None = None
        self._tokenizer: PreTrainedTokenizerBase | None = None
        self._rows: dict[str, np.ndarray] = {}
        self._stream: StreamedBatches | None = None
        self._position = Position()
        self._samples_taken = 0
        self._resumed: dict[str, Any] = {}

    @property
    def corpus(self) -> Corpus:
        """The source of the documents."""
        if self._corpus is None:
            self._corpus = open_corpus(
                self.corpus_name,
                text_field=self.text_field,
                revision=self.revision,
                streaming=self.streaming,
            )
        return self._corpus

    @property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        """The tokenizer itself; the mask id is ``len(tokenizer)``."""
        if self._tokenizer is None:
            name = self.tokenizer_name or self.corpus.tokenizer
            if name is None:
                raise UserError(
                    f"the corpus {self.corpus_name!r} names no tokenizer; give one with "
                    "--data.init_args.tokenizer, for instance gpt2"
                )
            self._tokenizer = load_tokenizer(name)
        return self._tokenizer

    # Lightning's life cycle

    def prepare_data(self) -> None:
        """Tokenise and pack what is not in the cache yet (one process of each node)."""
        # Evaluating on a large corpus must not pack its training split.
        is_fitting = self.trainer is None or self.trainer.state.fn == TrainerFn.FITTING
        if is_fitting and not self.streaming:
            self.rows("train")
        if self.max_eval_rows != 0:
            self.rows("validation")

    def train_dataloader(self) -> DataLoader[Batch]:
        """The endless loader, starting behind the last batch that training took.

        Raises:
            UserError: if the global batch cannot be shared out, or a resumed run differs.
        """
        rank, world = self._place()
        rows = None if self.streaming else self.rows("train")
        check_resumed(
            self._resumed,
            seed=self.seed,
            streaming=self.streaming,
            global_batch_size=self.global_batch_size,
            shuffle_window=self.shuffle_window,
            rows_key=self._stream_key() if rows is None else self.metadata["train"]["key"],
            corpus=self.corpus_name,
        )
        start = self._samples_taken // self.global_batch_size
        if rows is None:
            # its workers tokenise, and are replaced by themselves
            self._stream = StreamedBatches(
                self._row_stream(),
                global_batch_size=self.global_batch_size,
                start=start,
                position=self._position,
                rank=rank,
                world=world,
            )
            return DataLoader(self._stream, batch_size=None, pin_memory=self._on_gpu())
        plan = BatchPlan(len(rows), global_batch_size=self.global_batch_size, seed=self.seed)
        batches = TrainingBatches(rows, plan, start=start, rank=rank, world=world)
        return LastingLoader(batches, workers=self.num_workers, pin_memory=self._on_gpu())

    def val_dataloader(self) -> DataLoader[Batch] | list[Any]:
        """Every validation row once, the last batch possibly short; ``[]`` without evaluation."""
        if self.max_eval_rows == 0:
            return []
        rank, world = self._place()
        rows = self.evaluation_rows()
        if len(rows) < world:
            raise UserError(
                f"there are {len(rows)} evaluation rows of {self.length} tokens for {world} "
                "processes, and each needs one: give max_eval_rows=0 for no evaluation, more "
                "held-out text, or fewer processes"
            )
        return DataLoader(
            EvaluationRows(rows),
            batch_size=self.eval_batch_size,
            sampler=ShardedInOrder(len(rows), rank=rank, world=world),
            pin_memory=self._on_gpu(),
        )

    def test_dataloader(self) -> DataLoader[Batch] | list[Any]:
        """The validation rows: a corpus here has no third split."""
        return self.val_dataloader()

    def on_before_batch_transfer(self, batch: Batch, dataloader_idx: int) -> Batch:
        """Count a batch when the loop takes it; what was prefetched does not count.

        Lightning calls this hook between fetching a batch and moving it. It is on the CPU then,
        so reading its index costs no synchronisation.
        """
        if self.trainer is not None and self.trainer.training:
            number = int(batch["index"][0]) // self.global_batch_size
            self._samples_taken = (number + 1) * self.global_batch_size
            if self._stream is not None:
                self._position = self._stream.position_of(number + 1)
        return batch

    def state_dict(self) -> dict[str, Any]:
        """How far training is, and what must not change before it continues."""
        state: dict[str, Any] = {"samples_taken": self._samples_taken, "seed": self.seed}
        if self.streaming:
            state["position"] = dataclasses.asdict(self._position)
            state["shuffle_window"] = self.shuffle_window
            state["rows"] = self._stream_key()
        elif "train" in self._rows:
            state["rows"] = self.metadata["train"]["key"]
        return state

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Continue behind the last batch of the saved run.

        Lightning calls it before it asks for the training loader; what does not fit is refused
        there, so that a checkpoint can still be evaluated on anything.
        """
        self._samples_taken = int(state_dict["samples_taken"])
        self._position = Position(**state_dict.get("position", {}))
        self._resumed = dict(state_dict)

    # Rows

    def rows(self, split: str) -> np.ndarray:
        """The packed rows ``[N, L]`` of ``"train"`` or ``"validation"``, as a memory map.

        They are taken from the cache or tokenised, packed and stored first. ``metadata`` then
        has the conditions and the packing report.

        Raises:
            UserError: for whatever is wrong with the corpus or the tokenizer.
        """
        if split not in self._rows:
            store = RowStore(
                self.corpus,
                self.corpus_name,
                self.tokenizer,
                length=self.length,
                special_ends=self._special_ends(),
                folder=self.cache_folder,
            )
            # When streaming, reading on after the rows that are wanted could take hours.
            first = self.max_eval_rows if self.streaming else None
            # one process of each machine reads the whole entry; the others would read the same
            verify = self.trainer is None or self.trainer.local_rank == 0
            found = store.open(split, first=first, verify=verify)
            self._rows[split], self.metadata[split] = found
        return self._rows[split]

    def evaluation_rows(self) -> np.ndarray:
        """At most ``max_eval_rows`` validation rows ``[N, L]``, evenly spaced over the split."""
        rows = self.rows("validation")
        wanted = len(rows) if self.max_eval_rows is None else self.max_eval_rows
        if wanted >= len(rows):
            return rows
        return rows[np.arange(wanted) * len(rows) // wanted]

    def _row_stream(self) -> RowStream:
        return RowStream(
            self.corpus,
            "train",
            self.tokenizer,
            length=self.length,
            special_ends=self._special_ends(),
            seed=self.seed,
            window=self.shuffle_window,
            workers=self.num_workers,
        )

    # Helpers

    def _stream_key(self) -> str:
        """What a position in a stream counts by; the text itself is known by its name alone."""
        return cache.cache_key(
            {
                "corpus": self.corpus_name,
                "revision": self.revision,
                "text_field": self.text_field,
                "tokenizer": tokenizer_hash(self.tokenizer),
                "length": self.length,
                "special_ends": self._special_ends(),
            }
        )

    def _special_ends(self) -> bool:
        return self.corpus.special_ends if self.special_ends is None else self.special_ends

    def _place(self) -> tuple[int, int]:
        """This process's rank and the number of processes.

        Raises:
            UserError: if the global batch cannot be shared out evenly.
        """
        if self.trainer is None:
            return 0, 1
        rank, world = self.trainer.global_rank, self.trainer.world_size
        if self.global_batch_size % world:
            raise UserError(
                f"global_batch_size={self.global_batch_size} cannot be shared by {world} "
                f"processes; use a multiple of {world}, such as "
                f"{-(-self.global_batch_size // world) * world}"
            )
        return rank, world

    def _on_gpu(self) -> bool:
        return self.trainer is not None and self.trainer.strategy.root_device.type == "cuda"
