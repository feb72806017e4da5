"""A training of seconds, everything included: text, tokenizer, teacher and configuration."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

LENGTH = 32
_WORDS = "return the value of an object, or raise KeyError when it is not a mapping in this module"
_SENTENCES = [" ".join((_WORDS.split() * 3)[i : i + 9]) + "." for i in range(18)]


@dataclass(frozen=True)
class Tiny:
    """What a tiny distillation needs.

    Attributes:
        teacher: a checkpoint folder with its tokenizer.
        corpus: a text file.
    """

    teacher: Path
    corpus: Path

    def command(
        self, folder: Path, *, updates: int, save_every: int = 3, callbacks: Any = (), **model: Any
    ) -> list[str]:
        """Arguments of ``idlm`` for a distillation into a folder, after writing its configuration.

        Args:
            folder: of the run; made if need be.
            updates: student updates of the run; the fake model makes two for each.
            save_every: updates of either network between two checkpoints; the middle of a round
                is as good a moment as any.
            callbacks: more of them, as a configuration has them.
            model: arguments of the distillation module that differ.
        """
        folder.mkdir(parents=True, exist_ok=True)
        config = self._config(folder, updates, save_every, list(callbacks), model)
        path = folder / "fit.yaml"
        path.write_text(json.dumps(config, indent=1))  # JSON is YAML
        return ["fit", f"--config={path}"]

    def _config(
        self, folder: Path, updates: int, save_every: int, callbacks: list[Any], model: Any
    ) -> dict[str, Any]:
        last = {
            "dirpath": str(folder / "checkpoints"),
            "every_n_train_steps": save_every,
            "save_top_k": 0,
            "save_last": True,
            "enable_version_counter": False,
        }
        saving = {"class_path": "lightning.pytorch.callbacks.ModelCheckpoint", "init_args": last}
        logger = {"save_dir": str(folder), "name": "logs", "flush_logs_every_n_steps": 1}
        return {
            "seed_everything": 0,
            "trainer": {
                "accelerator": "cpu",
                "devices": 1,
                "precision": "32-true",
                "max_epochs": -1,
                "val_check_interval": 4 * save_every,
                "check_val_every_n_epoch": None,
                "num_sanity_val_steps": 0,
                "log_every_n_steps": 1,
                "enable_progress_bar": False,
                "enable_model_summary": False,
                "default_root_dir": str(folder),
                "logger": {
                    "class_path": "lightning.pytorch.loggers.CSVLogger",
                    "init_args": logger,
                },
                "callbacks": [saving, *callbacks],
            },
            "model": {
                "class_path": "idlm.training.DistillationModule",
                "init_args": {
                    "teacher": str(self.teacher),
                    "objective": "idlm.objectives.IDLM",
                    "fake_per_student": 2,
                    "max_student_updates": updates,
                    "lr": 1e-3,
                    "fake_lr": 1e-3,
                    "warmup": 10,
                    "dropout": 0.1,
                    "ema_decay": 0.9,
                    "micro_batch_size": 2,
                    "latent_global": 8,
                    "latent_position": 8,
                    **model,
                },
            },
            "data": {
                "class_path": "idlm.data.PackedDataModule",
                "init_args": {
                    "corpus": str(self.corpus),
                    "length": LENGTH,
                    "global_batch_size": 4,
                    "eval_batch_size": 4,
                    "max_eval_rows": 8,
                    "cache_dir": str(self.corpus.parent / "cache"),
                },
            },
        }


def make_tiny(root: Path, *, hidden: int = 32) -> Tiny:
    """Write text, tokenizer and a random teacher.

    Args:
        root: an empty folder.
        hidden: width of the teacher; a wider one makes checkpoints that take longer to write.
    """
    import torch
    from transformers import AutoTokenizer

    from idlm.data import train_bpe
    from idlm.models import DiffusionConfig, DiffusionLM, export_folder

    root.mkdir(parents=True, exist_ok=True)
    corpus = root / "corpus.txt"
    corpus.write_text("\n".join(_SENTENCES[i * 7 % 18] for i in range(400)) + "\n")
    made = train_bpe(_SENTENCES, 300, root / "tokenizer")
    tokenizer = AutoTokenizer.from_pretrained(made, trust_remote_code=False)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        teacher = DiffusionLM(
            DiffusionConfig(
                vocab_size=len(tokenizer) + 1,
                model_length=LENGTH,
                hidden_dim=hidden,
                cond_dim=16,
                n_blocks=1,
                n_heads=2,
                dropout=0.0,
            )
        )
        # the output layer starts at zero, and a uniform teacher would teach nothing
        torch.nn.init.normal_(teacher.backbone.output_layer.linear.weight, std=0.1)
    export_folder(teacher, root / "teacher", tokenizer=tokenizer)
    return Tiny(root / "teacher", corpus)
