"""What cannot be generated is refused before any work, in one sentence."""

from __future__ import annotations

from numbers import Integral, Real

from idlm.errors import UserError
from idlm.models.modeling import DiffusionLM
from idlm.processes import Absorbing, Uniform
from idlm.sampling.base import (
    ANCESTRAL,
    FLOAT32,
    FLOAT64,
    RANDOM,
    SAMPLING_DTYPES,
    TAILS,
    Sampler,
)
from idlm.sampling.orders import ORDERS
from idlm.sampling.registry import sampler_for

# Noise is keyed by 64 bits of the seed: a larger one would be another in disguise.
_SEEDS = 1 << 64
# 128 GiB of token ids: what is beyond is a slip of the keyboard.
_MOST_TOKENS = 1 << 34
# Noise of a million levels is finer than any network tells apart.
_MOST_STEPS = 1 << 20


def check_request(
    model: DiffusionLM,
    *,
    num_samples: int,
    length: int,
    steps: int,
    temperature: float,
    top_p: float,
    batch_size: int | None,
    order: str = RANDOM,
    tail: str = ANCESTRAL,
    sampling_dtype: str = FLOAT64,
    stride: int | None = None,
    first_index: int = 0,
    seed: int | None = None,
    sampler: Sampler | None = None,
) -> None:
    """Refuse numbers that make no sense, or that the model cannot follow.

    Raises:
        UserError: naming the value, what is allowed and what to do.
    """
    if sampling_dtype not in SAMPLING_DTYPES:
        raise UserError(
            f"sampling_dtype is {sampling_dtype!r}; choose one of {', '.join(SAMPLING_DTYPES)}"
        )
    if sampler is None:
        sampler_for(model.process, sampling_dtype)
    elif sampling_dtype != FLOAT64:
        raise UserError(
            f"sampling_dtype is {sampling_dtype!r}, which chooses another sampler, but one is "
            "given; leave sampling_dtype or sampler out"
        )
    for name, value in (("num_samples", num_samples), ("steps", steps), ("length", length)):
        _check_whole(name, value, 1)
    if steps > _MOST_STEPS:
        raise UserError(
            f"steps is {steps}; at most {_MOST_STEPS} make a difference, and as many steps as "
            "tokens are usual at most"
        )
    _check_whole("first_index", first_index, 0)
    if seed is not None:
        _check_whole("seed", seed, 0)
        if seed >= _SEEDS:
            raise UserError(f"seed is {seed}; it must be below 2^64")
    if num_samples * length > _MOST_TOKENS:
        raise UserError(
            f"num_samples is {num_samples} and length is {length}, which no memory holds; make "
            f"at most {_MOST_TOKENS} tokens at once, and further samples with first_index"
        )
    if batch_size is not None:
        _check_whole("batch_size", batch_size, 1, ", or left out")
    check_length(model, length, stride)
    for name, number in (("temperature", temperature), ("top_p", top_p)):
        if not isinstance(number, Real):
            raise UserError(f"{name} is {number!r}; it must be a number, 1 is plain")
    if not 0.0 < temperature < float("inf"):
        raise UserError(f"temperature is {temperature}; it must be above 0 and finite, 1 is plain")
    if not 0.0 < top_p <= 1.0:
        raise UserError(f"top_p is {top_p}; it must be in (0, 1], 1 keeps every token")
    if order not in ORDERS:
        raise UserError(f"order is {order!r}; choose one of {', '.join(ORDERS)}")
    if tail not in TAILS:
        raise UserError(f"tail is {tail!r}; choose one of {', '.join(TAILS)}")
    if sampling_dtype == FLOAT32 and order != RANDOM:
        raise UserError(
            f"order is {order!r}, but a float32 race itself decides which positions are revealed; "
            "leave order or sampling_dtype out"
        )
    _check_process(model, order, tail)


def _check_process(model: DiffusionLM, order: str, tail: str) -> None:
    """Refuse an order or a tail that the model's process has no use for."""
    name, masked = model.process.name, isinstance(model.process, Absorbing)
    if order != RANDOM and not masked:
        why = "redraws every position in every step, so that none comes first"
        raise UserError(
            f"order is {order!r}, but the {name} process "
            f"{why if name == Uniform.name else 'has no order'}; leave order out"
        )
    if tail != ANCESTRAL and name != Uniform.name:
        why = f"a token that the {name} process has revealed is final"
        raise UserError(
            f"tail is {tail!r}, which is for the uniform process, but "
            f"{why if masked else f'the process of this model is {name!r}'}; leave tail out"
        )


def check_length(model: DiffusionLM, length: int, stride: int | None, name: str = "length") -> None:
    """Refuse more tokens than the context holds, unless they are written in windows.

    Raises:
        UserError: naming the value, what is allowed and what to do.
    """
    context = model.config.model_length
    if stride is not None:
        _check_whole("stride", stride, 1)
        if stride > context:
            raise UserError(
                f"stride is {stride} but the model was trained on {context} tokens; "
                f"choose from 1 to {context} new tokens per window"
            )
    elif length > context:
        raise UserError(
            f"{name} is {length} but the model was trained on {context} tokens; "
            f"ask for {context} or fewer, or give a stride to write in windows"
        )


def _check_whole(name: str, value: object, least: int, otherwise: str = "") -> None:
    if not isinstance(value, Integral):
        raise UserError(
            f"{name} is {value!r}; it must be a whole number of at least {least}{otherwise}"
        )
    if value < least:
        raise UserError(f"{name} is {value}; it must be at least {least}{otherwise}")
