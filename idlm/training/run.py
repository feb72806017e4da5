"""The frame of a training: what it refuses, what its checkpoints say, and how it is tested."""

from __future__ import annotations

import warnings
from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any

import lightning as L
from lightning.fabric.utilities.warnings import PossibleUserWarning
from torch import Tensor

from idlm.errors import UserError
from idlm.models import DiffusionLM
from idlm.models.config import FIELDS
from idlm.models.tokenizers import tokenizer_files
from idlm.training.sharding import check_strategy

Batch = dict[str, Tensor]

# fp16 would need its loss scale undone before clipping; updates of 1e-6 vanish in bf16 weights
PRECISIONS = ("32-true", "bf16-mixed", "64-true")
_LONGEST_SETTING = 200
_EVAL_MODE = r"Found \d+ module\(s\) in eval mode at the start of training"


def plain(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Settings as strings and numbers of Python, less those that are None.

    What is neither, a tensor for example, becomes the beginning of its text.
    """
    return {str(k): _plain(v) for k, v in settings.items() if v is not None}


def _plain(value: Any) -> Any:
    for kind in (bool, int, float, str):
        if isinstance(value, kind):
            return kind(value)  # NumPy's float64 is a float too, and would be stored as its own
    return " ".join(str(value).split())[:_LONGEST_SETTING]


class RunModule(L.LightningModule, ABC):
    """A training of one network, without its updates.

    Attributes:
        counters: what a checkpoint of this training holds beside Lightning's own entries.
        tokenizer: of the network, once the checkpoints are at hand.
        context: tokens that the network is made for; likewise.
    """

    counters: tuple[str, ...] = ()

    def __init__(self) -> None:
        super().__init__()
        self.tokenizer: Any = None
        self.context: int | None = None
        self._files: dict[str, str] | None = None
        self._filter: Any = None

    @abstractmethod
    def trained_network(self) -> DiffusionLM:
        """The network that the run is about, as it is now; it exists once configured."""

    @property
    @abstractmethod
    def finished(self) -> bool:
        """Whether every update that was asked for has been made."""

    def on_fit_start(self) -> None:
        """Refuse what would train, but wrongly, see :meth:`check_run`.

        Raises:
            UserError: as :meth:`check_run`, and for a strategy that shards otherwise.
        """
        self._expect_eval_mode()
        check_strategy(self.trainer.strategy, self.trainer.optimizers)
        config = getattr(self.trained_network(), "config", None)
        self.context = getattr(config, "model_length", None)
        data = getattr(self.trainer, "datamodule", None)
        self.check_run(str(self.trainer.precision), data)

    def check_run(self, precision: str, data: Any) -> None:
        """Refuse what would train, but wrongly.

        Args:
            precision: of the trainer.
            data: the data module, or None; its row length and tokenizer count, where it has them.

        Raises:
            UserError: for a precision that loses updates, rows longer than the context, or data
                in another vocabulary.
        """
        if precision not in PRECISIONS:
            raise UserError(
                f"precision is {precision!r}, which this training does not support; "
                f"choose one of {', '.join(PRECISIONS)} with --trainer.precision"
            )
        length: int = getattr(data, "length", 0)
        if self.context is not None and length > self.context:
            raise UserError(
                f"length={length} of the data is more than the {self.context} tokens that the "
                f"network is made for; give --data.init_args.length {self.context} or less"
            )
        theirs: Any = getattr(data, "tokenizer", None)
        if None in (theirs, self.tokenizer):
            return
        if theirs.get_vocab() != self.tokenizer.get_vocab():
            raise UserError(
                f"the data is cut into the {len(theirs)} tokens of {theirs.name_or_path!r} but the "
                f"model knows the {len(self.tokenizer)} of {self.tokenizer.name_or_path!r}; "
                "give both the same tokenizer, or leave out --data.init_args.tokenizer"
            )

    def data_conditions(self) -> dict[str, Any]:
        """Corpus, content hash, row length and batch size, for the model card."""
        data = getattr(self._trainer, "datamodule", None)
        if data is None:
            return {}
        packed = getattr(data, "metadata", {}).get("train", {})
        shown = {k: packed[k] for k in ("content", "documents", "tokens") if k in packed}
        settings = {k: getattr(data, k, None) for k in ("length", "global_batch_size")}
        return {"corpus": getattr(data, "corpus_name", "?"), **shown, **settings}

    def making(self) -> dict[str, Any]:
        """What a card says about the run beside its settings: the data, and the tokenizer's name.

        Strings, numbers and dicts of them only, because checkpoints are read as such.
        """
        made: dict[str, Any] = {"data": plain(self.data_conditions())}
        if self.tokenizer is not None:
            given = self.hparams.get("tokenizer") or self.hparams.get("teacher")
            made["tokenizer"] = str(given or self.tokenizer.name_or_path)
        return made

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Say what the network is and how it was made: the file alone can be loaded and exported.

        The tokenizer is kept whole, because the folder it is from need not stay where it is.
        """
        config = getattr(self.trained_network(), "config", None)
        if config is None:  # of continuous data: there is no folder to export it to
            return
        checkpoint["network"] = {name: getattr(config, name) for name in FIELDS}
        checkpoint["making"] = self.making()
        if self.tokenizer is not None:
            if self._files is None:  # the same at every save
                self._files = tokenizer_files(self.tokenizer)
            checkpoint["tokenizer"] = self._files

    def check_resumed(self, checkpoint: dict[str, Any]) -> None:
        """Refuse a checkpoint that another kind of training, or another program, wrote.

        Raises:
            UserError: if it lacks the counts that this training goes on from.
        """
        missing = [name for name in self.counters if name not in checkpoint]
        if missing:
            raise UserError(
                f"the checkpoint has no {' and no '.join(missing)}, so no {type(self).__name__} "
                "wrote it; give the .ckpt of a run of the same kind with --ckpt_path"
            )

    def _expect_eval_mode(self) -> None:
        """Have Lightning's warning of networks in eval mode ignored until training has started.

        Teacher and average are meant to be in it.
        """
        self._allow_warning()
        warnings.filterwarnings("ignore", message=_EVAL_MODE, category=PossibleUserWarning)
        self._filter = warnings.filters[0]

    def _allow_warning(self) -> None:
        """Put the filters back; those that came since stay, and modules of others are warned."""
        held: Any = warnings.filters
        if self._filter in held:
            held.remove(self._filter)
        self._filter = None

    def on_train_start(self) -> None:
        """A finished run that is resumed makes no further update."""
        self._allow_warning()
        if self.finished:
            self.trainer.should_stop = True

    def on_test_epoch_start(self) -> None:
        """Testing is validating: a corpus here has no third split."""
        self.on_validation_epoch_start()

    def test_step(self, batch: Batch, batch_idx: int) -> None:
        """As the validation step."""
        self.validation_step(batch, batch_idx)

    def on_test_epoch_end(self) -> None:
        """As at the end of a validation."""
        self.on_validation_epoch_end()
