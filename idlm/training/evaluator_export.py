"""Write a trained evaluator as a Hugging Face folder with a model card, all or nothing."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel
from transformers.utils import logging as transformers_logging

from idlm.errors import UserError
from idlm.models.export import replacing

DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}

_CARD = """---
library_name: transformers
pipeline_tag: text-generation
language: en
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


def _save_quietly(model: PreTrainedModel, folder: Path) -> None:
    """``save_pretrained`` without its progress bar, which would tear the training's own."""
    shown = transformers_logging.is_progress_bar_enabled()
    transformers_logging.disable_progress_bar()
    try:
        model.save_pretrained(folder)
    finally:
        if shown:
            transformers_logging.enable_progress_bar()
