"""Write a trained evaluator as a Hugging Face folder with a model card, all or nothing."""

from __future__ import annotations

import copy
import math
import shlex
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import lightning as L
import torch
from transformers import PreTrainedModel
from transformers.utils import logging as transformers_logging

from idlm.errors import UserError
from idlm.models.export import replacing

if TYPE_CHECKING:
    from idlm.training.evaluator import EvaluatorModule

DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}

_CARD = """---
library_name: transformers
pipeline_tag: text-generation
---

# {name}

A small language model of the GPT-2 architecture, trained to score generated text: it is the
evaluator behind generative perplexities, not a text generator of its own merit. Perplexities
under it compare only with perplexities under it.

{facts}

## Data

{data}

## Metrics

Held-out text in packed rows; losses in nats per token.

{metrics}

## Command

```
{command}
```
"""


def model_card(
    name: str,
    *,
    facts: Mapping[str, str],
    data: str = "",
    metrics: Mapping[str, float] | None = None,
    command: str = "",
) -> str:
    """The text of README.md: what the model is, its data, its metrics, the command behind it."""
    rows = "\n".join(f"| {key} | {value:.6g} |" for key, value in (metrics or {}).items())
    return _CARD.format(
        name=name,
        facts="\n".join(f"- {key}: {value}" for key, value in facts.items()),
        data=data or "Not stated.",
        metrics=f"| metric | value |\n|---|---|\n{rows}" if rows else "Not measured.",
        command=command or "Not recorded.",
    )


def write_folder(
    model: PreTrainedModel, tokenizer: Any, folder: str | Path, *, dtype: str, card: str
) -> Path:
    """Write weights, config, tokenizer files and README.md, moved into place when complete.

    An interrupted call leaves the previous export as it was. The model itself is not changed.

    Args:
        model: any transformers model.
        tokenizer: its tokenizer.
        folder: where; an earlier export there is replaced, any other content is refused.
        dtype: of the stored weights, "float32", "float16" or "bfloat16".
        card: the text of README.md.

    Raises:
        UserError: if ``dtype`` is unknown or ``folder`` holds something else.
    """
    if dtype not in DTYPES:
        raise UserError(f"dtype={dtype!r} is unknown: use one of {', '.join(DTYPES)}")
    with replacing(folder) as staging:
        stored = copy.deepcopy(model)
        torch.nn.Module.to(stored, device="cpu", dtype=DTYPES[dtype])
        _save_quietly(stored, staging)
        tokenizer.save_pretrained(staging)
        (staging / "README.md").write_text(card, encoding="utf-8")
    return Path(folder).absolute()


class ExportBest(L.Callback):
    """Export the model each time the validation loss reaches a new low.

    An autoregressive model overfits a corpus of a few megabytes within minutes; the folder
    therefore always holds the best state so far, also when the run is killed. The best value
    is saved in checkpoints, so a resumed run does not overwrite a better export.

    Args:
        folder: where the Hugging Face folder goes.
        monitor: the logged value to minimise.
        dtype: of the stored weights.
        data: a sentence on the training text for the model card.
    """

    def __init__(
        self, folder: str, monitor: str = "val/loss", dtype: str = "float16", data: str = ""
    ) -> None:
        self.folder, self.monitor, self.dtype, self.data = folder, monitor, dtype, data
        self.best = math.inf

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Write the folder if this validation is the best one so far."""
        value = trainer.callback_metrics.get(self.monitor)
        if trainer.sanity_checking or value is None or not float(value) < self.best:
            return
        self.best = float(value)
        if trainer.is_global_zero:
            found = {k: float(v) for k, v in trainer.callback_metrics.items() if k[:4] == "val/"}
            cast("EvaluatorModule", pl_module).export(
                self.folder,
                dtype=self.dtype,
                data=self.data,
                metrics={**found, "updates": trainer.global_step},
                command=shlex.join(["idlm", *sys.argv[1:]]),
            )

    def state_dict(self) -> dict[str, Any]:
        """The best value, for checkpoints."""
        return {"best": self.best}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore the best value from a checkpoint."""
        self.best = state_dict["best"]


def _save_quietly(model: PreTrainedModel, folder: Path) -> None:
    """``save_pretrained`` without its progress bar, which would tear the training's own."""
    shown = transformers_logging.is_progress_bar_enabled()
    transformers_logging.disable_progress_bar()
    try:
        model.save_pretrained(folder)
    finally:
        if shown:
            transformers_logging.enable_progress_bar()
