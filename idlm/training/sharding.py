"""FSDP: weights, gradients, averages and optimiser states spread over the processes.

The second generation of PyTorch's FSDP (``fully_shard``, in Lightning ``ModelParallelStrategy``),
because an update here has phases. It shards parameter by parameter, so a network may be frozen in
one phase and trained in the next, and optimisers of their own own only what they train; and any
method of a network can be its forward pass, of which a denoiser has more than one.
"""

from __future__ import annotations

import copy
import warnings
from collections.abc import Iterable, Mapping
from typing import Any

import lightning as L
import torch
from lightning.pytorch.strategies import ModelParallelStrategy, StrategyRegistry
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import FSDPModule, fully_shard, register_fsdp_forward_method
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.optim import Optimizer

from idlm.errors import UserError
from idlm.models import DiffusionLM
from idlm.models.dit import Block


class ShardedStrategy(ModelParallelStrategy):
    """Lightning's strategy for FSDP over all processes, with ordinary checkpoints.

    A checkpoint is one file, gathered in the memory of the main process and written by it, with
    the names and shapes of a run on one process. So a run continues on any number of processes,
    with this strategy or without, and ``idlm export`` reads the file as any other. Its name is
    ``sharded``.

    Args:
        process_group_backend: ``nccl`` or ``gloo``; by default what the device asks for.
    """

    def __init__(self, process_group_backend: str | None = None) -> None:
        super().__init__(
            data_parallel_size="auto",
            tensor_parallel_size=1,
            save_distributed_checkpoint=False,
            process_group_backend=process_group_backend,
        )

    @property
    def lightning_restore_optimizer(self) -> bool:
        """Lightning hands the states of a checkpoint to :meth:`load_optimizer_state_dict`."""
        return True

    def setup(self, trainer: L.Trainer) -> None:
        """As Lightning's.

        Raises:
            UserError: for a training that does not shard its network.
        """
        module = self.lightning_module
        if module is not None and not any(isinstance(m, FSDPModule) for m in module.modules()):
            raise UserError(
                f"{type(module).__name__} does not shard its network, so strategy sharded would do "
                "nothing; use strategy ddp"
            )
        super().setup(trainer)

    def setup_environment(self) -> None:
        """Meet the other processes; all of them share the networks."""
        self._data_parallel_size = self.num_nodes * self.num_processes
        super().setup_environment()
        # of the recognition network: nothing here works in place on what a network returns
        warnings.filterwarnings("ignore", message="FSDP2-wrapped module .* returned a view")

    def validation_step(self, *args: Any, **kwargs: Any) -> Any:
        """As Lightning's; no weights stay gathered behind it."""
        try:
            return super().validation_step(*args, **kwargs)
        finally:
            reshard(self.lightning_module)

    test_step = validation_step

    def lightning_module_state_dict(self) -> dict[str, Any]:
        """All weights in full on the main process; nothing on the others, which take part."""
        assert self.lightning_module is not None  # Lightning set it up
        return self._mine(full_state(self.lightning_module.state_dict()))

    def load_model_state_dict(self, checkpoint: Mapping[str, Any], strict: bool = True) -> None:
        """Take this process's part of full weights."""
        assert self.lightning_module is not None
        load_full(self.lightning_module, checkpoint["state_dict"], strict=strict)

    def optimizer_state(self, optimizer: Optimizer) -> dict[str, Any]:
        """The state in full on the main process; nothing on the others, which take part."""
        plain = getattr(optimizer, "optimizer", optimizer)  # without Lightning's wrapper
        return self._mine(full_state(plain.state_dict()))

    def load_optimizer_state_dict(self, checkpoint: Mapping[str, Any]) -> None:
        """Take this process's part of full states."""
        for optimizer, saved in zip(self.optimizers, checkpoint["optimizer_states"], strict=True):
            parameters = [p for group in optimizer.param_groups for p in group["params"]]
            state = {
                number: {name: _part(value, parameters[number]) for name, value in entry.items()}
                for number, entry in saved["state"].items()
            }
            optimizer.load_state_dict({**saved, "state": state})

    def load_checkpoint(self, checkpoint_path: Any, weights_only: bool | None = None) -> Any:
        """Read the one file, as strategies that do not shard do."""
        return super(ModelParallelStrategy, self).load_checkpoint(checkpoint_path, weights_only)

    def _mine(self, state: dict[str, Any]) -> dict[str, Any]:
        return state if self.is_global_zero else {}


# so that a configuration can say `strategy: sharded`
StrategyRegistry.register("sharded", ShardedStrategy, description=ShardedStrategy.__doc__)


def shard(network: nn.Module, mesh: DeviceMesh) -> None:
    """Spread a network over the processes of ``mesh``, in place, before its first forward pass.

    Every block is gathered when it is needed and let go afterwards; the rest, embeddings and head,
    from the first use in an update until :func:`reshard`, because ``head`` and what ``embedder``
    gives are called apart from ``features``.

    Args:
        network: a denoiser, or a module that holds blocks of one.
        mesh: of one dimension.
    """
    for module in network.modules():
        if isinstance(module, Block):
            fully_shard(module.adaLN_modulation, mesh=mesh)  # called outside of the block
            fully_shard(module, mesh=mesh)
    inner = [m for m in network.modules() if isinstance(m, DiffusionLM) and m is not network]
    wholes: list[nn.Module] = [*inner, network]
    for whole in wholes:
        fully_shard(whole, mesh=mesh, reshard_after_forward=False)
        if isinstance(whole, DiffusionLM):
            for name in ("features", "embedder"):
                register_fsdp_forward_method(whole, name)


def reshard(module: nn.Module | None) -> None:
    """Let go of every gathered weight inside ``module``, so that its parameters are the parts."""
    for part in [] if module is None else module.modules():
        if isinstance(part, FSDPModule):
            part.reshard()


def full_state(state: Any) -> Any:
    """Nested containers with every sharded tensor gathered on the CPU; all processes take part."""
    if isinstance(state, DTensor):
        return state.full_tensor().cpu()
    if isinstance(state, dict):
        return {key: full_state(value) for key, value in state.items()}
    if isinstance(state, (list, tuple)):
        return type(state)(full_state(value) for value in state)
    return state


def load_full(module: nn.Module, state: Mapping[str, Tensor], *, strict: bool = True) -> None:
    """Load full tensors into a module of which parts may be sharded."""
    own = module.state_dict()
    parts = {key: _part(value, own.get(key)) for key, value in state.items()}
    module.load_state_dict(parts, strict=strict)


def unsharded(network: nn.Module) -> nn.Module:
    """The network itself, or a whole copy of a sharded one on the CPU; all processes take part."""
    if not isinstance(network, FSDPModule):
        return network
    if not isinstance(network, DiffusionLM):
        raise TypeError(f"{type(network).__name__} cannot be built from a configuration")
    reshard(network)
    whole = DiffusionLM(copy.deepcopy(network.config))
    whole.load_state_dict(full_state(network.state_dict()))
    whole.name_or_path = network.name_or_path
    return whole.to(network.dtype).eval()


def full_norm(norm: Tensor) -> Tensor:
    """A gradient norm over all processes, as an ordinary scalar."""
    return norm.full_tensor() if isinstance(norm, DTensor) else norm


def check_strategy(strategy: Any, optimizers: Iterable[Optimizer]) -> None:
    """Refuse a strategy that would shard without knowing how these trainings do.

    Raises:
        UserError: naming the strategy, or the optimiser that cannot be sharded; for DDP that would
            wait for gradients that no update has.
    """
    from lightning.pytorch.strategies import DDPStrategy, FSDPStrategy

    from idlm.training.muon import MuonAdamW

    if isinstance(strategy, (FSDPStrategy, ModelParallelStrategy)) and not isinstance(
        strategy, ShardedStrategy
    ):
        raise UserError(
            f"strategy is {type(strategy).__name__}, which would not shard teacher, student and "
            "fake model apart; use strategy sharded, which is FSDP too"
        )
    if isinstance(strategy, ShardedStrategy) and any(isinstance(o, MuonAdamW) for o in optimizers):
        raise UserError(
            "muon_lr is above 0, but Muon needs whole matrices and strategy sharded splits them; "
            "set muon_lr to 0, or use strategy ddp"
        )
    if (
        isinstance(strategy, DDPStrategy)
        and len(list(optimizers)) > 1
        and not strategy._ddp_kwargs.get("find_unused_parameters", False)
    ):
        raise UserError(
            "strategy ddp waits for gradients of every network, but an update of this training "
            "has those of student or fake model alone; use strategy "
            "ddp_find_unused_parameters_true, or sharded"
        )


def _part(value: Any, like: Any) -> Any:
    """This process's part of a full tensor, if ``like`` is sharded and the tensor is its shape."""
    if not isinstance(like, DTensor) or isinstance(value, DTensor) or not torch.is_tensor(value):
        return value
    if value.shape != like.shape:  # the step counter of an optimiser
        return value
    # every process has the whole and takes its own part: nothing is sent
    return distribute_tensor(
        value.to(like.device), like.device_mesh, like.placements, src_data_rank=None
    )
