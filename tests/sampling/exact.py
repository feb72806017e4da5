"""The exact law of every sampler on a tiny vocabulary, by walking the tree of its states.

Written from the definitions alone, in plain Python on float64; nothing of ``idlm.sampling`` is
used. V = 3 tokens and the mask, so that confidence, entropy and margin rank differently.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Sequence
from functools import lru_cache
from itertools import combinations, product

import torch
from torch import Tensor

from idlm.models import DiffusionLM

MASK = 3
State = tuple[int, ...]
Law = dict[State, float]


def alpha(t: float) -> float:
    return 1.0 - 0.999 * t


def reshaped(p: Sequence[float], temperature: float, top_p: float) -> list[float]:
    """Temperature, then the smallest set of most probable tokens that reaches ``top_p``."""
    p = [x ** (1.0 / temperature) for x in p]
    p = [x / sum(p) for x in p]
    kept, mass = set(), 0.0
    for token in sorted(range(len(p)), key=lambda v: -p[v]):
        if mass >= top_p:
            break
        kept.add(token)
        mass += p[token]
    return [x / mass if v in kept else 0.0 for v, x in enumerate(p)]


def certainty(p: Sequence[float], order: str) -> float:
    if order == "confidence":
        return max(p)
    if order == "entropy":
        return sum(x * math.log(x) for x in p)
    first, second, _ = sorted(p, reverse=True)
    return first - second


def surest(ranks: dict[int, float], due: int) -> list[tuple[set[int], float]]:
    """Which ``due`` positions come first, and how likely: equals are in random order."""
    groups: list[list[int]] = []
    for i in sorted(ranks, key=lambda i: -ranks[i]):
        gap = ranks[groups[-1][0]] - ranks[i] if groups else 1.0
        assert gap < 1e-12 or gap > 1e-6, "neither equal nor clearly different"
        if gap > 1e-6:
            groups.append([])
        groups[-1].append(i)
    chosen: set[int] = set()
    for group in groups:
        if len(chosen) + len(group) > due:
            ways = list(combinations(group, due - len(chosen)))
            return [(chosen | set(way), 1.0 / len(ways)) for way in ways]
        chosen |= set(group)
    return [(chosen, 1.0)]


class Exact:
    """Laws of the states of one model.

    Args:
        model: V = 3 and the mask, in float64, without latent.
        steps: N.
        order: of revealing.
        temperature: of the drawn tokens.
        top_p: of the drawn tokens.
    """

    def __init__(
        self,
        model: DiffusionLM,
        steps: int,
        *,
        order: str = "random",
        temperature: float = 1.0,
        top_p: float = 1.0,
    ) -> None:
        self.model, self.steps, self.order = model, steps, order
        self.temperature, self.top_p = temperature, top_p
        self.predict = lru_cache(maxsize=None)(self._predict)

    @torch.no_grad()
    def _predict(self, state: State, t: float) -> list[list[float]]:
        """Probabilities of the clean tokens at every position."""
        sigma = torch.tensor([-math.log(alpha(t))], dtype=torch.float64)
        logits = self.model(torch.tensor([state]), timesteps=sigma).logits[0, :, :MASK]
        return torch.softmax(logits, -1).tolist()

    def step(self, now: Law, number: int, due: int) -> Law:
        """The law after a step; ``due`` positions reveal unless chance decides."""
        t, s = 1.0 - number / self.steps, 1.0 - (number + 1) / self.steps
        show = (alpha(s) - alpha(t)) / (1.0 - alpha(t))
        after: Law = defaultdict(float)
        for state, chance in now.items():
            masked = [i for i, token in enumerate(state) if token == MASK]
            p = self.predict(state, t)
            if self.order != "random":
                subsets = surest({i: certainty(p[i], self.order) for i in masked}, due)
            else:
                subsets = [
                    (
                        {i for i, yes in zip(masked, coins, strict=True) if yes},
                        math.prod(show if yes else 1.0 - show for yes in coins),
                    )
                    for coins in product((True, False), repeat=len(masked))
                ]
            for chosen, weight in subsets:
                laws = [
                    list(enumerate(reshaped(p[i], self.temperature, self.top_p)))
                    if i in chosen
                    else [(token, 1.0)]
                    for i, token in enumerate(state)
                ]
                for draw in product(*laws):
                    probability = chance * weight * math.prod(x for _, x in draw)
                    if probability:
                        after[tuple(token for token, _ in draw)] += probability
        return dict(after)

    def walk(self, start: State) -> list[Law]:
        """The law of the states after every step from ``start``."""
        total, now, laws = start.count(MASK), {start: 1.0}, []
        for number in range(self.steps):
            before, after = (round(total * (number + k) / self.steps) for k in (0, 1))
            now = self.step(now, number, after - before)
            laws.append(now)
        return laws

    def windows(self, start: State, context: int, stride: int) -> Law:
        """The law of the text at the end, written window after window."""
        now: Law = {start: 1.0}
        for first in range(0, max(len(start) - context, 0) + stride, stride):
            after: Law = defaultdict(float)
            for text, chance in now.items():
                window = text[first : first + context]
                end = self.walk(window)[-1] if MASK in window else {window: 1.0}
                for part, weight in end.items():
                    after[text[:first] + part + text[first + context :]] += chance * weight
            now = dict(after)
        return now


def stopped(law: Law, stop: int, start: State) -> Law:
    """Each text up to the first ``stop`` that was not given; the stop token fills the rest."""
    cut: Law = defaultdict(float)
    for text, chance in law.items():
        ends = [i for i, token in enumerate(text) if token == stop and start[i] == MASK]
        text = text[: ends[0]] + (stop,) * (len(text) - ends[0]) if ends else text
        cut[text] += chance
    return dict(cut)


LEVEL = 1e-3


def chance_of_more(statistic: float, freedom: int) -> float:
    """How likely chi-square is to exceed ``statistic``: the upper incomplete gamma function."""
    half = torch.tensor([freedom / 2, statistic / 2], dtype=torch.float64)
    return float(torch.special.gammaincc(half[0], half[1]))


def count(rows: Tensor) -> dict[State, int]:
    """How often each state is among rows ``[N, L]``."""
    length = rows.shape[1]
    digits = (MASK + 1) ** torch.arange(length - 1, -1, -1)
    counts = torch.bincount((rows * digits).sum(1), minlength=(MASK + 1) ** length).tolist()
    states = product(range(MASK + 1), repeat=length)
    return {state: n for state, n in zip(states, counts, strict=True) if n}


def agrees(seen: dict[State, int], law: Law) -> bool:
    """Whether counts pass Pearson's test against a law at :data:`LEVEL`.

    A state that the law excludes fails at once; states expected fewer than five times are one
    cell, as the test asks.
    """
    assert abs(sum(law.values()) - 1.0) < 1e-12
    n = sum(seen.values())
    if any(law.get(state, 0.0) == 0.0 for state in seen):
        return False
    often = [state for state, chance in law.items() if chance * n >= 5]
    cells = [(seen.get(state, 0), law[state] * n) for state in often]
    rest = (n - sum(count for count, _ in cells), n - sum(expected for _, expected in cells))
    if rest[1] >= 5:
        cells.append(rest)
    statistic = sum((count - expected) ** 2 / expected for count, expected in cells)
    return len(cells) == 1 or chance_of_more(statistic, len(cells) - 1) > LEVEL
