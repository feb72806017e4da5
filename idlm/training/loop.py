"""What trainings of diffusion models share: one ``training_step`` is one update of one network.

Updates are manual (Lightning cannot alternate two optimisers by itself), and a batch is split
into micro batches inside the step, so that no state ever hangs between two steps: a checkpoint
taken after any step resumes exactly.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from typing import Any, Literal, NoReturn, cast

import torch
from lightning.pytorch.strategies import ParallelStrategy
from lightning.pytorch.utilities.types import OptimizerLRSchedulerConfig
from torch import Tensor, nn
from torch.optim.lr_scheduler import LambdaLR
from torch.optim.swa_utils import AveragedModel

from idlm.errors import UserError
from idlm.objectives.base import Draw, LossSum
from idlm.training.finite import Part, describe, from_every_process
from idlm.training.run import Batch as Batch
from idlm.training.run import RunModule
from idlm.training.sharding import full_norm, reshard, shard
from idlm.training.utilisation import Utilisation

Decay = Literal["constant", "linear", "cosine"]
# Two neighbours among Fibonacci's numbers: multiples of the first, modulo the second, are spread
# evenly from the first few on, as those of the golden ratio are on a circle.
_LATTICE = 55, 89


def average_weights(model: nn.Module, decay: float) -> AveragedModel:
    """An exponential moving average that starts fast: decay_n = min(decay, (1 + n) / (10 + n)).

    MDLM's rule (methods A.6) in PyTorch's own averaging class; buffers are copied. The n-th update
    makes ``average += (1 - decay_n) (weights - average)``, from the starting weights on.
    """
    if not 0.0 <= decay < 1.0:
        raise UserError(f"ema_decay is {decay}; it must be in [0, 1), 0 for no averaging")

    @torch.no_grad()
    def update(averages: Any, currents: Any, count: Any) -> None:
        n = float(count)
        weight = 1.0 - min(decay, (1.0 + n) / (10.0 + n))
        torch._foreach_lerp_(list(averages), list(currents), weight)

    averaged = AveragedModel(model, multi_avg_fn=update, use_buffers=False)
    # PyTorch's first update would copy the weights; in MDLM the starting weights already count
    averaged.n_averaged += 1
    return averaged.requires_grad_(False).eval()


def clean(batch: Batch) -> Tensor:
    """What a batch trains on: tokens ``[B, L]``, or continuous data ``[B, ...]``."""
    return batch["input_ids"] if "input_ids" in batch else batch["data"]


def _parameters(optimizer: Any) -> list[nn.Parameter]:
    return [p for group in optimizer.param_groups for p in group["params"]]


def lr_factor(step: int, *, warmup: int, decay: Decay, total: int) -> float:
    """Learning rate over its peak at update ``step`` (from 0): linear warm-up, then decay to 0."""
    if step < warmup:
        return (step + 1) / warmup
    if decay == "constant":
        return 1.0
    progress = min(1.0, (step - warmup) / max(1, total - warmup))
    return 1.0 - progress if decay == "linear" else 0.5 * (1.0 + math.cos(math.pi * progress))


class UpdateModule(RunModule):
    """Base of the trainings: micro batches, clipping, schedules, throughput, the end of the run.

    Args:
        micro_batch_size: sequences per forward pass; the rest of the batch is accumulated.
        clip: largest gradient norm; 0 turns clipping off.
        seed: keys of all noise, see :mod:`idlm.random`.
    """

    def __init__(self, *, micro_batch_size: int, clip: float, seed: int) -> None:
        super().__init__()
        self.automatic_optimization = False
        if micro_batch_size < 1:
            raise UserError(f"micro_batch_size is {micro_batch_size}; it must be at least 1")
        if not clip >= 0:  # NaN is neither
            raise UserError(f"clip is {clip}; it is a gradient norm, 0 turns clipping off")
        self.micro_batch_size = micro_batch_size
        self.clip = clip
        self.seed = seed
        self.utilisation = Utilisation()
        self.draw_type: type[Draw] = Draw

    def validation_draw(self, batch: Batch) -> Draw:
        """The noise of a validation batch: not that of training, and the same at every validation.

        A row's noise and time depend on its number alone, so that the mean of a loss over single
        rows is the same however they are batched and shared out among processes. (A loss over pairs
        of rows, as of instant moment matching, still depends on who is whose neighbour.) The time
        stratum is a step of a Fibonacci lattice: any rows, also every other one, and a few left
        over, cover [0, 1] evenly.

        Args:
            batch: with ``index`` ``[B]``, the running numbers of its rows.
        """
        number = batch["index"] * _LATTICE[0]
        return self.draw_type(number, _LATTICE[1], self.seed ^ 0x5EED, 0, training=False)

    def shard(self, *networks: nn.Module) -> None:
        """Spread networks over the processes where the strategy asks for it; call it once for each.

        All of them before any forward pass: a network that joins later, or is frozen when it does,
        would not take part in what the processes exchange.
        """
        if self.device_mesh is not None:
            for network in networks:
                shard(network, self.device_mesh["data_parallel"])

    def optimizer(
        self,
        network: nn.Module,
        lr: float,
        betas: tuple[float, float],
        wd: float,
        factor: Callable[[int], float],
        eps: float = 1e-8,
    ) -> OptimizerLRSchedulerConfig:
        """AdamW over the trainable parameters of ``network`` with its schedule."""
        parameters = [p for p in network.parameters() if p.requires_grad]
        adamw = torch.optim.AdamW(
            parameters, lr=lr, betas=betas, eps=eps, weight_decay=wd, fused=True
        )
        return {"optimizer": adamw, "lr_scheduler": LambdaLR(adamw, factor)}

    def _micro_batches(self, batch: Batch, step: int) -> Iterator[tuple[Tensor, Draw]]:
        tokens, index = clean(batch), batch["index"]
        global_size = tokens.shape[0] * self.trainer.world_size
        for start in range(0, tokens.shape[0], self.micro_batch_size):
            part = slice(start, start + self.micro_batch_size)
            yield tokens[part], self.draw_type(index[part], global_size, self.seed, step)

    def update(
        self,
        batch: Batch,
        loss: Callable[[Tensor, Draw], LossSum],
        *,
        which: int,
        step: int,
        name: str,
    ) -> dict[str, Tensor]:
        """One optimiser update from one batch: accumulate, check, clip, step.

        Args:
            batch: ``input_ids`` and ``index``.
            loss: summed loss of one micro batch.
            which: number of the optimiser.
            step: number of this update, which names its noise.
            name: what the loss is called in logs and errors.

        Returns:
            ``loss`` in nats per token, ``grad_norm`` before clipping, and the objective's logs;
            ``tokens_per_second`` of all processes; and unless the networks are compiled, which
            hides what they compute, :class:`~idlm.training.utilisation.Utilisation`'s rates.

        Raises:
            FloatingPointError: if the loss or a gradient is not finite; nothing was changed.
        """
        self._seed_dropout(hash((self.seed, which, step, self.global_rank)) & 0x7FFFFFFF)
        optimizers = cast(Any, self.optimizers())
        chosen = optimizers[which] if isinstance(optimizers, list) else optimizers
        chosen.zero_grad()
        started = time.perf_counter()
        counted = self._counts_flops()
        with self.utilisation.counting(which) if counted else nullcontext():
            logs, raw, parts = self._accumulate(batch, loss, step, chosen)
        if self.device_mesh is not None:  # optimiser and average work on the parts
            reshard(self)
        norm = full_norm(raw)
        if not bool(torch.isfinite(norm)) or not bool(torch.isfinite(logs["loss"])):
            self._refuse(batch, parts, logs["loss"], norm, chosen, f"{name} update {step}")
        nn.utils.clip_grads_with_norm_(_parameters(chosen), self.clip or math.inf, raw)
        chosen.step()
        schedulers = cast(Any, self.lr_schedulers())
        (schedulers[which] if isinstance(schedulers, list) else schedulers).step()
        seconds = time.perf_counter() - started
        tokens = clean(batch).numel() * self.trainer.world_size
        rates = {"tokens_per_second": tokens / max(seconds, 1e-9)}
        if counted:
            precision = str(self.trainer.precision)
            rates |= self.utilisation.rates(which, seconds, self.device, precision)
        return {
            **logs,
            "grad_norm": norm,
            **{name: torch.tensor(rate) for name, rate in rates.items()},
        }

    def _counts_flops(self) -> bool:
        # a barebones trainer logs nothing, and counting takes time
        return not (self.hparams.get("compile") or self.trainer.barebones)

    def _seed_dropout(self, key: int) -> None:
        """Tie the generator that dropout draws from to the update: a resumed run repeats it.

        ``torch.manual_seed`` seeds every backend, and takes 2 ms where CUDA is not initialised.
        """
        if self.device.type == "cpu":
            torch.default_generator.manual_seed(key)
        else:
            torch.manual_seed(key)

    def _accumulate(
        self, batch: Batch, loss: Callable[[Tensor, Draw], LossSum], step: int, chosen: Any
    ) -> tuple[dict[str, Tensor], Tensor, list[Part]]:
        """Gradients of one update; the logs over all processes, the norm, and what went in."""
        size = clean(batch).numel()
        micro_batches = list(self._micro_batches(batch, step))
        sums: dict[str, Tensor] = {}
        parts: list[Part] = []
        for number, (tokens, draw) in enumerate(micro_batches, start=1):
            # processes exchange their gradients once, with the last micro batch
            with nullcontext() if number == len(micro_batches) else self._unsynchronised():
                result = loss(tokens, draw)
                self.manual_backward(result.total / size)
            share = tokens.numel() / size
            parts.append(Part(draw.sample, {"loss": result.mean.detach(), **result.logs}))
            for key, value in parts[-1].terms.items():
                # a mean over no position is NaN and does not count; a loss that is NaN does
                counts = (key == "loss") | ~value.isnan()
                term = torch.stack([torch.where(counts, share * value, 0.0), share * counts])
                sums[key] = sums.get(key, torch.zeros_like(term)) + term
        table = self.trainer.strategy.reduce(torch.stack(list(sums.values())), reduce_op="mean")
        logs = dict(zip(sums, table[:, 0] / table[:, 1], strict=True))
        gradients = [p.grad for p in _parameters(chosen) if p.grad is not None]
        return logs, nn.utils.get_total_norm(gradients).detach(), parts

    def _refuse(
        self,
        batch: Batch,
        parts: list[Part],
        loss: Tensor,
        norm: Tensor,
        chosen: Any,
        update: str,
    ) -> NoReturn:
        """Say what of an update is not finite; nothing of it has been applied."""
        names = {parameter: name for name, parameter in self.named_parameters()}
        gradients = [
            (names.get(p, "a parameter"), p.grad) for p in _parameters(chosen) if p.grad is not None
        ]
        gather = from_every_process if self.trainer.world_size > 1 else torch.Tensor.clone
        raise FloatingPointError(
            f"{update}: loss {float(loss)}, gradient norm {float(norm)}; "
            f"{describe(batch, parts, gradients, gather)}; no weight was changed, no "
            "average and no optimiser's state; lower the learning rate or look at these samples"
        )

    def _unsynchronised(self) -> Any:
        strategy = self.trainer.strategy
        if isinstance(strategy, ParallelStrategy):
            return strategy.block_backward_sync()
        return nullcontext()
