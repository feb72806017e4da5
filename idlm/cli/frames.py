"""A sample being written, as an iterator: what a page shows while the sampler works."""

from __future__ import annotations

import threading
import time
from collections.abc import Generator
from queue import SimpleQueue
from typing import TYPE_CHECKING, Any, NamedTuple

from idlm.cli.watch import Pieces

if TYPE_CHECKING:
    from idlm.models import DiffusionLM
    from idlm.sampling import StepState

GIVEN, NEW, MASKED = "given", "new in this call", "not yet written"
SHADE = "░"


class Frame(NamedTuple):
    """A sample after a network call.

    Attributes:
        spans: runs of its text in order, each with its kind: :data:`GIVEN`, :data:`NEW`,
            :data:`MASKED`, or None for what earlier calls wrote.
        calls: network calls so far.
        written: tokens that stand there, given ones not counted.
        seconds: since the sampler began.
        entropy: of the tokens (unigrams, nats) once all are written, else None.
    """

    spans: list[tuple[str, str | None]]
    calls: int
    written: int
    seconds: float
    entropy: float | None


def frames(
    model: DiffusionLM, tokenizer: Any, *, prompt: str = "", **request: Any
) -> Generator[Frame, None, None]:
    """Write one sample and give its state after every step.

    The sampler runs in a thread of its own and stops at its next step when the iterator is closed.

    Args:
        model: the network.
        tokenizer: of its checkpoint.
        prompt: what the sample begins with; empty for none.
        request: further arguments of :func:`idlm.generate` (length, steps, temperature, seed).

    Raises:
        UserError: for a request outside what the model can do.
    """
    import idlm
    from idlm.sampling.text_rows import encoder

    given = encoder(model, tokenizer, "prompt")(prompt).tolist() if prompt else []
    states: SimpleQueue[tuple[list[int], int, float] | Exception | None] = SimpleQueue()
    closed = threading.Event()

    def look(state: StepState) -> None:
        if closed.is_set():
            raise _ClosedError
        states.put((state.tokens[0].tolist(), state.nfe, time.perf_counter() - started))

    def write() -> None:
        try:
            idlm.generate(model, prompt=given or None, callback=look, **request)
            states.put(None)
        except _ClosedError:
            pass
        except Exception as error:  # noqa: BLE001 - told where the frames are read
            states.put(error)

    pieces, before = Pieces(tokenizer), None
    started = time.perf_counter()
    writer = threading.Thread(target=write, daemon=True)
    writer.start()
    try:
        while (found := states.get()) is not None:
            if isinstance(found, Exception):
                raise found
            tokens, calls, seconds = found
            yield _frame(model, pieces, tokens, before, len(given), calls, seconds)
            before = tokens
    finally:
        closed.set()
        writer.join()


class _ClosedError(Exception):
    """Nobody looks any more."""


def _frame(
    model: DiffusionLM,
    pieces: Pieces,
    tokens: list[int],
    before: list[int] | None,
    given: int,
    calls: int,
    seconds: float,
) -> Frame:
    import torch

    from idlm.metrics import Entropy

    mask = model.process.mask_id
    kinds: list[str | None] = []
    for position, token in enumerate(tokens):
        if position < given:
            kinds.append(GIVEN)
        elif token == mask:
            kinds.append(MASKED)
        else:
            kinds.append(NEW if before is None or before[position] != token else None)
    texts = pieces.texts([None if token == mask else token for token in tokens])
    spans: list[tuple[str, str | None]] = []
    for text, kind in zip(texts, kinds, strict=True):
        text = SHADE if kind == MASKED else text
        if spans and spans[-1][1] == kind:
            spans[-1] = (spans[-1][0] + text, kind)
        elif text:
            spans.append((text, kind))
    left, entropy = kinds.count(MASKED), None
    if left == 0:
        metric = Entropy()
        metric.update(torch.tensor([tokens]))
        entropy = float(metric.compute())
    return Frame(spans, calls, len(tokens) - given - left, seconds, entropy)
