"""The LM Evaluation Harness (the extra ``lm-eval``) on masked diffusion models, as model ``idlm``.

The work is in :class:`MaskedHarness`, which knows nothing of the harness but the shape of its
requests; :func:`register` makes the class that the harness is given.
"""

from __future__ import annotations

import functools
import logging
import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from idlm.errors import UserError
from idlm.evaluation.masked_likelihood import MaskedLikelihood, rolling_windows
from idlm.models.modeling import DiffusionLM
from idlm.sampling.generate import generate

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

NAME = "idlm"
# What the harness's command line asks for when the user asked for nothing.
_HARNESS_DEVICE = "cuda:0"
log = logging.getLogger(__name__)


class MaskedHarness:
    """Answers the three kinds of requests of the harness with a masked diffusion model.

    Args:
        checkpoint: folder, bundled name, hub id or Lightning file; or a model in memory, with
            ``tokenizer``.
        tokenizer: its tokenizer; the checkpoint's own if not given.
        revision: hub revision of the checkpoint.
        samples: maskings per likelihood; the last digit that can be trusted depends on it.
        steps: sampler steps of a generation.
        temperature: of generations: the tasks ask for greedy decoding, which a diffusion sampler
            has no equal of, so that this holds unless a task asks for sampling at another.
        top_p: nucleus of generations, alike.
        max_gen_toks: tokens of a generation where the task does not say.
        seed: of maskings and generations.
        batch_size: rows per forward pass.
        device: cpu, cuda, ...; a GPU if there is one.

    Raises:
        UserError: if the model is no masked one, or a number is out of range.
    """

    def __init__(
        self,
        checkpoint: str | DiffusionLM,
        *,
        tokenizer: Any = None,
        revision: str | None = None,
        samples: int = 128,
        steps: int = 64,
        temperature: float = 1.0,
        top_p: float = 1.0,
        max_gen_toks: int = 256,
        seed: int = 0,
        batch_size: int | str = 16,
        device: str | None = None,
    ) -> None:
        super().__init__()
        for name, value in (("samples", samples), ("steps", steps), ("max_gen_toks", max_gen_toks)):
            if value < 1:
                raise UserError(f"{name} is {value}; it must be 1 or more")
        if not str(batch_size).isdecimal() or int(batch_size) < 1:
            raise UserError(
                f"batch_size is {batch_size!r}; give the rows per forward pass, such as 16"
            )
        self.model, self.tokenizer = _open(checkpoint, tokenizer, revision, device)
        self.checkpoint = checkpoint if isinstance(checkpoint, str) else "in memory"
        self.steps, self.seed = steps, seed
        self.temperature, self.top_p, self.max_gen_toks = temperature, top_p, max_gen_toks
        self.likelihood = MaskedLikelihood(
            self.model, samples=samples, seed=seed, batch_size=int(batch_size)
        )

    @property
    def tokenizer_name(self) -> str:
        """What the harness names its caches by."""
        return str(self.tokenizer.name_or_path).replace("/", "__")

    def get_model_info(self) -> dict[str, Any]:
        """The conditions, which the harness writes into its results."""
        return {
            "checkpoint": self.checkpoint,
            "likelihood": "lower bound: minus the NELBO of the continuation given the context",
            "samples": self.likelihood.samples,
            "steps": self.steps,
            "temperature": self.temperature,
            "top_p": self.top_p,
            "seed": self.seed,
            "sampling_dtype": "float64",
            "network_dtype": str(self.model.dtype).removeprefix("torch."),
        }

    def loglikelihood(
        self, requests: Sequence[Any], disable_tqdm: bool = False
    ) -> list[tuple[float, bool]]:
        """A bound of log p(continuation | context) and whether greedy decoding finds it.

        Greedy decoding: from all of the continuation masked, the surest position is given its
        likeliest token, one at a time. What does not fit into the model's context is cut off the
        context's beginning; a continuation that does not fit alone is scored in windows.

        Args:
            requests: with ``args`` (context, continuation).
            disable_tqdm: show no bar.

        Returns:
            Nats, never positive, and the flag, for each request.
        """
        found, length = [], self.model.config.model_length
        for number, request in enumerate(self._bar(requests, "likelihoods", disable_tqdm)):
            context, target = self._encode_pair(*request.args)
            windows = rolling_windows(target, context, length)
            nats = math.fsum(self.likelihood.nats(*window, number) for window in windows)
            value = (-nats, all(self.likelihood.is_greedy(*window) for window in windows))
            self._remember("loglikelihood", request, value)
            found.append(value)
        return found

    def loglikelihood_rolling(
        self, requests: Sequence[Any], disable_tqdm: bool = False
    ) -> list[float]:
        """A bound of log p(text), in windows of the context, each token scored once.

        The first window is conditioned on the bos (else eos) token, later ones on what is before
        them, as far as it fits.

        Args:
            requests: with ``args`` (text,).
            disable_tqdm: show no bar.

        Returns:
            Nats, never positive, for each request.
        """
        found = []
        for number, request in enumerate(self._bar(requests, "texts", disable_tqdm)):
            tokens = self._encode(request.args[0])
            windows = rolling_windows(tokens, self._prefix(), self.model.config.model_length)
            value = -math.fsum(self.likelihood.nats(*window, number) for window in windows)
            self._remember("loglikelihood_rolling", request, value)
            found.append(value)
        return found

    def generate_until(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[str]:
        """Continue each context by at most ``max_gen_toks`` tokens, cut at the first stop text.

        Args:
            requests: with ``args`` (context, settings): ``until``, ``max_gen_toks``, and if
                ``do_sample`` is set ``temperature`` and ``top_p``.
            disable_tqdm: show no bar.

        Raises:
            UserError: if a task samples at a temperature or nucleus that no sampler has, such as 0.
        """
        for request in requests:  # before hours of generation
            self._drawing(request.args[1])
        found = []
        for number, request in enumerate(self._bar(requests, "generations", disable_tqdm)):
            context, settings = request.args
            value = self._continue(context, dict(settings), number)
            self._remember("generate_until", request, value)
            found.append(value)
        return found

    def _continue(self, context: str, settings: dict[str, Any], number: int) -> str:
        longest = self.model.config.model_length
        room = int(settings.get("max_gen_toks") or self.max_gen_toks)
        if room >= longest:
            room = max(1, longest // 2)
            log.warning("at most %d tokens are generated: the context has %d", room, longest)
        prompt = (self._encode(context) or self._prefix())[-(longest - room) :]
        temperature, top_p = self._drawing(settings)
        made = generate(
            self.model,
            steps=self.steps,
            infill=[[*prompt, *[None] * room]],
            temperature=temperature,
            top_p=top_p,
            seed=self.seed,
            first_index=number,
        )
        from idlm.evaluation.gsm8k import completion_text

        text = completion_text(made.tokens[0, len(prompt) :].tolist(), self.tokenizer)
        until = settings.get("until") or []
        for stop in [until] if isinstance(until, str) else until:
            text = text.partition(stop)[0] if stop else text
        return text

    def _drawing(self, settings: Mapping[str, Any]) -> tuple[float, float]:
        """Temperature and nucleus of a request: the task's where it samples and names them."""
        asked = settings if settings.get("do_sample") else {}
        temperature, top_p = (
            float(own if asked.get(name) is None else asked[name])
            for name, own in (("temperature", self.temperature), ("top_p", self.top_p))
        )
        if not (temperature > 0 and 0 < top_p <= 1):
            raise UserError(
                f"the task samples at temperature {temperature:g} and top_p {top_p:g}; a diffusion "
                "sampler needs a temperature above 0 and a top_p in (0, 1] and has no "
                "greedy decoding: change them, or set do_sample: false in the task for the model's "
                "own temperature"
            )
        return temperature, top_p

    def _encode(self, text: str) -> list[int]:
        return list(self.tokenizer.encode(text, add_special_tokens=False))

    def _prefix(self) -> list[int]:
        """What stands before a text that has nothing before it."""
        first = self.tokenizer.bos_token_id
        first = self.tokenizer.eos_token_id if first is None else first
        return [] if first is None else [int(first)]

    def _encode_pair(self, context: str, continuation: str) -> tuple[list[int], list[int]]:
        """Ids of both as the tokenizer cuts them together; spaces go with the word behind them."""
        stripped = context.rstrip()
        context, continuation = stripped, context[len(stripped) :] + continuation
        if not context:
            return self._prefix(), self._encode(continuation)
        before = self._encode(context)
        return before, self._encode(context + continuation)[len(before) :]

    def _bar(self, requests: Sequence[Any], what: str, hidden: bool) -> Any:
        from rich.console import Console
        from rich.progress import track

        return track(requests, what, console=Console(stderr=True), transient=True, disable=hidden)

    def _remember(self, kind: str, request: Any, value: Any) -> None:
        """Tell the harness's cache, where there is one."""
        hook = getattr(self, "cache_hook", None)
        if hook is not None:
            hook.add_partial(kind, request.args, value)


@functools.cache
def register() -> type:
    """Register the model ``idlm`` with the harness; returns its class.

    Raises:
        UserError: if the harness is not installed.
    """
    try:
        from lm_eval.api.model import LM
        from lm_eval.api.registry import register_model
    except ImportError as error:
        raise UserError(
            f"the LM Evaluation Harness is not installed ({error}); pip install 'idlm[lm-eval]'"
        ) from error
    made: type = register_model(NAME)(type("IdlmLM", (MaskedHarness, LM), {"__doc__": __doc__}))
    return made


def _open(
    checkpoint: str | DiffusionLM, tokenizer: Any, revision: str | None, device: str | None
) -> tuple[DiffusionLM, PreTrainedTokenizerBase]:
    import torch

    import idlm
    from idlm.devices import pick_device
    from idlm.models import load_tokenizer

    if device == _HARNESS_DEVICE and not torch.cuda.is_available():
        log.warning("there is no GPU: the harness's default device %s becomes cpu", device)
        device = "cpu"
    if isinstance(checkpoint, str):
        model = idlm.load(checkpoint, revision=revision, device=pick_device(device))
        if tokenizer is None or isinstance(tokenizer, str):
            own = None if tokenizer else revision
            tokenizer = load_tokenizer(tokenizer or checkpoint, revision=own)
    else:
        model = checkpoint.eval()
    if tokenizer is None:
        raise UserError("a model in memory has no tokenizer; give tokenizer=")
    return model, tokenizer
