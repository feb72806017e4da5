"""The likelihood of a continuation under a masked model, and whether greedy decoding finds it.

A masked model has no next-token probabilities. The likelihood of a continuation is bounded from
below by minus its NELBO given the context, here in the form that has the least noise (LLaDA,
arXiv 2502.09992)::

    - log p(y | c)  <=  E_n E_M [ |y| / n * sum over i in M of -log p(y_i | c, y without M) ]

n uniform on 1 .. |y|, M a uniform set of n positions of y. It equals the integral of MDLM's NELBO
over all times, from no masks to masks alone, with the number of masks in the place of the time:
of a single token there is nothing left to average.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from idlm import random
from idlm.errors import UserError
from idlm.models.modeling import DiffusionLM
from idlm.objectives.chunks import in_chunks
from idlm.processes import Absorbing
from idlm.random import Stream


class MaskedLikelihood:
    """Bounds of log p(continuation | context).

    Args:
        model: a denoiser of the absorbing process.
        samples: maskings per continuation; the more, the less noise.
        seed: of the maskings.
        batch_size: rows per forward pass; the value does not depend on it.

    Raises:
        UserError: if the model is no masked one.
    """

    def __init__(
        self, model: DiffusionLM, *, samples: int = 128, seed: int = 0, batch_size: int = 16
    ) -> None:
        process = model.process
        if not isinstance(process, Absorbing):
            raise UserError(
                f"the model's process is {process.name!r}; the likelihood of a continuation is "
                "defined here for masked models (absorbing)"
            )
        self.model, self._process, self._mask_id = model, process, process.mask_id
        self.samples, self.seed, self.batch_size = samples, seed, batch_size

    def nats(self, context: Sequence[int], target: Sequence[int], number: int) -> float:
        """The NELBO of the target given the context, in nats: the mean over ``samples`` maskings.

        Args:
            context: token ids before it, possibly none.
            target: token ids; 0.0 for none.
            number: of the request, which names the noise.

        Raises:
            UserError: if both do not fit into the model's context.
        """
        longest = self.model.config.model_length
        if len(context) + len(target) > longest:
            raise UserError(
                f"a continuation of {len(target)} tokens behind {len(context)} does not fit into "
                f"the model's context of {longest}"
            )
        if not target:
            return 0.0
        # a single token has a single masking, and n strata of counts are met by n samples
        samples = 1 if len(target) == 1 else self.samples
        total = 0.0
        for start in range(0, samples, self.batch_size):
            strata = torch.arange(start, min(start + self.batch_size, samples))
            total += float(self._maskings(context, target, number, strata, samples).sum())
        return total / samples

    @torch.no_grad()
    def is_greedy(self, context: Sequence[int], target: Sequence[int]) -> bool:
        """Whether decoding by the likeliest tokens, the surest first, gives the target."""
        row = torch.tensor([*context, *target], device=self.model.device)
        state = row.clone()
        state[len(context) :] = self._mask_id
        while bool((left := state == self._mask_id).any()):
            # times matter to conditioned networks alone: the share of the target that is masked
            hidden = self._features(state.unsqueeze(0), left.sum() / len(target))[0]
            log_probs = self._process.clean_log_probs(self.model.head(hidden[left]))
            surest = int(log_probs.max(-1).values.argmax())
            place = left.nonzero()[surest]
            if int(log_probs[surest].argmax()) != int(row[place]):
                return False
            state[place] = row[place]
        return True

    @torch.no_grad()
    def _maskings(
        self,
        context: Sequence[int],
        target: Sequence[int],
        number: int,
        strata: Tensor,
        samples: int,
    ) -> Tensor:
        """|y| / n times the nats at n masked positions, for some samples, float64 ``[S]``."""
        size = len(target)
        row = torch.tensor([*context, *target], device=self.model.device)
        sample = (number * samples + strata).to(row.device)
        key: dict[str, Any] = {"sample": sample, "seed": self.seed, "step": 0}
        offset = random.uniform(stream=Stream.TIME, **key)
        strata = strata.to(row.device)
        count = ((strata + offset) / samples * size).long().clamp(max=size - 1) + 1
        rank = random.uniform(size, stream=Stream.CORRUPT, **key).argsort(-1).argsort(-1)
        masked = torch.zeros(len(sample), len(row), dtype=torch.bool, device=row.device)
        masked[:, len(context) :] = rank < count.unsqueeze(-1)
        tokens = row.expand(len(sample), -1)
        states = torch.where(masked, self._mask_id, tokens)
        hidden = self._features(states, count / size)

        def nats(hidden: Tensor, x0: Tensor) -> tuple[Tensor]:
            log_p = self._process.clean_log_probs(self.model.head(hidden))
            return (-log_p.gather(-1, x0.unsqueeze(-1)).squeeze(-1).double(),)

        found = torch.zeros(masked.shape, dtype=torch.float64, device=row.device)
        size_v = self._process.vocab_size
        (found[masked],) = in_chunks(nats, hidden[masked], tokens[masked], numbers=size_v)
        return found.sum(-1) * size / count

    def _features(self, states: Tensor, share: Tensor) -> Tensor:
        """Features ``[B, L, D]`` at the times at which a share of all tokens is masked."""
        alpha = (1.0 - share.double()).clamp(min=0.0).reshape(-1)
        t = self._process.schedule.inverse(alpha).clamp(max=1.0)
        return self.model.features(states, self._process.schedule.sigma(t).expand(len(states)))


def rolling_windows(
    tokens: Sequence[int], prefix: Sequence[int], length: int
) -> list[tuple[list[int], list[int]]]:
    """Cut a text into pairs (given, scored) of at most ``length`` tokens, each scored once.

    Args:
        tokens: of the text.
        prefix: given before the first window.
        length: the model's context, more than 1.

    Returns:
        The last window is given as much of what is before it as fits; those between, one token.
    """
    whole = [*prefix, *tokens]
    windows, start = [], len(prefix)
    while start < len(whole):
        end = min(len(whole), start + length - min(start, 1))
        first = max(0, end - length)
        windows.append((whole[first:start], whole[start:end]))
        start = end
    return windows
