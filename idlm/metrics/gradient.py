"""Gradient Moment: how far generated text is from real text in a language model's gradients."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torchmetrics import Metric

from idlm.errors import UserError
from idlm.metrics.evaluators import load_evaluator, need_tokenizer
from idlm.metrics.scoring import check_rule, check_tokens, scored_positions
from idlm.metrics.states import standard_error

Gradient = list[Tensor]


class GradientMoment(Metric):
    """``|| E_samples grad L - E_data grad L ||^2`` over all parameters of a language model.

    The metric of D-MMD (arXiv 2603.20155): L is the evaluator's negative log-likelihood, in nats,
    averaged here over the scored tokens of a half batch. The estimate is unbiased: each batch is
    halved along its first axis and the inner product of the two halves' differences is averaged
    over updates,
    ``< g(samples_1) - g(data_1), g(samples_2) - g(data_2) >``, so it may be negative. Values
    compare only at equal evaluator, dtype, length and half-batch size.

    Gradients are of the evaluator in eval mode and leave its ``.grad`` alone. Peak memory is
    three gradients, each as large as the evaluator in float32.

    Args:
        evaluator: path, bundled name, hub id, model or ``(model, tokenizer)``; every parameter
            with ``requires_grad`` counts, tied weights once.
        eos: which tokens count, "published" or "strict". By default every token of token rows,
            which hold no padding, and "published" for texts, which are padded with eos.
        max_length: to which texts are cut; the evaluator's context by default.
        batch_size: rows per backward pass; it changes memory, not the result beyond rounding: each
            pass has the dtype of the weights, and passes are added in float32 or better.
        device, device_map, revision, dtype: as in ``GenerativePerplexity``.

    Raises:
        ValueError: if ``batch_size`` is below 1 or ``max_length`` below 2.
        UserError: if the evaluator cannot be loaded or has no trainable parameter.
    """

    full_state_update = False
    higher_is_better = False
    moment_sum: Tensor
    square_sum: Tensor
    samples_sum: Tensor
    data_sum: Tensor
    pair_count: Tensor
    sample_rows: Tensor
    data_rows: Tensor
    nonfinite_count: Tensor

    def __init__(
        self,
        evaluator: Any,
        *,
        eos: str | None = None,
        max_length: int | None = None,
        batch_size: int = 8,
        device: str | torch.device | None = None,
        device_map: str | None = None,
        revision: str | None = None,
        dtype: str = "float32",
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        if batch_size < 1 or (max_length is not None and max_length < 2):
            raise ValueError(
                f"batch_size={batch_size} must be 1 or more and max_length={max_length} 2 or more"
            )
        self.eos = None if eos is None else check_rule(eos)
        self.max_length, self.batch_size = max_length, batch_size
        self.evaluator = load_evaluator(
            evaluator, revision=revision, device=device, device_map=device_map, dtype=dtype
        )
        self._parameters_judged = [p for p in self.evaluator.model.parameters() if p.requires_grad]
        if not self._parameters_judged:
            raise UserError(
                f"evaluator {self.evaluator.name!r} has no trainable parameter: call "
                "requires_grad_(True) on it, the metric is made of its gradients"
            )
        for name in ("moment_sum", "square_sum", "samples_sum", "data_sum"):
            self.add_state(name, torch.zeros((), dtype=torch.float64), dist_reduce_fx="sum")
        for name in ("pair_count", "sample_rows", "data_rows", "nonfinite_count"):
            self.add_state(name, torch.zeros((), dtype=torch.int64), dist_reduce_fx="sum")

    def update(self, samples: Tensor | Sequence[str], data: Tensor | Sequence[str]) -> None:
        """Add one pair of batches, each an even number of rows.

        Args:
            samples: generated token rows ``[2b, L]`` of the evaluator's vocabulary, or texts,
                which are stripped, tokenised, cut to ``max_length`` and padded with eos.
            data: real ones, ``[2c, L]`` or texts.

        Raises:
            ValueError: if a batch is odd, empty or too long, or no token of a half counts.
            UserError: if tokens are outside the evaluator's vocabulary.
        """
        first_s, second_s = self._halves("samples", samples)
        first_d, second_d = self._halves("data", data)
        # The four inner products one by one, so that only three gradients live at a time.
        grad_s1, grad_s2 = self._gradient(first_s), self._gradient(second_s)
        s1_s2 = _dot(grad_s1, grad_s2)
        grad_d1 = self._gradient(first_d)
        d1_s2 = _dot(grad_d1, grad_s2)
        del grad_s2
        grad_d2 = self._gradient(second_d)
        d1_d2, s1_d2 = _dot(grad_d1, grad_d2), _dot(grad_s1, grad_d2)
        moment = s1_s2 - s1_d2 - d1_s2 + d1_d2
        self.moment_sum += moment
        self.square_sum += moment**2
        self.samples_sum += s1_s2
        self.data_sum += d1_d2
        self.pair_count += 1
        self.sample_rows += len(samples)
        self.data_rows += len(data)
        self.nonfinite_count += int(not moment.isfinite())

    def compute(self) -> Tensor:
        """The mean over pairs of batches, a float64 scalar; nan without any."""
        return self.moment_sum / self.pair_count

    def standard_error(self) -> Tensor:
        """Standard error of ``compute()`` over pairs; nan below two.

        Like ``uncentred`` it covers what this process has seen; ``details`` covers all.
        """
        return standard_error(self.moment_sum, self.square_sum, self.pair_count)

    def uncentred(self) -> tuple[Tensor, Tensor]:
        """Means of ``<g(samples_1), g(samples_2)>`` and ``<g(data_1), g(data_2)>``."""
        return self.samples_sum / self.pair_count, self.data_sum / self.pair_count

    def details(self) -> dict[str, Any]:
        """Moment, standard error, uncentred products and conditions, over all processes.

        Call it on every process.
        """
        with self.sync_context(
            dist_sync_fn=self.dist_sync_fn,
            should_sync=self._to_sync and not self._is_synced,
            distributed_available=self.distributed_available_fn,
        ):
            samples, data = self.uncentred()
            return {
                "gradient_moment": float(self.moment_sum / self.pair_count),
                "standard_error": float(self.standard_error()),
                "uncentred_samples": float(samples),
                "uncentred_data": float(data),
                "pairs": int(self.pair_count),
                "nonfinite_pairs": int(self.nonfinite_count),  # one makes the mean nan
                "samples_per_half": _per_half(self.sample_rows, self.pair_count),
                "data_per_half": _per_half(self.data_rows, self.pair_count),
                "max_length": self.max_length or self.evaluator.context,
                "eos": self.eos or "every token of token rows, published for texts",
                **self.evaluator.identity(),
            }

    def _halves(self, name: str, batch: Tensor | Sequence[str]) -> tuple[Tensor, Tensor]:
        """Two stacks of tokens, attention and counted positions, ``[3, b, L]`` each."""
        if isinstance(batch, Tensor):
            tokens, rule = check_tokens(batch, self.evaluator), self.eos
            attention = torch.ones_like(tokens)
        else:
            tokens, attention = self._tokenize(batch)
            rule = self.eos or "published"
        if len(tokens) < 2 or len(tokens) % 2:
            raise ValueError(
                f"{name} has {len(tokens)} rows: give an even number, it is split into halves"
            )
        if tokens.shape[1] > self.evaluator.context:
            raise ValueError(
                f"{name} has rows of {tokens.shape[1]} tokens, evaluator {self.evaluator.name!r} "
                f"takes {self.evaluator.context}: cut them"
            )
        counted = torch.ones_like(tokens)
        if rule is not None:
            counted[:, 1:] = scored_positions(tokens, self.evaluator.eos_ids, rule, attention)
        first, second = torch.stack([tokens, attention, counted]).chunk(2, dim=1)
        return first, second

    def _tokenize(self, texts: Sequence[str]) -> tuple[Tensor, Tensor]:
        tokenizer = need_tokenizer(self.evaluator)
        stripped = [text.strip() for text in texts]
        rows = tokenizer(stripped, verbose=False)["input_ids"] if stripped else []
        limit = self.max_length or self.evaluator.context
        # One pad token may count, and nothing attends to the others: no need for all of them.
        length = max(2, min(limit, max(map(len, rows), default=0) + 1))
        tokens = torch.full((len(rows), length), tokenizer.eos_token_id, dtype=torch.int64)
        attention = torch.zeros_like(tokens)
        for i, row in enumerate(rows):
            kept = row[:length]
            tokens[i, : len(kept)] = torch.tensor(kept, dtype=torch.int64)
            attention[i, : len(kept)] = 1
        attention[:, 0] = 1  # an empty text is a lone eos; attending to nothing gives nan
        return tokens.to(self.evaluator.device), attention.to(self.evaluator.device)

    def _gradient(self, half: Tensor) -> Gradient:
        """Gradient of the mean negative log-likelihood over the counted tokens of a half."""
        total = int(half[2, :, 1:].sum())
        if not total:
            raise ValueError("no token of a half batch counts: its rows are empty")
        with (
            torch.inference_mode(False),
            torch.enable_grad(),
            self.evaluator.judging() as model,
        ):
            # a sum in bfloat16 would depend on how many micro batches it has
            gradient = [
                torch.zeros_like(p, dtype=torch.promote_types(p.dtype, torch.float32))
                for p in self._parameters_judged
            ]
            for start in range(0, half.shape[1], self.batch_size):
                tokens, attention, counted = half[:, start : start + self.batch_size].clone()
                logits = model(input_ids=tokens, attention_mask=attention, use_cache=False).logits
                target, weight = tokens[:, 1:].to(logits.device), counted[:, 1:].to(logits.device)
                nll = torch.nn.functional.cross_entropy(
                    logits[:, :-1].float().transpose(1, 2), target, reduction="none"
                )
                loss = (nll * weight).sum() / total
                parts = torch.autograd.grad(loss, self._parameters_judged, allow_unused=True)
                for sum_, part in zip(gradient, parts, strict=True):
                    if part is not None:
                        sum_ += part
        return gradient


def _per_half(rows: Tensor, pairs: Tensor) -> float:
    """Rows in a half batch, averaged over pairs."""
    return float(rows / (2 * pairs))


def _dot(left: Gradient, right: Gradient) -> Tensor:
    """Inner product over all parameters in float64, on the CPU, a scalar."""
    total = torch.zeros((), dtype=torch.float64)
    for a, b in zip(left, right, strict=True):
        total += torch.dot(a.flatten().double(), b.flatten().double()).cpu()
    return total
