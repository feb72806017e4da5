"""MAUVE: how near the distribution of generated text is to that of real text."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import mean, stdev
from typing import Any

import torch
from torch import Tensor
from torchmetrics import Metric

from idlm.errors import UserError
from idlm.metrics.evaluators import load_evaluator, need_tokenizer
from idlm.metrics.scoring import check_tokens
from idlm.metrics.states import joined

# Pillutla et al. (2021) take 5,000 of each; their package advises 1,000 or more.
MIN_SAMPLES = 1000
PUBLISHED_SAMPLES = 5000
SEEDS = (1, 2, 3, 4, 5)


class Mauve(Metric):
    """Area under the divergence curve of samples and real text, from 0 to 1; higher is nearer.

    Pillutla et al., 2021 (arXiv 2102.01454), by the authors' package ``mauve-text``. Each text is
    one point: the evaluator's last hidden state (after its final norm) at the last token that is
    kept. The package scales the points of both sides to norm 1, reduces them to the directions
    that hold 90 % of the variance, and clusters them together by k-means; the score compares the
    two histograms over clusters. The clusters depend on a seed, hence several and their spread.

    The value depends on evaluator, numbers of texts, truncation, clusters and scaling, and few
    texts bias it: all are in ``details``, and too few texts are refused.

    Args:
        evaluator: path, bundled name, hub id, model or ``(model, tokenizer)``; any causal
            language model of transformers.
        max_length: tokens of a text that are read; the evaluator's context by default.
        seeds: of k-means, one score each.
        clusters: of k-means; "auto" is a tenth of the smaller side, at least 2.
        scaling: c, the divergences' factor in the exponent.
        min_samples: texts that each side needs.
        batch_size: rows per forward pass.
        device, device_map, revision, dtype: as in ``GenerativePerplexity``.

    Raises:
        ValueError: if a number is out of its range.
        UserError: if the evaluator cannot be loaded.
    """

    full_state_update = False
    higher_is_better = True
    sample_features: list[Tensor]
    data_features: list[Tensor]
    cut_samples: Tensor
    cut_data: Tensor

    def __init__(
        self,
        evaluator: Any,
        *,
        max_length: int | None = None,
        seeds: Sequence[int] = SEEDS,
        clusters: int | str = "auto",
        scaling: float = 5.0,
        min_samples: int = MIN_SAMPLES,
        batch_size: int = 8,
        device: str | torch.device | None = None,
        device_map: str | None = None,
        revision: str | None = None,
        dtype: str = "float32",
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        if not seeds or batch_size < 1 or (max_length is not None and max_length < 1):
            raise ValueError(
                f"seeds={list(seeds)} must name one or more, batch_size={batch_size} and "
                f"max_length={max_length} must be 1 or more"
            )
        if clusters != "auto" and not (isinstance(clusters, int) and clusters >= 2):
            raise ValueError(f"clusters={clusters!r} must be 2 or more, or 'auto'")
        if scaling <= 0 or min_samples < 2:
            raise ValueError(f"scaling={scaling} must be above 0, min_samples={min_samples} 2 up")
        self.seeds, self.clusters, self.scaling = tuple(seeds), clusters, float(scaling)
        self.min_samples, self.batch_size = min_samples, batch_size
        self.evaluator = load_evaluator(
            evaluator, revision=revision, device=device, device_map=device_map, dtype=dtype
        )
        self.max_length = min(max_length or self.evaluator.context, self.evaluator.context)
        self._found: dict[str, Any] = {}
        for name in ("sample_features", "data_features"):
            self.add_state(name, [], dist_reduce_fx="cat")
        for name in ("cut_samples", "cut_data"):
            self.add_state(name, torch.zeros((), dtype=torch.int64), dist_reduce_fx="sum")
        self.reset()

    def reset(self) -> None:
        """Forget all texts."""
        super().reset()
        # An empty list would be gathered as rows of another width; a process may have no texts.
        width = int(self.evaluator.model.config.get_text_config().hidden_size)
        for state in (self.sample_features, self.data_features):
            state.append(torch.empty(0, width, device=self.device))

    def update(self, samples: Tensor | Sequence[str], data: Tensor | Sequence[str]) -> None:
        """Add texts of both sides, in any numbers; an empty list adds none to that side.

        Args:
            samples: generated texts, or token rows ``[B, L]`` of the evaluator's vocabulary.
            data: real ones.

        Raises:
            ValueError: if token rows are not integer rows.
            UserError: if tokens are outside the evaluator's vocabulary.
        """
        self.cut_samples += self._add(self.sample_features, samples)
        self.cut_data += self._add(self.data_features, data)

    def compute(self) -> Tensor:
        """The mean over k-means seeds, a float64 scalar.

        Raises:
            UserError: if a side has fewer texts than ``min_samples`` or features that are not
                finite, or ``mauve-text`` is not installed.
        """
        samples, data = joined(self.sample_features), joined(self.data_features)
        check_sizes(len(samples), len(data), self.min_samples)
        for side, rows in (("generated", samples), ("real", data)):
            broken = int((~rows.isfinite()).any(dim=1).sum())
            if broken:
                raise UserError(
                    f"{broken} of {len(rows)} {side} texts have features that are not finite under "
                    f"{self.evaluator.name!r} in {self.evaluator.dtype}: use float32"
                )
        count = self._clusters(len(samples), len(data))
        call = _package().compute_mauve
        scores = [
            float(
                call(
                    p_features=data.cpu().numpy(),  # the package's p is the human side
                    q_features=samples.cpu().numpy(),
                    num_buckets=count,
                    mauve_scaling_factor=self.scaling,
                    seed=seed,
                    verbose=False,
                ).mauve
            )
            for seed in self.seeds
        ]
        self._found = {
            "mauve": mean(scores),
            "sd": stdev(scores) if len(scores) > 1 else None,
            "scores": scores,
            "seeds": list(self.seeds),
            "clusters": count,
            "scaling": self.scaling,
            "samples": len(samples),
            "data": len(data),
            "min_samples": self.min_samples,
            "max_length": self.max_length,
            "truncated_samples": int(self.cut_samples),
            "truncated_data": int(self.cut_data),
        }
        return torch.tensor(mean(scores), dtype=torch.float64)

    def details(self) -> dict[str, Any]:
        """Mean and standard deviation over seeds, each score, and conditions, over all processes.

        Call it on every process; it raises what ``compute`` does.
        """
        self.compute()
        return {**self._found, **self.evaluator.identity()}

    def _clusters(self, samples: int, data: int) -> int:
        """k; "auto" is the package's own rule, applied here so that it can be reported."""
        if isinstance(self.clusters, int):
            return self.clusters
        return max(2, round(min(samples, data) / 10))

    def _add(self, state: list[Tensor], batch: Tensor | Sequence[str]) -> int:
        """Append features of one side and return how many of its texts were cut."""
        rows = self._rows(batch)
        kept = [row[: self.max_length] for row in rows]
        for start in range(0, len(kept), self.batch_size):
            state.append(self._features(kept[start : start + self.batch_size]).to(self.device))
        return sum(len(row) > self.max_length for row in rows)

    def _rows(self, batch: Tensor | Sequence[str]) -> list[Tensor]:
        if isinstance(batch, Tensor):
            return list(check_tokens(batch, self.evaluator))
        if not batch:
            return []
        tokenizer = need_tokenizer(self.evaluator)
        # The whole text first and the cut afterwards, so that cut texts can be counted. A text
        # without tokens still is a sample, and its point that of a lone eos.
        ids = tokenizer(list(batch), truncation=False, padding=False, verbose=False)["input_ids"]
        return [torch.tensor(row or [tokenizer.eos_token_id], dtype=torch.int64) for row in ids]

    @torch.no_grad()
    def _features(self, rows: list[Tensor]) -> Tensor:
        """Last hidden states at each row's last token, float32 ``[B, D]``."""
        ends = torch.tensor([len(row) - 1 for row in rows])
        tokens = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True)
        attention = (torch.arange(tokens.shape[1])[None] <= ends[:, None]).long()
        device = self.evaluator.device
        with self.evaluator.judging() as model:
            # the network below the head: no logits, which would be the largest tensor by far
            below: Any = model.base_model
            hidden = below(
                input_ids=tokens.to(device), attention_mask=attention.to(device), use_cache=False
            ).last_hidden_state
        places = torch.arange(len(rows), device=hidden.device)
        return hidden[places, ends.to(hidden.device)].float()


def check_sizes(samples: int, data: int, needed: int) -> None:
    """Refuse too few texts, which the score would flatter or punish by chance.

    Raises:
        UserError: naming both sizes and what is needed.
    """
    if min(samples, data) < needed:
        raise UserError(
            f"MAUVE compares {samples} generated with {data} real texts, and fewer than {needed} "
            f"on a side are too few (its authors take {PUBLISHED_SAMPLES}): give more of both, or "
            "leave mauve out"
        )


def _package() -> Any:
    try:
        import mauve
    except ImportError as error:
        raise UserError(
            f"MAUVE needs the package mauve-text ({error}): pip install 'idlm[mauve]'"
        ) from error
    return mauve


def require_package() -> None:
    """Say before any work that ``mauve-text`` is missing.

    Raises:
        UserError: if it is.
    """
    _package()
