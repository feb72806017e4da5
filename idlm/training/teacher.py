"""Train a teacher by its NELBO: MDLM (arXiv 2406.07524), UDLM (2412.10193), your process's."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal, cast

import torch
from lightning.pytorch.utilities.types import OptimizerLRSchedulerConfig
from torch import Tensor
from torch.optim.lr_scheduler import LambdaLR
from torchmetrics import MeanMetric

from idlm.errors import UserError
from idlm.models import DiffusionConfig, DiffusionLM, export_folder, load, load_tokenizer
from idlm.models.cards import teacher_card
from idlm.objectives.base import Draw, LossSum
from idlm.objectives.mdlm import masked_nelbo
from idlm.objectives.nelbo import token_nelbo
from idlm.processes import Absorbing, process_class
from idlm.training.loop import Batch, Decay, UpdateModule, average_weights, lr_factor
from idlm.training.muon import MuonAdamW
from idlm.training.networks import reach, set_dropout
from idlm.training.settings import check_settings
from idlm.training.sharding import unsharded

# What describes a network, and MDLM's values (methods A.5) for a new one.
NEW: dict[str, Any] = {
    "process": "absorbing",
    "model_length": 1024,
    "hidden_dim": 768,
    "cond_dim": 128,
    "n_blocks": 12,
    "n_heads": 12,
    "dropout": 0.1,
    "time_conditioning": False,
    "schedule": "log-linear",
}
# What of it a network that exists can still change.
_CHANGEABLE = ("model_length", "dropout")
# What is leaner than a process's own nll_per_token at every position.
_NELBO = {Absorbing.name: masked_nelbo}


class TeacherModule(UpdateModule):
    """A masked or uniform diffusion language model trained by its NELBO.

    Args:
        tokenizer: folder or hub id; V is ``len(tokenizer) + 1`` for the absorbing process, the
            mask being the last, and ``len(tokenizer)`` for one without a mask.
        init: checkpoint to start from; it has its own sizes, and others are refused.
        model_length: context; the checkpoint's, or 1024, if not given. Also for ``init``.
        dropout: the checkpoint's, or 0.1, if not given. Also for ``init``.
        process: ``absorbing``, ``uniform`` or one of your own (:func:`idlm.processes.register`);
            the checkpoint's, or absorbing, if not given.
        hidden_dim, cond_dim, n_blocks, n_heads, time_conditioning, schedule: of a new network,
            MDLM's if not given, see :class:`idlm.models.DiffusionConfig`. A network of a process
            without a mask is told the time if nothing else is said.
        max_updates: length of the run; 0 leaves the end to the trainer.
        lr, betas, weight_decay, warmup, decay: AdamW and its schedule; MDLM's are 3e-4,
            (0.9, 0.999), 0, 2,500 updates and constant.
        muon_lr: learning rate of Muon on the block matrices; 0 leaves them to AdamW.
        clip: largest gradient norm, 0 for none.
        ema_decay: of the weights that are validated and exported.
        micro_batch_size: sequences per forward pass.
        attention: ``auto``, ``sdpa`` or ``flash``.
        compile: run the backbone through ``torch.compile``.
        gradient_checkpointing: recompute blocks in the backward pass.
        export_dir: where the finished model goes; ``export`` in the trainer's folder if not given.
        export_dtype: floating dtype of the exported weights.
        seed: keys of all noise.
    """

    counters = ("updates",)

    def __init__(
        self,
        tokenizer: str,
        *,
        init: str | None = None,
        process: str | None = None,
        model_length: int | None = None,
        hidden_dim: int | None = None,
        cond_dim: int | None = None,
        n_blocks: int | None = None,
        n_heads: int | None = None,
        dropout: float | None = None,
        time_conditioning: bool | None = None,
        schedule: str | None = None,
        max_updates: int = 0,
        lr: float = 3e-4,
        muon_lr: float = 0.0,
        betas: tuple[float, float] = (0.9, 0.999),
        weight_decay: float = 0.0,
        warmup: int = 2500,
        decay: Decay = "constant",
        clip: float = 1.0,
        ema_decay: float = 0.9999,
        micro_batch_size: int = 8,
        attention: str = "auto",
        compile: bool = False,
        gradient_checkpointing: bool = False,
        export_dir: str | None = None,
        export_dtype: Literal["float32", "float16", "bfloat16"] = "float32",
        seed: int = 0,
    ) -> None:
        super().__init__(micro_batch_size=micro_batch_size, clip=clip, seed=seed)
        if process is not None:
            process_class(process)  # refuses a name that is unknown
        if decay != "constant" and max_updates < 1:
            raise UserError(
                f"decay is {decay!r} but max_updates is {max_updates}; a decaying learning rate "
                "needs the length of the run, at least 1"
            )
        self.save_hyperparameters()
        check_settings(self.hparams)
        self.updates = 0
        self.model: DiffusionLM | None = None

    @property
    def finished(self) -> bool:
        """Whether ``max_updates`` have been made; a run without never is."""
        return 0 < self.hparams["max_updates"] <= self.updates

    def prepare_data(self) -> None:
        """Fetch what comes from the hub, and refuse sizes that make no network."""
        h = self.hparams
        configs, self.tokenizer = reach(h["init"], tokenizer=h["tokenizer"])
        config = configs[0] if configs else self._new_config()
        self.context = h["model_length"] or config.model_length

    def configure_model(self) -> None:
        """Build or load the network; Lightning calls it once the device and strategy are known."""
        if self.model is not None:
            return
        h = self.hparams
        self.tokenizer = load_tokenizer(h["tokenizer"])
        if h["init"]:
            self.model = load(h["init"])
            vocab_size = self._vocab_size(self.model.config.process)
            if self.model.config.vocab_size != vocab_size:
                raise UserError(
                    f"init {h['init']!r} has vocab_size {self.model.config.vocab_size} but the "
                    f"tokenizer {h['tokenizer']!r} needs {vocab_size}; use the one it came with"
                )
            self._change(self.model)
        else:
            torch.manual_seed(self.seed)  # the same first weights on every process
            self.model = DiffusionLM(self._new_config())
        self.model.set_attention(h["attention"])
        self.model.set_gradient_checkpointing(h["gradient_checkpointing"])
        self.ema = average_weights(self.model, h["ema_decay"])
        if h["compile"]:
            self.model.compile_backbone()
        self.shard(self.model, self.ema.module)
        self.val_nelbo = MeanMetric()

    def _new_config(self) -> DiffusionConfig:
        """Of a network that starts from nothing."""
        h = self.hparams
        # without a mask no state tells its noise, so the network is told the time (methods B.2)
        told = not process_class(h["process"] or NEW["process"]).has_mask
        new = {**NEW, "time_conditioning": told}
        sizes = {k: v if h[k] is None else h[k] for k, v in new.items()}
        config = DiffusionConfig(vocab_size=self._vocab_size(sizes["process"]), **sizes)
        config.make_process()
        return config

    def _vocab_size(self, process: str) -> int:
        """V of the tokenizer, and a mask if the process has one."""
        return len(self.tokenizer) + process_class(process).has_mask

    def _nelbo(self, model: DiffusionLM, tokens: Tensor, draw: Draw) -> LossSum:
        return _NELBO.get(model.process.name, token_nelbo)(model, tokens, draw)

    def _change(self, model: DiffusionLM) -> None:
        """Apply what may be changed about a network that exists; refuse the rest."""
        h = self.hparams
        for name in NEW.keys() - set(_CHANGEABLE):
            own = getattr(model.config, name)
            if h[name] not in (None, own):
                raise UserError(
                    f"{name} is {h[name]} but init {h['init']!r} has {own}; leave {name} out, "
                    "or leave init out to train a new network"
                )
        if h["model_length"] is not None:
            model.config.model_length = h["model_length"]
        if h["dropout"] is not None:
            set_dropout(model, h["dropout"])
            model.config.dropout = h["dropout"]

    def configure_optimizers(self) -> OptimizerLRSchedulerConfig:
        """AdamW, and Muon for the matrices of the blocks if asked, with one schedule."""
        h = self.hparams
        assert self.model is not None  # configure_model ran

        def factor(step: int) -> float:
            return lr_factor(step, warmup=h["warmup"], decay=h["decay"], total=h["max_updates"])

        if h["muon_lr"]:
            both = MuonAdamW(
                self.model,
                muon_lr=h["muon_lr"],
                lr=h["lr"],
                betas=tuple(h["betas"]),
                weight_decay=h["weight_decay"],
            )
            return {"optimizer": both, "lr_scheduler": LambdaLR(both, factor)}
        return self.optimizer(self.model, h["lr"], tuple(h["betas"]), h["weight_decay"], factor)

    def training_step(self, batch: Batch, batch_idx: int) -> None:
        """One update of the teacher; its EMA follows."""
        model = self.trained_network()
        model.train()

        def loss(tokens: Tensor, draw: Draw) -> LossSum:
            return self._nelbo(model, tokens, draw)

        out = self.update(batch, loss, which=0, step=self.updates, name="teacher")
        self.ema.update_parameters(model)
        self.updates += 1
        self.log("train/nelbo", out["loss"], prog_bar=True)
        self.log("train/grad_norm", out["grad_norm"])
        for name in ("tokens_per_second", "tflops", "mfu"):
            if name in out:
                self.log(f"train/{name}", out[name], prog_bar=name != "tflops")
        self.log("train/updates", float(self.updates))
        if self.finished:
            self.trainer.should_stop = True

    def on_validation_epoch_start(self) -> None:
        """Begin a new mean."""
        self.val_nelbo.reset()

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        """NELBO of the EMA weights in nats per token; the same noise at every validation."""
        model = cast(DiffusionLM, self.ema.module)
        result = self._nelbo(model, batch["input_ids"], self.validation_draw(batch))
        self.val_nelbo.update(result.mean, weight=result.tokens)

    def on_validation_epoch_end(self) -> None:
        """Log the mean over all processes."""
        nelbo = self.val_nelbo.compute()
        self.log("val/nelbo", nelbo, prog_bar=True, sync_dist=True)
        self.log("val/ppl", nelbo.exp(), sync_dist=True)

    def trained_network(self) -> DiffusionLM:
        """The teacher."""
        if self.model is None:
            raise RuntimeError("the network exists only after configure_model()")
        return self.model

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Add the number of updates."""
        super().on_save_checkpoint(checkpoint)
        checkpoint["updates"] = self.updates

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Take up the number of updates.

        Raises:
            UserError: for a checkpoint of another kind of training.
        """
        self.check_resumed(checkpoint)
        self.updates = checkpoint["updates"]

    def on_train_end(self) -> None:
        """Export the EMA weights as a Hugging Face folder."""
        if self.updates:
            folder = self.hparams["export_dir"] or Path(self.trainer.default_root_dir) / "export"
            self.export(folder)
            if self.trainer.is_global_zero:
                print(f"teacher exported to {folder}")

    def export(self, folder: str | Path) -> Path:
        """Write the EMA weights, tokenizer and model card; returns the folder.

        Sharded weights are gathered first, so every process has to call it; the main one writes.
        """
        network = cast(DiffusionLM, unsharded(self.ema.module))
        if not self.trainer.is_global_zero:
            return Path(folder)
        metrics = {k: float(v) for k, v in self.trainer.callback_metrics.items()}
        # a network loaded from `init` has its own sizes, whatever the arguments say
        sizes = {k: getattr(self.trained_network().config, k) for k in NEW}
        settings = {**self.hparams, **sizes}
        card = teacher_card(settings, self.updates, metrics, self.data_conditions())
        dtype = getattr(torch, self.hparams["export_dtype"])
        return export_folder(
            network,
            folder,
            tokenizer=self.tokenizer,
            card=card,
            dtype=dtype,
        )
