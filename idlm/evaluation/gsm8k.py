"""GSM8K: the question as a clamped prompt, one completion, its number against the right one.

The protocol of TinyGSM-trained diffusion models (methods I.5): a row is bos, the question, a line
break, the program, eos and padding; the question is never noised.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from idlm.data.problems import Problem
from idlm.errors import UserError
from idlm.metrics.exact_match import ExactMatch
from idlm.sampling.generate import SAMPLING_DTYPE, GenerationOutput, generate

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from idlm.models import DiffusionLM

QUESTION = "{question}"
TEMPLATE = QUESTION + "\n"


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
        progress: show a bar of the sampler on stderr.

    Returns:
        The metric's details, the conditions, and under ``answers`` an object for each problem with
        completion and verdict.

    Raises:
        UserError: if no prompt fits, or for a request outside what the model can do.
    """
    length = protocol.length or model.config.model_length
    prompts = encode_prompts(problems, tokenizer, protocol, length)
    fitting = [prompt for prompt in prompts if prompt is not None]
    if not fitting:
        raise UserError(
            f"no question fits into length {length} with room for an answer; give more length"
        )
    made = generate(
        model,
        length=length,
        steps=protocol.steps,
        prompt=fitting,
        temperature=protocol.temperature,
        top_p=protocol.top_p,
        seed=protocol.seed,
        batch_size=protocol.batch_size,
        progress=progress,
    )
    rows = iter(made.tokens.tolist())
    metric.reset()
    answers = []
    for problem, prompt in zip(problems, prompts, strict=True):
        text = "" if prompt is None else completion_text(next(rows)[len(prompt) :], tokenizer)
        metric.update([text], [problem.answer])
        (verdict,) = metric.verdicts
        answers.append(
            {
                "index": problem.index,
                "completion": None if prompt is None else text,
                "wanted": str(problem.answer),
                "answered": None if verdict.number is None else str(verdict.number),
                "verdict": verdict.verdict,
                "how": verdict.how,
                "detail": "the prompt fills the row" if prompt is None else verdict.detail,
            }
        )
        if advance is not None:
            advance(1)
    return {
        **metric.details(),
        "too_long": len(prompts) - len(fitting),
        **_conditions(model, protocol, length, made),
        **metric.conditions(),
        "answers": answers,
    }


def completion_text(tokens: Sequence[int], tokenizer: PreTrainedTokenizerBase) -> str:
    """The text of what a model wrote up to its first eos or padding.

    A mask or state that is no token of the tokenizer's shows as ``[MASK]``, and spoils a program as
    it should.
    """
    from idlm.models.tokenizers import decode_row

    ends = {tokenizer.eos_token_id, tokenizer.pad_token_id}
    until = next((i for i, token in enumerate(tokens) if token in ends), len(tokens))
    return decode_row(tokenizer, list(tokens[:until]))


def _conditions(
    model: DiffusionLM, protocol: Protocol, length: int, made: GenerationOutput
) -> dict[str, Any]:
    return {
        "process": model.process.name,
        "steps": protocol.steps,
        "nfe": made.nfe,
        "length": length,
        "template": protocol.template,
        "bos": protocol.bos,
        "temperature": protocol.temperature,
        "top_p": protocol.top_p,
        "seed": protocol.seed,
        "sampling_dtype": SAMPLING_DTYPE,
        "network_dtype": str(model.dtype).removeprefix("torch."),
        "completions_per_problem": 1,
        "seconds": made.seconds,
    }
