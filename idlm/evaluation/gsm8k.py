"""GSM8K: the question as a clamped prompt, one completion, its number against the right one.

The protocol of TinyGSM-trained diffusion models (methods I.5): a row is bos, the question, a line
break, the program, eos and padding; the question is never noised.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from idlm.data.problems import Problem
from idlm.errors import UserError
from idlm.metrics.exact_match import ExactMatch
from idlm.sampling.generate import SAMPLING_DTYPE, generate

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from idlm.models import DiffusionLM

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
        keep: given all answers so far after every :data:`PART` problems.
        progress: show a bar of the sampler on stderr.

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
    nfe, seconds, answered = 0, 0.0, 0
    for start in range(0, len(problems), PART):
        asked = prompts[start : start + PART]
        rows: Iterator[list[int]] = iter(())
        if fitting := [prompt for prompt in asked if prompt is not None]:
            made = generate(
                model,
                length=length,
                steps=protocol.steps,
                prompt=fitting,
                temperature=protocol.temperature,
                top_p=protocol.top_p,
                seed=protocol.seed,
                first_index=answered,
                batch_size=protocol.batch_size,
                progress=progress,
            )
            rows = iter(made.tokens.tolist())
            nfe, seconds = max(nfe, made.nfe), seconds + made.seconds
            answered += len(fitting)
        for problem, prompt in zip(problems[start : start + PART], asked, strict=True):
            tokens = None if prompt is None else next(rows)[len(prompt) :]
            answers.append(_judged(problem, tokens, tokenizer, metric))
            if advance is not None:
                advance(1)
        if keep is not None:
            keep(answers)
    return {
        **metric.details(),
        "too_long": prompts.count(None),
        **_conditions(model, protocol, length),
        "nfe": nfe,
        "seconds": seconds,
        **metric.conditions(),
        "answers": answers,
    }


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
