"""Random models of a few thousand weights with one tokenizer, in the layout of the bundled ones."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import AutoTokenizer, GPT2Config, GPT2LMHeadModel

from idlm.data import train_bpe
from idlm.models import DiffusionConfig, DiffusionLM, export_folder

LENGTH = 32
_WORDS = "return the value of an object, or raise KeyError when it is not a mapping in this module"
Make = Callable[..., DiffusionLM]
SIZES = {
    "vocab_size": 13,
    "model_length": 12,
    "hidden_dim": 16,
    "cond_dim": 8,
    "n_blocks": 2,
    "n_heads": 2,
    "dropout": 0.0,
}
SENTENCES = [" ".join((_WORDS.split() * 3)[i : i + 9]) + "." for i in range(18)]


def random_denoiser(*, std: float = 0.2, seed: int = 0, **changes: Any) -> DiffusionLM:
    """A denoiser in eval mode; every weight random, so that each of them matters."""
    torch.manual_seed(seed)
    model = DiffusionLM(DiffusionConfig(**{**SIZES, **changes}))
    for name, weight in model.named_parameters():
        if ".latent." not in name:
            torch.nn.init.normal_(weight, mean=float("norm" in name), std=std)
    return model.eval()


@dataclass(frozen=True)
class Folders:
    """Checkpoint folders: two denoisers and a judge."""

    teacher: Path
    student: Path
    evaluator: Path


def make_models(root: Path, *, length: int = LENGTH) -> Folders:
    """Write all three under ``root``."""
    tokenizer = AutoTokenizer.from_pretrained(train_bpe(SENTENCES, 300, root / "tokenizer"))
    folders = Folders(root / "teacher", root / "student", root / "evaluator")
    torch.manual_seed(0)
    config = DiffusionConfig(
        vocab_size=len(tokenizer) + 1,
        model_length=length,
        hidden_dim=16,
        cond_dim=8,
        n_blocks=1,
        n_heads=2,
        dropout=0.0,
    )
    teacher = DiffusionLM(config)
    # the output layer starts at zero; a random one has tokens to prefer, so temperature matters
    torch.nn.init.normal_(teacher.backbone.output_layer.linear.weight)
    export_folder(teacher, folders.teacher, tokenizer=tokenizer)
    student = teacher.with_latent(latent_global=4, latent_position=4)
    export_folder(student, folders.student, tokenizer=tokenizer)
    judge = GPT2LMHeadModel(
        GPT2Config(
            vocab_size=len(tokenizer),
            n_layer=1,
            n_head=2,
            n_embd=16,
            n_positions=8 * length,
            bos_token_id=0,
            eos_token_id=0,
        )
    )
    judge.save_pretrained(folders.evaluator)
    tokenizer.save_pretrained(folders.evaluator)
    return folders
