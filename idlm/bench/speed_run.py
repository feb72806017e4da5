"""What ``idlm bench speed`` measures, one case at a time, each in a process of its own.

Times are medians over repeats in which the things compared take turns, so that a busy machine slows
all of them alike. Memory is the peak over what stands before the work, the weights: by CUDA's
allocator, or of the whole process.
"""

from __future__ import annotations

import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch

import idlm
from idlm.bench.speed_measure import Setting, Work, median_ratio, peak, take_turns
from idlm.bench.speed_plain import plain_losses, plain_sample
from idlm.bench.store import Record
from idlm.models import DiffusionConfig, DiffusionLM
from idlm.objectives import DMMD, IDLM, Draw, IDLMDuo, Networks
from idlm.objectives.base import LossSum

OBJECTIVES: dict[str, Any] = {
    "idlm": IDLM,
    "dmmd": DMMD,
    "dmmd-uniform": DMMD,
    "idlm-duo": IDLMDuo,
}
_UNIFORM = ("dmmd-uniform", "idlm-duo")


@dataclass(frozen=True)
class Network:
    """Sizes of a network with random weights.

    Attributes:
        blocks: how many.
        dim: hidden size; heads are of 64, or of all of a smaller one.
        vocab: V, the mask included.
    """

    blocks: int
    dim: int
    vocab: int = 50258

    @property
    def name(self) -> str:
        """Blocks x hidden size."""
        return f"{self.blocks}x{self.dim}"

    def build(self, length: int, process: str = "absorbing") -> DiffusionLM:
        """A denoiser of a context of ``length`` tokens; its predictions are not uniform."""
        config = DiffusionConfig(
            vocab_size=self.vocab,
            model_length=length,
            hidden_dim=self.dim,
            cond_dim=128,
            n_blocks=self.blocks,
            n_heads=max(1, self.dim // 64),
            dropout=0.0,
            process=process,
        )
        torch.manual_seed(0)
        model = DiffusionLM(config)
        with torch.no_grad():
            for weight in model.parameters():
                weight.normal_(std=0.02)
        return model.eval()


@dataclass(frozen=True)
class SamplerCase:
    """Sampling, against as many bare backbone passes and against the plain sampler.

    Attributes:
        network: sizes.
        batch: sequences at a time.
        length: of each.
        steps: of the sampler.
        repeats: of everything but the plain sampler.
        plain_repeats: of that; 0 leaves it out.
    """

    network: Network
    batch: int = 1
    length: int = 1024
    steps: int = 16
    repeats: int = 3
    plain_repeats: int = 1

    def run(self, setting: Setting) -> Record:
        """Seconds of all three, and their ratios."""
        model = setting.place(self.network.build(self.length))
        shape = (self.batch, self.length)
        tokens = torch.randint(0, self.network.vocab, shape, device=setting.device)
        sigma = torch.ones(self.batch, device=setting.device)

        @torch.no_grad()
        def backbone() -> None:
            for _ in range(self.steps):
                model.features(tokens, sigma)

        def lean() -> None:
            idlm.generate(model, self.batch, self.length, self.steps, seed=0, batch_size=self.batch)

        def plain() -> None:
            plain_sample(model, self.batch, self.length, self.steps, seed=0)

        with setting.precision():
            # warm-up: kernels are chosen, memory is mapped
            with torch.no_grad():
                model.features(tokens, sigma)
            idlm.generate(model, self.batch, self.length, 2, seed=0, batch_size=self.batch)
            works: list[tuple[Work, int]] = [
                (backbone, self.repeats),
                (lean, self.repeats),
                (plain, self.plain_repeats),
            ]
            floor, ours, theirs = take_turns(works, setting)
        out: Record = {
            "case": "sampler",
            **_sizes(self),
            "backbone_seconds": statistics.median(floor),
            "lean_seconds": statistics.median(ours),
            "over_backbone": median_ratio(ours, floor),
            "tokens_per_second": self.batch * self.length / statistics.median(ours),
        }
        if theirs:
            out["plain_seconds"] = statistics.median(theirs)
            out["plain_over_lean"] = out["plain_seconds"] / out["lean_seconds"]
        return out

    def memory(self, setting: Setting, plain: bool) -> int | None:
        """Bytes at the sampler's peak over the weights; None where that is not known."""
        model = setting.place(self.network.build(self.length))

        def work() -> None:
            with setting.precision():
                if plain:
                    plain_sample(model, self.batch, self.length, self.steps, seed=0)
                else:
                    size = self.batch
                    idlm.generate(model, size, self.length, self.steps, seed=0, batch_size=size)

        return peak(work, setting)


@dataclass(frozen=True)
class LossCase:
    """A fake update and a student update, without optimisers, lean and plain.

    Attributes:
        network: sizes.
        objective: a name of :data:`OBJECTIVES`.
        batch: sequences.
        length: of each.
        repeats: of both.
        plain: whether the plain losses are run, too.
    """

    network: Network
    objective: str = "idlm"
    batch: int = 4
    length: int = 256
    repeats: int = 3
    plain: bool = True

    def run(self, setting: Setting) -> Record:
        """Seconds of a pair of updates, and the ratio of plain to lean."""
        update, networks = self.updates(setting)
        works: list[tuple[Work, int]] = [(lambda: update(False), self.repeats)]
        if self.plain:
            works.append((lambda: update(True), self.repeats))
        for work, _ in works:
            work()
        times = take_turns(works, setting)
        weights = [weight for network in networks if network for weight in network.parameters()]
        out: Record = {
            "case": "losses",
            "objective": self.objective,
            **_sizes(self),
            "lean_seconds": statistics.median(times[0]),
            "tokens_per_second": 2 * self.batch * self.length / statistics.median(times[0]),
            "weights_bytes": sum(weight.nbytes for weight in weights),
            "gradient_bytes": sum(weight.nbytes for weight in networks.student.parameters()),
        }
        if self.plain:
            out["plain_seconds"] = statistics.median(times[1])
            out["plain_over_lean"] = median_ratio(times[1], times[0])
        return out

    def memory(self, setting: Setting, plain: bool) -> int | None:
        """Bytes at the peak of both updates over the weights; None where that is not known."""
        update, _ = self.updates(setting)
        return peak(lambda: update(plain), setting)

    def updates(self, setting: Setting) -> tuple[Callable[..., None], Networks]:
        """The pair of updates, and its networks on the device.

        Returns:
            A function of whether the plain losses are meant and, if weights are to change, of the
            optimisers of fake model and student; and the networks.
        """
        process = "uniform" if self.objective in _UNIFORM else "absorbing"
        teacher = self.network.build(self.length, process)
        teacher.requires_grad_(False)
        student = teacher.with_latent(latent_global=64, latent_position=64).requires_grad_(True)
        objective = OBJECTIVES[self.objective]()
        fake = objective.make_auxiliary(teacher, student).requires_grad_(True)
        networks = Networks(*(setting.place(model) for model in (teacher, student, fake)))
        shape = (self.batch, self.length)
        tokens = torch.randint(0, self.network.vocab - 1, shape, device=setting.device)
        draw = Draw(torch.arange(self.batch, device=setting.device), self.batch, 0, 0)

        def update(plain: bool, optimizers: Sequence[torch.optim.Optimizer] = ()) -> None:
            losses = objective.auxiliary_loss, objective.student_loss
            if plain:
                race = torch.Generator(setting.device).manual_seed(0)
                losses = plain_losses(objective, race)
            for number, (loss, network) in enumerate(zip(losses, (fake, student), strict=True)):
                with setting.precision():
                    result: LossSum = loss(networks, tokens, draw)
                result.mean.backward()
                if optimizers:
                    optimizers[number].step()
                network.zero_grad()

        return update, networks


def startup(arguments: list[str], repeats: int) -> Record:
    """Seconds of a command that answers at once, in new processes."""
    command = [sys.executable, "-m", "idlm.cli.main", *arguments]
    seconds, code = [], 0
    for _ in range(repeats):
        started = time.perf_counter()
        code = subprocess.run(command, capture_output=True, check=False).returncode
        seconds.append(time.perf_counter() - started)
    return {
        "case": "startup",
        "command": " ".join(["idlm", *arguments]),
        "exit_code": code,
        "seconds": statistics.median(seconds),
        "repeats": repeats,
    }


def _sizes(case: SamplerCase | LossCase) -> Record:
    sizes = {k: v for k, v in asdict(case).items() if k in ("batch", "length", "steps", "repeats")}
    return {"network": case.network.name, "vocab_size": case.network.vocab, **sizes}
