"""The oracle language: a text-like source whose likelihood, entropy and n-grams are exact.

    old dog ( birds often ) runs again emma . farmers [ small girl emma ] slowly sing . ...

An endless text is read up to L tokens. Word order is local, and three rules reach far:

* agreement: the verb has the number of its subject, past any nouns in brackets between them;
* bracket: ``(`` is closed by ``)`` and ``[`` by ``]``, any number of words later;
* name: every name in the text is the first one.

Within a class a word depends on the word before it. The state of the source is a function of the
tokens read so far (it is *unifilar*), so the likelihood is a product along one path, and the
entropy of L tokens a sum over the distribution of states, without sampling. The state that follows
is defined after impossible tokens too, so that rules that are broken can be counted. The file is
long because rules, states and exact quantities make sense only together.
"""

from __future__ import annotations

import itertools
from functools import cache

import torch
from torch import Tensor

from idlm import random
from idlm.errors import UserError
from idlm.sampling.categorical import draw as draw_categorical

KINDS = ("order", "agreement", "bracket", "name")
_FAR = {"verb": 1, "close": 2, "name": 3}

_ROOTS: dict[str, tuple[str, ...]] = {
    "name": ("anna", "ben", "clara", "david", "emma", "felix", "gina", "hugo"),
    "noun": ("dog", "bird", "farmer", "king", "girl", "tree", "river", "house"),
    "verb": ("run", "sleep", "sing", "wait", "fall", "grow", "shine", "laugh"),
    "adjective": ("old", "red", "small", "happy", "wild", "green", "tall", "poor"),
    "adverb": ("slowly", "often", "again", "here", "never", "away", "soon", "there"),
}
_START = "start"
# Where a sentence is: before its subject, between subject and verb, behind the verb.
_SUBJECT, _SINGULAR, _PLURAL, _END = range(4)
_PLACES = ("subject", "verb", "verb", "end")
# What follows a class at a place; "bracket" is any place inside one.
_RULES: dict[tuple[str, str], dict[str, float]] = {
    # a text may begin within a sentence, so that nothing marks its first position
    ("subject", _START): {
        "adjective": 0.15,
        "noun": 0.25,
        "verb": 0.15,
        "adverb": 0.2,
        "name": 0.1,
        "stop": 0.15,
    },
    ("subject", "stop"): {"adjective": 0.4, "noun": 0.6},
    ("subject", "adjective"): {"adjective": 0.2, "noun": 0.8},
    ("verb", "noun"): {"adverb": 0.25, "open": 0.3, "verb": 0.45},
    ("verb", "adverb"): {"adverb": 0.25, "open": 0.15, "verb": 0.6},
    ("verb", "close"): {"adverb": 0.2, "verb": 0.8},
    ("end", "verb"): {"adverb": 0.3, "noun": 0.15, "name": 0.3, "stop": 0.25},
    ("end", "noun"): {"adverb": 0.3, "name": 0.3, "stop": 0.4},
    ("end", "adverb"): {"adverb": 0.2, "name": 0.3, "stop": 0.5},
    ("end", "name"): {"adverb": 0.3, "stop": 0.7},
    ("bracket", "open"): {"adjective": 0.2, "noun": 0.4, "adverb": 0.4},
    ("bracket", "adjective"): {"adjective": 0.2, "noun": 0.8},
    ("bracket", "noun"): {"adverb": 0.3, "name": 0.2, "close": 0.5},
    ("bracket", "adverb"): {"adverb": 0.2, "noun": 0.3, "close": 0.5},
    ("bracket", "name"): {"adverb": 0.4, "close": 0.6},
}


def _follow(place: str, kind: str) -> dict[str, float]:
    """The rule; where there is none, as behind a mistake, that of the class at another place."""
    if place == "bracket":
        return _RULES.get((place, kind), _RULES["bracket", "adverb"])
    places = (place, "end", "verb", "subject", "bracket")
    return next(_RULES[p, kind] for p in places if (p, kind) in _RULES)


class OracleLanguage:
    """The source. Tokens are ``0 .. vocab_size - 1``; all probabilities are float64.

    Args:
        names, nouns, verbs, adjectives, adverbs: words of each class; nouns and verbs have a
            singular and a plural each.
        sharpness: how much a word depends on the one before: its log-weights are normal with this
            standard deviation, drawn once for the language. 0 for none.
        seed: of those weights.

    Attributes:
        words: the vocabulary.
        vocab_size: V; 42 by default.

    Raises:
        UserError: for a class without words or with more than there are, or a negative sharpness.
    """

    def __init__(
        self,
        *,
        names: int = 6,
        nouns: int = 6,
        verbs: int = 5,
        adjectives: int = 4,
        adverbs: int = 5,
        sharpness: float = 1.0,
        seed: int = 0,
    ) -> None:
        sizes = dict(zip(_ROOTS, (names, nouns, verbs, adjectives, adverbs), strict=True))
        for kind, size in sizes.items():
            if not 1 <= size <= len(_ROOTS[kind]):
                raise UserError(
                    f"{kind}s is {size}; the oracle language has 1 to {len(_ROOTS[kind])} of them"
                )
        if not 0.0 <= sharpness < float("inf"):
            raise UserError(f"sharpness is {sharpness}; it must be a number of 0 or more")
        # the class of every word, and for nouns, verbs and brackets which of the two forms it is
        lexicon: list[tuple[str, str, int]] = []
        for kind, size in sizes.items():
            for root in _ROOTS[kind][:size]:
                lexicon.append((root + "s" * (kind == "verb"), kind, 0))  # singular
                if kind in ("noun", "verb"):
                    lexicon.append((root + "s" * (kind == "noun"), kind, 1))
        lexicon += [("(", "open", 0), ("[", "open", 1), (")", "close", 0), ("]", "close", 1)]
        lexicon += [(".", "stop", 0)]
        self.words = tuple(word for word, _, _ in lexicon)
        self.vocab_size = len(lexicon)
        self._lexicon = lexicon
        # a state is its previous token (V for none) and these registers: place, bracket, name
        self._registers = list(itertools.product(range(4), range(3), range(names + 1)))
        self._start = self.vocab_size * len(self._registers)
        self._probs, self._breaks = self._rules(self._weights(sharpness, seed))
        effect = torch.stack([self._after(*registers) for registers in self._registers])
        self._next = effect.repeat(self.vocab_size + 1, 1)
        self._log_probs = self._probs.log()
        self._tables: dict[tuple[int, int], Tensor] = {}

    def _weights(self, sharpness: float, seed: int) -> Tensor:
        """Weight of each token behind each other, or behind none, ``[V + 1, V]``."""
        size = self.vocab_size
        normal = random.normal(
            size,
            sample=torch.arange(size + 1),
            seed=seed,
            step=0,
            stream=random.Stream.TOKEN,
            dtype=torch.float64,
        )
        return (sharpness * normal).exp()

    def _rules(self, weights: Tensor) -> tuple[Tensor, Tensor]:
        """Probability of each token in each state, and 0 or 1 + the rule it breaks, ``[S, V]``."""
        size, registers = self.vocab_size, self._registers
        kinds = [*(kind for _, kind, _ in self._lexicon), _START]
        behind = {kind: torch.tensor([k == kind for k in kinds]) for kind in set(kinds)}
        words = {kind: rows[:size] for kind, rows in behind.items()}
        probs = torch.zeros(size + 1, len(registers), size, dtype=torch.float64)
        broken = torch.ones(size + 1, len(registers), size, dtype=torch.int64)
        for r, (place, bracket, name) in enumerate(registers):
            fits = self._fits(words, place, bracket, name)
            for last, rows in behind.items():
                for kind, share in _follow("bracket" if bracket else _PLACES[place], last).items():
                    left = weights[rows] * (words[kind] & fits)
                    probs[rows, r] += share * left / left.sum(1, keepdim=True)
                    verdict = torch.where(fits, 0, 1 + _FAR.get(kind, 0))
                    broken[rows, r] = torch.where(words[kind], verdict, broken[rows, r])
        return probs.flatten(0, 1), broken.flatten(0, 1)

    def _fits(self, words: dict[str, Tensor], place: int, bracket: int, name: int) -> Tensor:
        """Which tokens the far rules allow, ``[V]``."""
        form = torch.tensor([form for _, _, form in self._lexicon])
        fits = torch.ones(self.vocab_size, dtype=torch.bool)
        if place in (_SINGULAR, _PLURAL):
            fits &= ~words["verb"] | (form == place - _SINGULAR)
        if bracket:
            fits &= ~words["close"] | (form == bracket - 1)
        if name:
            fits &= ~words["name"] | (torch.arange(self.vocab_size) == name - 1)
        return fits

    def _after(self, place: int, bracket: int, name: int) -> Tensor:
        """State after each token, ``[V]``: it takes its effect whether it was possible or not."""
        states = []
        for x, (_, kind, form) in enumerate(self._lexicon):
            after = [place, bracket, name]
            if kind == "noun" and place == _SUBJECT:
                after[0] = _SINGULAR + form
            elif kind == "verb":
                after[0] = _END
            elif kind == "open":
                after[1] = 1 + form
            elif kind == "close":
                after[1] = 0
            elif kind == "name" and not name:
                after[2] = x + 1  # names are the first tokens
            elif kind == "stop":
                after[:2] = [_SUBJECT, 0]
            states.append(
                x * len(self._registers) + self._registers.index((after[0], after[1], after[2]))
            )
        return torch.tensor(states)

    def text(self, tokens: Tensor) -> list[str]:
        """Words of rows, joined by spaces.

        Args:
            tokens: int ``[B, L]``.

        Returns:
            B texts.

        Raises:
            UserError: for tokens that are not of this vocabulary.
        """
        self._check(tokens)
        return [" ".join(self.words[x] for x in row) for row in tokens.tolist()]

    def _check(self, tokens: Tensor) -> None:
        if tokens.ndim != 2 or tokens.is_floating_point() or tokens.shape[1] < 1:
            raise UserError(
                f"tokens have shape {tuple(tokens.shape)} and dtype {tokens.dtype}; "
                "give integer rows [B, L] with L of 1 or more"
            )
        if len(tokens) and not 0 <= int(tokens.min()) <= int(tokens.max()) < self.vocab_size:
            raise UserError(
                f"tokens reach from {int(tokens.min())} to {int(tokens.max())}, but the oracle "
                f"language has the tokens 0 to {self.vocab_size - 1}; a mask is none of them"
            )

    def states(self, tokens: Tensor) -> Tensor:
        """The state before each token.

        Args:
            tokens: int ``[B, L]``, read from the start of a text.

        Returns:
            Numbers of states, int64 ``[B, L]``.

        Raises:
            UserError: for tokens that are not of this vocabulary.
        """
        self._check(tokens)
        state = torch.full((len(tokens),), self._start)
        states = []
        for x in tokens.unbind(1):
            states.append(state)
            state = self._next[state, x]
        return torch.stack(states, 1)

    def log_prob(self, tokens: Tensor, *, epsilon: float = 0.0) -> Tensor:
        """Log-likelihood of each row, in nats, float64 ``[B]``.

        Args:
            tokens: int ``[B, L]``, read from the start of a text.
            epsilon: smoothing: at every token the source is ``(1 - epsilon) p + epsilon / V``,
                again a distribution over all V^L rows. Each broken rule then costs
                ``log(V / epsilon)``; without smoothing it makes the row's value -inf.

        Returns:
            Nats, never above 0.

        Raises:
            UserError: for tokens that are not of this vocabulary, or epsilon outside [0, 1).
        """
        if not 0.0 <= epsilon < 1.0:
            raise UserError(f"epsilon is {epsilon}; it must be in [0, 1), 0 for no smoothing")
        p = self._probs[self.states(tokens), tokens]
        return ((1.0 - epsilon) * p + epsilon / self.vocab_size).log().sum(1)

    def violations(self, tokens: Tensor) -> Tensor:
        """Tokens that break a rule, counted by :data:`KINDS`.

        A token counts once if it is impossible after those before it: by word order, or for a
        verb, closing bracket or name that stands where one may, by its far rule. Later tokens are
        judged as if it were right, except that a text keeps its first name. A row has no violation
        exactly if its probability is not zero.

        Args:
            tokens: int ``[B, L]``, read from the start of a text.

        Returns:
            Counts of each row, int64 ``[B, 4]``.

        Raises:
            UserError: for tokens that are not of this vocabulary.
        """
        broken = self._breaks[self.states(tokens), tokens]
        return torch.stack([(broken == kind + 1).sum(1) for kind in range(len(KINDS))], 1)

    def sample(self, count: int, length: int, *, seed: int, first_index: int = 0) -> Tensor:
        """Exact samples.

        Args:
            count: number of rows.
            length: L, tokens of each.
            seed: of the noise.
            first_index: number of the first row; a row is a function of seed and number alone.

        Returns:
            Tokens, int64 ``[count, length]``.

        Raises:
            UserError: for a length below 1.
        """
        _check_length(length)
        index = torch.arange(first_index, first_index + count)
        noise = random.uniform(length, sample=index, seed=seed, step=0, stream=random.Stream.CHOICE)
        state = torch.full((count,), self._start)
        tokens = []
        for u in noise.unbind(1):
            x = draw_categorical(self._log_probs[state], u)
            tokens.append(x)
            state = self._next[state, x]
        return torch.stack(tokens, 1)

    def _occupation(self, length: int) -> Tensor:
        """Probability of each state before each token, ``[L, S]``."""
        _check_length(length)
        p = torch.zeros(len(self._probs), dtype=torch.float64)
        p[self._start] = 1.0
        rows = []
        for _ in range(length):
            rows.append(p)
            p = self._advance(p)
        return torch.stack(rows)

    def _advance(self, p: Tensor) -> Tensor:
        """States ``[..., S]`` after one more token; any leading shape."""
        flow = (p.unsqueeze(-1) * self._probs).flatten(-2)
        return torch.zeros_like(p).index_add_(-1, self._next.flatten(), flow)

    def entropy(self, length: int) -> float:
        """H(X_1 .. X_L), exactly: the sum over tokens of H(token | state before).

        Args:
            length: L.

        Returns:
            Nats of a whole row.

        Raises:
            UserError: for a length below 1.
        """
        return float((self._occupation(length) @ torch.special.entr(self._probs).sum(1)).sum())

    def marginals(self, length: int) -> Tensor:
        """Distribution of the token at each position.

        Args:
            length: L.

        Returns:
            Probabilities, float64 ``[L, V]``.

        Raises:
            UserError: for a length below 1.
        """
        return self._occupation(length) @ self._probs

    def ngrams(self, n: int, length: int) -> Tensor:
        """Exact distribution of a uniformly chosen n-gram of a row, float64 ``[V] * n``.

        Raises:
            UserError: if n is not 1, 2 or 3, or rows of this length hold none.
        """
        if n not in (1, 2, 3):
            raise UserError(f"n is {n}; n-gram tables are made for n of 1, 2 and 3")
        if length < n:
            raise UserError(f"rows of length {length} hold no {n}-gram; give a length of {n}")
        if (n, length) not in self._tables:
            self._tables[n, length] = self._ngrams(n, length)
        return self._tables[n, length]

    def _ngrams(self, n: int, length: int) -> Tensor:
        size = self.vocab_size
        p = self._occupation(length - n + 1).mean(0)
        if n == 1:
            return p @ self._probs
        # a state names its previous token: behind the first token of the n-gram, that is the first
        by_last = self._advance(p).reshape(size + 1, -1)[:size]
        probs = self._probs.reshape(size + 1, -1, size)[:size]
        if n == 2:
            return torch.einsum("xr,xry->xy", by_last, probs)
        first = torch.zeros(size, size + 1, by_last.shape[1], dtype=torch.float64)
        first[torch.arange(size), torch.arange(size)] = by_last
        second = self._advance(first.flatten(1)).reshape(size, size + 1, -1)[:, :size]
        return torch.einsum("xyr,yrz->xyz", second, probs)


def _check_length(length: int) -> None:
    if length < 1:
        raise UserError(f"length is {length}; a text has at least 1 token")


@cache
def oracle_language() -> OracleLanguage:
    """The language of ``idlm bench oracle``, built once."""
    return OracleLanguage()
