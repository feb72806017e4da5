"""Train the small GPT-2 that judges generated text, and keep its best state on disk.

A generative perplexity needs a causal language model that knows the kind of text at hand.
``gpt2-large`` is that model for web text; for a small corpus such as python_docs this module
trains one, in the same Hugging Face layout, so that ``idlm evaluate --evaluator FOLDER``
takes either.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

import lightning as L
import torch
from lightning.pytorch.core.optimizer import LightningOptimizer
from lightning.pytorch.utilities.types import OptimizerLRSchedulerConfig
from torch import Tensor
from torch.optim.lr_scheduler import LambdaLR, LRScheduler
from torchmetrics import MeanMetric
from transformers import AutoTokenizer, GPT2Config, GPT2LMHeadModel

from idlm.errors import UserError, reason
from idlm.paths import resolve
from idlm.training.evaluator_export import ExportBest as ExportBest
from idlm.training.evaluator_export import model_card, write_folder
from idlm.training.muon import MuonAdamW
from idlm.training.settings import check_settings


def _open_tokenizer(name: str) -> Any:
    try:
        return AutoTokenizer.from_pretrained(resolve(name), trust_remote_code=False)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(
            f"tokenizer {name!r} could not be opened ({reason(error)}): give a folder that "
            "holds tokenizer.json, or a Hugging Face id that this machine can reach"
        ) from error


class EvaluatorModule(L.LightningModule):
    """A GPT-2-architecture language model trained on packed rows of tokens.

    One ``training_step`` is one optimiser update: the batch is split here into micro batches
    whose gradients add up to that of the whole batch. The run stops by itself after
    ``max_updates``, where the cosine has brought the learning rate to a tenth of ``lr``.

    Args:
        tokenizer: folder or Hugging Face id; the vocabulary is exactly ``len(tokenizer)``.
        n_layer, n_head, n_embd, n_positions: GPT-2's sizes; rows may be ``n_positions`` long.
        dropout: applied to embeddings and residuals. A 2 MB corpus wants 0.1 to 0.3.
        lr: peak learning rate of AdamW.
        muon_lr: peak learning rate of Muon on the block matrices; 0 leaves them to AdamW.
        warmup: updates of linear warm-up.
        weight_decay: on matrices only, not on biases and layer norms.
        max_updates: length of the run in updates.
        micro_batch_size: rows per forward pass; None takes the batch in one piece.
        clip: largest gradient norm; 0 turns clipping off.

    Raises:
        UserError: if the tokenizer cannot be opened or a size is impossible.
    """

    def __init__(
        self,
        tokenizer: str,
        n_layer: int = 4,
        n_head: int = 4,
        n_embd: int = 192,
        n_positions: int = 1024,
        dropout: float = 0.1,
        lr: float = 1e-3,
        muon_lr: float = 0.0,
        warmup: int = 100,
        weight_decay: float = 0.1,
        max_updates: int = 2000,
        micro_batch_size: int | None = None,
        clip: float = 1.0,
    ) -> None:
        super().__init__()
        for name, size in (
            *(("n_layer", n_layer), ("n_head", n_head)),
            *(("n_embd", n_embd), ("n_positions", n_positions)),
        ):
            if size < 1:
                raise UserError(f"{name} is {size}; it must be at least 1")
        if n_embd % n_head:
            raise UserError(f"n_embd={n_embd} must be a multiple of n_head={n_head}")
        if max_updates < 1 or (micro_batch_size is not None and micro_batch_size < 1):
            raise UserError(
                f"max_updates={max_updates} and micro_batch_size={micro_batch_size} must be 1 or "
                "more"
            )
        if not clip >= 0:  # NaN is neither
            raise UserError(f"clip is {clip}; it is a gradient norm, 0 turns clipping off")
        self.save_hyperparameters()
        check_settings(self.hparams)
        self.automatic_optimization = False
        self.tokenizer = _open_tokenizer(tokenizer)
        eos = self.tokenizer.eos_token_id
        if eos is None:
            raise UserError(f"tokenizer {tokenizer!r} has no eos token, which separates documents")
        self.model = GPT2LMHeadModel(
            GPT2Config(
                vocab_size=len(self.tokenizer),
                n_layer=n_layer,
                n_head=n_head,
                n_embd=n_embd,
                n_positions=n_positions,
                resid_pdrop=dropout,
                embd_pdrop=dropout,
                # SDPA's fast CPU and flash kernels take no attention dropout
                attn_pdrop=0.0,
                bos_token_id=eos,
                eos_token_id=eos,
            )
        )
        self.val_nll = MeanMetric()
        self._checked = False

    def forward(self, input_ids: Tensor) -> Tensor:
        """Logits ``[B, L, V]`` of the token after each position of ``input_ids`` ``[B, L]``."""
        return self.model(input_ids, use_cache=False).logits

    def nll(self, input_ids: Tensor) -> Tensor:
        """Mean negative log-likelihood in nats of tokens ``1..L-1`` of each row, a scalar.

        Rows are packed (documents joined with eos), so every token counts, eos included.

        Args:
            input_ids: ``[B, L]`` int64.
        """
        logits = self(input_ids)[:, :-1].float()
        return torch.nn.functional.cross_entropy(logits.flatten(0, 1), input_ids[:, 1:].flatten())

    def training_step(self, batch: Mapping[str, Tensor], batch_idx: int) -> None:
        """One update, by AdamW or with Muon, on ``batch["input_ids"]`` ``[B, L]``."""
        rows = batch["input_ids"]
        self._check(rows)
        optimizer = cast(LightningOptimizer, self.optimizers())
        optimizer.zero_grad()
        loss = torch.zeros((), device=self.device)
        for part in rows.split(self.hparams["micro_batch_size"] or len(rows)):
            share = self.nll(part) * (len(part) / len(rows))
            self.manual_backward(share)
            loss += share.detach()
        norm = torch.nn.utils.clip_grad_norm_(
            self.model.parameters(), self.hparams["clip"] or math.inf
        )
        if not bool(torch.isfinite(norm)) or not bool(torch.isfinite(loss)):
            samples = batch["index"].tolist() if "index" in batch else "unknown"
            raise FloatingPointError(
                f"evaluator update {self.global_step}: loss {float(loss)}, gradient norm "
                f"{float(norm)}, samples {samples}; no weight was changed; lower lr or look at "
                "these samples"
            )
        optimizer.step()
        self.log("train/loss", loss, prog_bar=True)
        self.log("train/grad_norm", norm)
        self.log("train/lr", optimizer.param_groups[0]["lr"])
        cast(LRScheduler, self.lr_schedulers()).step()
        if self.global_step >= self.hparams["max_updates"]:
            self.trainer.should_stop = True

    def validation_step(self, batch: Mapping[str, Tensor], batch_idx: int) -> None:
        """Add one batch to the mean of ``val/loss``, weighted by its tokens."""
        rows = batch["input_ids"]
        self._check(rows)
        for part in rows.split(self.hparams["micro_batch_size"] or len(rows)):
            self.val_nll.update(self.nll(part), weight=float(part[:, 1:].numel()))

    def on_validation_epoch_end(self) -> None:
        """Log ``val/loss`` (nats per token) and ``val/ppl``, its exponential."""
        loss = self.val_nll.compute()
        self.val_nll.reset()
        self.log("val/loss", loss, prog_bar=True)
        self.log("val/ppl", loss.exp(), prog_bar=True)

    def configure_optimizers(self) -> OptimizerLRSchedulerConfig:
        """AdamW, and Muon if asked: linear warm-up, a cosine down to a tenth of the peak."""
        if self.hparams["muon_lr"]:
            both = MuonAdamW(
                self.model,
                muon_lr=self.hparams["muon_lr"],
                lr=self.hparams["lr"],
                betas=(0.9, 0.95),
                weight_decay=self.hparams["weight_decay"],
            )
            return {"optimizer": both, "lr_scheduler": LambdaLR(both, self._rate)}
        matrices = [p for p in self.model.parameters() if p.ndim >= 2]
        vectors = [p for p in self.model.parameters() if p.ndim < 2]
        optimizer = torch.optim.AdamW(
            [
                {"params": matrices, "weight_decay": self.hparams["weight_decay"]},
                {"params": vectors, "weight_decay": 0.0},
            ],
            lr=self.hparams["lr"],
            betas=(0.9, 0.95),
        )
        schedule = LambdaLR(optimizer, self._rate)
        return {"optimizer": optimizer, "lr_scheduler": schedule}

    def _rate(self, update: int) -> float:
        warmup, last = self.hparams["warmup"], self.hparams["max_updates"]
        if update < warmup:
            return (update + 1) / warmup
        done = min(1.0, (update - warmup) / max(1, last - warmup))
        return 0.1 + 0.9 * 0.5 * (1 + math.cos(math.pi * done))

    def _check(self, rows: Tensor) -> None:
        """Refuse rows that do not fit, once: later batches come from the same data set."""
        if self._checked:
            return
        if not 2 <= rows.shape[1] <= self.hparams["n_positions"]:
            raise UserError(
                f"rows of {rows.shape[1]} tokens do not fit: n_positions is "
                f"{self.hparams['n_positions']}; pack rows of 2 to n_positions tokens"
            )
        if int(rows.max()) >= len(self.tokenizer):
            raise UserError(
                f"the data holds token {int(rows.max())} but tokenizer "
                f"{self.hparams['tokenizer']!r} has {len(self.tokenizer)}: "
                "give the data and the model the same tokenizer"
            )
        self._checked = True

    def export(
        self,
        folder: str | Path,
        *,
        dtype: str = "float32",
        data: str = "",
        metrics: Mapping[str, float] | None = None,
        command: str = "",
    ) -> Path:
        """Write a Hugging Face folder: weights, config, tokenizer and a model card, atomically.

        Args:
            folder: where; an earlier export there is replaced, any other content is refused.
            dtype: of the stored weights, "float32", "float16" or "bfloat16".
            data: a sentence on the training text, for the card.
            metrics: name to value, for the card.
            command: what produced the weights, for the card.

        Raises:
            UserError: if ``dtype`` is unknown or ``folder`` holds something else.
        """
        config, options = self.model.config, self.hparams
        size = sum(p.numel() for p in self.model.parameters())
        facts = {
            "size": f"{size:,} parameters, stored as {dtype}",
            "shape": f"{config.n_layer} layers of {config.n_embd}, {config.n_head} heads, "
            f"{config.n_positions} positions, vocabulary {config.vocab_size}",
            "tokenizer": options["tokenizer"],
            "training": f"{self.global_step} updates, lr {options['lr']:g}, "
            f"dropout {options['dropout']:g}, weight decay {options['weight_decay']:g}",
        }
        card = model_card(
            Path(folder).name, facts=facts, data=data, metrics=metrics, command=command
        )
        return write_folder(self.model, self.tokenizer, folder, dtype=dtype, card=card)
