"""Watch a distillation by the number that counts: perplexity at the teacher's entropy."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, cast

import lightning as L
from lightning.pytorch.callbacks import Callback

from idlm.equal_entropy import Point, matched_entropy
from idlm.errors import UserError
from idlm.metrics import Entropy, Evaluator, GenerativePerplexity, load_evaluator
from idlm.models import DiffusionLM, decode
from idlm.sampling import generate
from idlm.training.sharding import unsharded


class FrontierMonitor(Callback):
    """At every validation, the student's GenPPL over its teacher's at equal entropy.

    The losses of a distillation cannot say whether a student gains: a lagging fake model makes
    them small, and a student that only sharpens its teacher lowers them too. So this callback
    samples. The teacher's temperature curve at ``steps`` steps is measured once, at the first
    validation; then each validation draws samples of the averaged student, always with the same
    seed, and logs ``val/gen_ppl``, ``val/entropy`` (nats) and ``val/frontier_ratio``: below 1 the
    student beats every temperature of its teacher. Where the curve does not reach the student's
    entropy the ratio is infinite, so that ``monitor: val/frontier_ratio`` never picks it.

    Every process draws and judges its share of the samples.

    Args:
        evaluator: causal language model that judges: folder, bundled name or hub id.
        steps: sampler steps of student and teacher.
        num_samples: sequences per point; few of them give a noisy number, see the README.
        temperatures: of the teacher's curve, two or more.
        length: tokens per sample; the teacher's context if not given.
        seed: of the samples.

    Raises:
        UserError: for a value outside what is listed, or an evaluator that cannot be loaded.
    """

    def __init__(
        self,
        evaluator: str,
        *,
        steps: int = 16,
        num_samples: int = 32,
        temperatures: Sequence[float] = (1.1, 1.0, 0.9, 0.8, 0.7),
        length: int | None = None,
        seed: int = 0,
    ) -> None:
        for name, value in (("steps", steps), ("num_samples", num_samples)):
            if value < 1:
                raise UserError(f"{name} is {value}; it must be at least 1")
        if len(set(temperatures)) < 2 or not all(0 < t < math.inf for t in temperatures):
            raise UserError(
                f"temperatures is {list(temperatures)}; a curve needs two different ones or more, "
                "each above 0 and finite"
            )
        self.evaluator = evaluator
        self.steps = steps
        self.num_samples = num_samples
        self.temperatures = tuple(temperatures)
        self.length = length
        self.seed = seed
        self.curve: list[Point] = []
        self._judge: Evaluator | None = None

    def on_fit_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Load the evaluator before anything is trained."""
        if not hasattr(pl_module, "student"):
            raise UserError(
                f"FrontierMonitor compares a student with its teacher, but the model is a "
                f"{type(pl_module).__name__}; leave the callback out"
            )
        self._judge = load_evaluator(self.evaluator, device=pl_module.device)

    def on_validation_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Sample, judge and log; the first time the teacher is measured as well."""
        if trainer.sanity_checking or self._judge is None:
            return
        module = cast(Any, pl_module)
        if not self.curve:
            self.curve = [
                self._point(trainer, module.teacher, module.tokenizer, temperature)
                for temperature in self.temperatures
            ]
        student = cast(DiffusionLM, module.ema.module)
        entropy, gen_ppl = self._point(trainer, student, module.tokenizer, 1.0)
        found = matched_entropy(self.curve, (entropy, gen_ppl))
        # logged through the module, which is what ModelCheckpoint reads
        module.log("val/gen_ppl", gen_ppl)
        module.log("val/entropy", entropy)
        module.log("val/frontier_ratio", math.inf if found.ratio is None else found.ratio)

    def _point(
        self, trainer: L.Trainer, model: DiffusionLM, tokenizer: Any, temperature: float
    ) -> Point:
        """(entropy in nats, GenPPL) of samples that all processes make together."""
        # a sharded network would need equally many calls of all processes
        device = trainer.strategy.root_device  # also where the processes can add up their sums
        model = cast(DiffusionLM, unsharded(model)).to(device)
        share = -(-self.num_samples // trainer.world_size)  # equal work: no process waits
        out = generate(
            model,
            share,
            self.length,
            self.steps,
            temperature=temperature,
            seed=self.seed,
            first_index=share * trainer.global_rank,
        )
        # one row at a time, so that no row's score depends on its neighbours' length
        gen_ppl = GenerativePerplexity(self._judge, batch_size=1).to(device)
        gen_ppl.update(decode(tokenizer, out.tokens))
        entropy = Entropy("per_sequence").to(device)
        entropy.update(out.tokens)
        # torchmetrics adds up over processes
        return float(entropy.compute()), float(gen_ppl.compute())

    def state_dict(self) -> dict[str, Any]:
        """The teacher's curve resumes with the run."""
        return {"curve": [list(point) for point in self.curve]}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take up the teacher's curve, which is not measured again."""
        self.curve = [(entropy, gen_ppl) for entropy, gen_ppl in state_dict["curve"]]
