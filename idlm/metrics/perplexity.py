"""Generative perplexity: how probable another language model finds generated text."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor
from torchmetrics import Metric

from idlm.metrics.evaluators import load_evaluator, need_tokenizer, open_tokenizer
from idlm.metrics.scoring import EOS_RULES, check_rule, check_tokens, scored_positions

# Per rule and sample, summed: nats a, tokens b, a^2, a b, b^2, whether scored, whether not finite.
_SUMS = 7


class GenerativePerplexity(Metric):
    """exp of the mean negative log-likelihood over all scored tokens of all samples.

    The protocol of the MDLM, Duo and IDLM code (Sahoo et al., 2024; ``duo/metrics.py``): decode,
    tokenise again with the evaluator's tokenizer, cut to ``max_length``, pad with eos, score
    every token but the first. It differs in one point: they drop the last incomplete batch, here
    every sample counts. Sums are float64 and pooled over tokens, not a mean over sequences; they
    add up across processes.

    A sample of fewer than two tokens scores none; it stays in ``sample_count`` and is reported in
    ``unscored_samples``, with any other sample of which no token counted. A sample whose nats are
    not finite is not left out: it makes the perplexity nan, and ``nonfinite_samples`` counts it.

    Both end-of-text rules are kept from one forward pass: ``compute`` gives that of ``eos``,
    ``by_rule`` both, each with its standard error over samples.

    Under "published" a text without eos that is shorter than its batch's longest has one pad
    token scored, so that number depends slightly on ``batch_size`` and order, as theirs does.

    Args:
        evaluator: path, bundled name, hub id, model or ``(model, tokenizer)``.
        tokenizer: of the generated tokens (path, hub id or object), to decode token batches.
        retokenize: score the text as the evaluator tokenises it; False scores token batches as
            they are, which needs equal vocabularies.
        eos: "published" or "strict", see ``idlm.metrics.scoring.scored_positions``.
        max_length: tokens of a sample that are kept; the evaluator's context when re-tokenising,
            all otherwise. Rows longer than the context are scored in pieces of it.
        batch_size: rows per forward pass.
        device: of the evaluator; the GPU if there is one.
        device_map: "auto" spreads a large evaluator over devices (accelerate).
        revision: hub revision of the evaluator.
        dtype: of the evaluator's weights.

    Raises:
        UserError: if a rule is unknown or the evaluator cannot be loaded.
    """

    full_state_update = False
    higher_is_better = False
    sums: Tensor
    sample_count: Tensor
    truncated_count: Tensor

    def __init__(
        self,
        evaluator: Any,
        *,
        tokenizer: Any = None,
        retokenize: bool = True,
        eos: str = "published",
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
        self.eos = check_rule(eos)
        self.retokenize, self.max_length, self.batch_size = retokenize, max_length, batch_size
        self._decoder = tokenizer
        self.evaluator = load_evaluator(
            evaluator, revision=revision, device=device, device_map=device_map, dtype=dtype
        )
        self._measured: dict[str, dict[str, Any]] = {}
        self._counted: dict[str, int] = {}
        sums = torch.zeros(len(EOS_RULES), _SUMS, dtype=torch.float64)
        self.add_state("sums", sums, dist_reduce_fx="sum")
        for name in ("sample_count", "truncated_count"):
            self.add_state(name, torch.zeros((), dtype=torch.int64), dist_reduce_fx="sum")

    @property
    def nll_sum(self) -> Tensor:
        """Nats of all tokens that count under ``eos``, float64."""
        return self.sums[EOS_RULES.index(self.eos), 0]

    @property
    def token_count(self) -> Tensor:
        """How many tokens count under ``eos``, int64."""
        return self.sums[EOS_RULES.index(self.eos), 1].long()

    def update(self, samples: Tensor | Sequence[str]) -> None:
        """Score samples.

        Args:
            samples: token rows ``[B, L]``, or texts when re-tokenising.

        Raises:
            ValueError: if texts come with ``retokenize=False``, or tokens without a tokenizer to
                decode them.
            UserError: if tokens are outside the evaluator's vocabulary.
        """
        rows = self._text_rows(samples) if self.retokenize else self._token_rows(samples)
        limit = self.max_length or (self.evaluator.context if self.retokenize else math.inf)
        cut = [row[: int(limit)] if len(row) > limit else row for row in rows]
        self.sample_count += len(rows)
        self.truncated_count += sum(len(row) > limit for row in rows)
        scorable = [row for row in cut if len(row) >= 2]
        for start in range(0, len(scorable), self.batch_size):
            self._score(scorable[start : start + self.batch_size])

    def compute(self) -> Tensor:
        """The perplexity under ``eos``, a float64 scalar; nan when no token was scored."""
        # Kept for by_rule and conditions: here the states are those of all processes.
        self._measured = {
            rule: _summary(sums.tolist(), int(self.sample_count))
            for rule, sums in zip(EOS_RULES, self.sums, strict=True)
        }
        own = self._measured[self.eos]
        self._counted = {
            "sample_count": int(self.sample_count),
            "token_count": own["token_count"],
            "unscored_samples": own["unscored_samples"],
            "nonfinite_samples": own["nonfinite_samples"],
            "truncated_samples": int(self.truncated_count),
        }
        return torch.exp(self.nll_sum / self.token_count)

    def by_rule(self) -> dict[str, dict[str, Any]]:
        """What each end-of-text rule gives, over all processes; call it on every one of them.

        Returns:
            For "published" and "strict": ``gen_ppl``; ``standard_error`` of it over samples, by
            the delta method for a ratio of sums, nan below two samples; ``token_count``;
            ``unscored_samples``; ``nonfinite_samples``.
        """
        self.compute()
        return {rule: dict(found) for rule, found in self._measured.items()}

    def conditions(self) -> dict[str, Any]:
        """What a perplexity must be printed with: protocol, evaluator and counts.

        Counts are those of all processes; call it on every one of them.
        """
        self.compute()
        return {
            **self.evaluator.identity(),
            "pooling": "tokens",
            "eos": self.eos,
            "retokenized": self.retokenize,
            "max_length": self.max_length or (self.evaluator.context if self.retokenize else None),
            "batch_size": self.batch_size,
            **self._counted,
        }

    def _text_rows(self, samples: Tensor | Sequence[str]) -> list[Tensor]:
        if isinstance(samples, str):
            samples = [samples]
        if isinstance(samples, Tensor):
            samples = self._decode(samples)
        if not samples:
            return []
        tokenizer = need_tokenizer(self.evaluator)
        # The whole text first and the cut afterwards, so that cut samples can be counted.
        ids = tokenizer(list(samples), truncation=False, padding=False, verbose=False)["input_ids"]
        return [torch.tensor(row, dtype=torch.int64) for row in ids]

    def _decode(self, tokens: Tensor) -> list[str]:
        if self._decoder is None:
            raise ValueError(
                "token batches are to be re-tokenised but nothing decodes them: give tokenizer= "
                "(that of the generated tokens), texts instead of tokens, or retokenize=False"
            )
        from idlm.models import decode

        if isinstance(self._decoder, str):
            self._decoder = open_tokenizer(self._decoder)
        return decode(self._decoder, tokens)

    def _token_rows(self, samples: Tensor | Sequence[str]) -> list[Tensor]:
        if not isinstance(samples, Tensor):
            raise ValueError(
                f"retokenize=False scores token rows [B, L], not a {type(samples).__name__}: give "
                "a tensor, or retokenize=True for texts"
            )
        return list(check_tokens(samples, self.evaluator))

    @torch.no_grad()
    def _score(self, rows: list[Tensor]) -> None:
        """Add the scored tokens of at most ``batch_size`` rows of two or more tokens."""
        tokens, attention = _pad(rows, self.evaluator.eos_ids, self.evaluator.device)
        counted = torch.stack(
            [scored_positions(tokens, self.evaluator.eos_ids, r, attention) for r in EOS_RULES]
        )
        nats = torch.zeros(len(EOS_RULES), len(rows), dtype=torch.float64)
        scored = torch.zeros_like(nats)
        with self.evaluator.judging() as model:
            for alive, piece, mask, valid in _pieces(
                tokens, attention, counted, self.evaluator.context
            ):
                logits = model(input_ids=piece, attention_mask=mask, use_cache=False).logits
                for i, index in enumerate(alive.nonzero().flatten().tolist()):
                    # Row by row: a float32 copy of all logits would double the peak memory.
                    nll = torch.nn.functional.cross_entropy(
                        logits[i, :-1].float(), piece[i, 1:].to(logits.device), reduction="none"
                    ).double()
                    for rule, keep in enumerate(valid[:, i].to(logits.device)):
                        nats[rule, index] += nll[keep].sum().cpu()
                scored[:, alive.cpu()] += valid.sum(-1).cpu()
        terms = [nats, scored, nats**2, nats * scored, scored**2, scored > 0, ~nats.isfinite()]
        self.sums += torch.stack([term.double().sum(1) for term in terms], 1).to(self.sums.device)


def _summary(sums: Sequence[float], samples: int) -> dict[str, Any]:
    """Perplexity of one rule with its standard error and counts, from the row of ``sums``."""
    nats, tokens, nats2, product, tokens2, scored, nonfinite = sums
    mean = nats / tokens if tokens else math.nan
    squares = max(nats2 - 2 * mean * product + mean**2 * tokens2, 0.0)  # sum of (a - mean b)^2
    spread = math.sqrt(squares * scored / (scored - 1)) / tokens if scored > 1 else math.nan
    # exp overflows where the mean is above 709 nats, and torch says inf
    perplexity = float(torch.tensor(mean, dtype=torch.float64).exp())
    return {
        "gen_ppl": perplexity,
        "standard_error": perplexity * spread,
        "token_count": int(tokens),
        "unscored_samples": samples - int(scored),
        "nonfinite_samples": int(nonfinite),
    }


def _pad(rows: list[Tensor], eos_ids: Sequence[int], device: torch.device) -> tuple[Tensor, Tensor]:
    """Rows to the longest of them with eos on the right: tokens and attention, ``[B, L]``."""
    longest = max(len(row) for row in rows)
    tokens = torch.full((len(rows), longest), eos_ids[0] if eos_ids else 0, dtype=torch.int64)
    attention = torch.zeros_like(tokens)
    for i, row in enumerate(rows):
        tokens[i, : len(row)] = row
        attention[i, : len(row)] = 1
    return tokens.to(device), attention.to(device)


def _pieces(
    tokens: Tensor, attention: Tensor, counted: Tensor, context: int
) -> Iterator[tuple[Tensor, Tensor, Tensor, Tensor]]:
    """Cut ``[B, L]`` into pieces of the evaluator's context; each piece's first token is unscored.

    Yields which rows still have real tokens ``[B]``, then their tokens and attention ``[b, l]``
    and which of tokens ``1 .. l-1`` count under each rule ``[R, b, l-1]``.
    """
    for start in range(0, tokens.shape[1], context):
        stop = min(start + context, tokens.shape[1])
        alive = attention[:, start] > 0
        if stop - start >= 2 and bool(alive.any()):
            yield (
                alive,
                tokens[alive, start:stop],
                attention[alive, start:stop],
                counted[:, alive, start : stop - 1],
            )
