"""GSM8K: the question as a clamped prompt, one completion, its number against the right one.

The protocol of TinyGSM-trained diffusion models (methods I.5): a row is bos, the question, a line
break, the program, eos and padding; the question is never noised.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

from idlm.data.problems import Problem
from idlm.errors import UserError
from idlm.metrics.exact_match import ExactMatch
from idlm.metrics.sharing import kept_apart
from idlm.sampling.generate import SAMPLING_DTYPE, generate

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from idlm.models import DiffusionLM
    from idlm.sampling.sharded import Processes

T = TypeVar("T")

QUESTION = "{question}"
TEMPLATE = QUESTION + "\n"
# Problems that are generated, judged and handed on together: what an interruption may cost.
PART = 128


@dataclass(frozen=True)
class Protocol:
    """How problems are put to a model.

    Attributes:
        steps: sampler steps.
        length: tokens of a row, the question included; the model's context if None.
        template: what a prompt is made of, with ``{question}`` in it.
        bos: whether a prompt begins with the tokenizer's bos token.
        temperature: divides the logits.
        top_p: nucleus.
        seed: the i-th problem that fits is answered with the randomness of (seed, i) alone.
        batch_size: problems in flight; chosen from the length if None.
    """

    steps: int = 16
    length: int | None = None
    template: str = TEMPLATE
    bos: bool = True
    temperature: float = 1.0
    top_p: float = 1.0
    seed: int = 0
    batch_size: int | None = None

    def __post_init__(self) -> None:
        if QUESTION not in self.template:
            raise UserError(
                f"the template is {self.template!r}; it needs {QUESTION} where the question goes"
            )


def encode_prompts(
    problems: Sequence[Problem],
    tokenizer: PreTrainedTokenizerBase,
    protocol: Protocol,
    length: int,
) -> list[list[int] | None]:
    """The prompt of each problem as token ids; None for one that leaves no room for an answer.

    Raises:
        UserError: if ``bos`` is asked of a tokenizer without one.
    """
    if protocol.bos and tokenizer.bos_token_id is None:
        raise UserError("the tokenizer has no bos token to begin a prompt with; give --no-bos")
    prompts: list[list[int] | None] = []
    for problem in problems:
        text = protocol.template.replace(QUESTION, problem.question)
        ids = tokenizer.encode(text, add_special_tokens=False)
        if protocol.bos:
            ids = [int(tokenizer.bos_token_id), *ids]
        prompts.append(ids if len(ids) < length else None)
    return prompts


def answer_problems(
    model: DiffusionLM,
    tokenizer: PreTrainedTokenizerBase,
    problems: Sequence[Problem],
    protocol: Protocol,
    metric: ExactMatch,
    *,
    advance: Callable[[int], None] | None = None,
    keep: Callable[[list[dict[str, Any]]], None] | None = None,
    progress: bool = False,
    processes: Processes | None = None,
) -> dict[str, Any]:
    """Generate one completion for each problem and judge it.

    A problem whose prompt fills the row counts as one that was not answered, and is told as
    ``too_long``.

    Args:
        model: of either process.
        tokenizer: of the checkpoint.
        problems: one or more.
        protocol: how they are put.
        metric: reset here and used.
        advance: told how many completions were just judged.
        keep: given all answers so far after every :data:`PART` problems of each process.
        progress: show a bar of the sampler on stderr.
        processes: of a launch, which share the problems; each gets all answers.

    Returns:
        The metric's details, the conditions, and under ``answers`` an object for each problem with
        completion and verdict.

    Raises:
        UserError: if no prompt fits, or for a request outside what the model can do.
    """
    length = protocol.length or model.config.model_length
    prompts = encode_prompts(problems, tokenizer, protocol, length)
    if all(prompt is None for prompt in prompts):
        raise UserError(
            f"no question fits into length {length} with room for an answer; give more length"
        )
    metric.reset()
    answers: list[dict[str, Any]] = []
    nfe, seconds = 0, 0.0
    part = PART * (1 if processes is None else processes.count)

    def answer(places: range) -> tuple[list[dict[str, Any]], int, float]:
        rows, calls, took = _completions(model, prompts, places, protocol, length, progress)
        found = []
        for place, row in zip(places, rows, strict=True):
            found.append(_judged(problems[place], row, tokenizer, metric))
            if advance is not None:
                advance(1)
        return found, calls, took

    for start in range(0, len(problems), part):
        places = range(start, min(start + part, len(problems)))
        made = _shared(processes, places, answer, advance)
        answers += [one for found, _, _ in made for one in found]
        nfe = max(nfe, *(calls for _, calls, _ in made))
        seconds += max(took for _, _, took in made)
        if keep is not None:
            keep(answers)
    _count_all(metric, processes)
    return {
        **metric.details(),
        "too_long": prompts.count(None),
        **_conditions(model, protocol, length),
        "nfe": nfe,
        "seconds": seconds,
        **metric.conditions(),
        "answers": answers,
    }


def _completions(
    model: DiffusionLM,
    prompts: Sequence[list[int] | None],
    places: range,
    protocol: Protocol,
    length: int,
    progress: bool,
) -> tuple[list[list[int] | None], int, float]:
    """Completions of the problems at ``places`` (None without room), network calls, seconds."""
    asked = [prompts[place] for place in places]
    fitting = [prompt for prompt in asked if prompt is not None]
    if not fitting:
        return [None] * len(asked), 0, 0.0
    made = generate(
        model,
        length=length,
        steps=protocol.steps,
        prompt=fitting,
        temperature=protocol.temperature,
        top_p=protocol.top_p,
        seed=protocol.seed,
        # those that fit are counted, whoever answers them
        first_index=sum(prompt is not None for prompt in prompts[: places.start]),
        batch_size=protocol.batch_size,
        progress=progress,
    )
    rows = iter(made.tokens.tolist())
    found = [None if prompt is None else next(rows)[len(prompt) :] for prompt in asked]
    return found, made.nfe, made.seconds


def _shared(
    processes: Processes | None,
    places: range,
    work: Callable[[range], T],
    advance: Callable[[int], None] | None,
) -> list[T]:
    """What ``work`` makes of each process's share of ``places``, in order, on every process."""
    if processes is None or processes.count == 1:
        return [work(places)]
    from idlm.sampling.sharded import share

    mine = share(len(places), processes.index, processes.count)
    made = processes.gather(processes.together(lambda: work(places[mine.start : mine.stop])))
    if advance is not None:
        advance(len(places) - len(mine))
    return made


def _count_all(metric: ExactMatch, processes: Processes | None) -> None:
    """Give every process the counts of all."""
    if processes is None:
        return
    kept_apart(metric)
    counts = processes.gather(metric.verdict_counts.tolist())
    total = [sum(column) for column in zip(*counts, strict=True)]
    metric.verdict_counts = metric.verdict_counts.new_tensor(total)
    metric._update_count += 1  # torchmetrics warns of results without an update


def _judged(
    problem: Problem,
    tokens: Sequence[int] | None,
    tokenizer: PreTrainedTokenizerBase,
    metric: ExactMatch,
) -> dict[str, Any]:
    """The entry of one problem; ``tokens`` are None where there was no room for a completion."""
    text = "" if tokens is None else encodable(completion_text(tokens, tokenizer))
    metric.update([text], [problem.answer])
    (verdict,) = metric.verdicts
    return {
        "index": problem.index,
        "completion": None if tokens is None else text,
        "wanted": str(problem.answer),
        "answered": None if verdict.number is None else str(verdict.number),
        "verdict": verdict.verdict,
        "how": verdict.how,
        "detail": "the prompt fills the row" if tokens is None else encodable(verdict.detail),
    }


def encodable(text: str) -> str:
    r"""The text with lone surrogates, which UTF-8 has no bytes for, as ``\udc80``."""
    return text.encode("utf-8", "backslashreplace").decode("utf-8")


def completion_text(tokens: Sequence[int], tokenizer: PreTrainedTokenizerBase) -> str:
    """The text of what a model wrote up to its first eos or padding.

    A mask or state that is no token of the tokenizer's shows as ``[MASK]``, and spoils a program as
    it should.
    """
    from idlm.models.tokenizers import decode_row

    ends = {tokenizer.eos_token_id, tokenizer.pad_token_id}
    until = next((i for i, token in enumerate(tokens) if token in ends), len(tokens))
    return decode_row(tokenizer, list(tokens[:until]))


def _conditions(model: DiffusionLM, protocol: Protocol, length: int) -> dict[str, Any]:
    return {
        "process": model.process.name,
        "steps": protocol.steps,
        "length": length,
        "template": protocol.template,
        "bos": protocol.bos,
        "temperature": protocol.temperature,
        "top_p": protocol.top_p,
        "seed": protocol.seed,
        "sampling_dtype": SAMPLING_DTYPE,
        "network_dtype": str(model.dtype).removeprefix("torch."),
        "completions_per_problem": 1,
    }
