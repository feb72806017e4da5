"""What cannot be generated is refused before any work, in one sentence."""

from __future__ import annotations

from numbers import Integral

from idlm.errors import UserError
from idlm.models.modeling import DiffusionLM
from idlm.sampling.base import RANDOM
from idlm.sampling.orders import ORDERS
from idlm.sampling.registry import sampler_for


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
    stride: int | None = None,
    first_index: int = 0,
    seed: int | None = None,
) -> None:
    """Refuse numbers that make no sense, or that the model cannot follow.

    Raises:
        UserError: naming the value, what is allowed and what to do.
    """
    sampler_for(model.process)
    for name, value in (("num_samples", num_samples), ("steps", steps), ("length", length)):
        _check_whole(name, value, 1)
    _check_whole("first_index", first_index, 0)
    if seed is not None:
        _check_whole("seed", seed, 0)
    if batch_size is not None and batch_size < 1:
        raise UserError(f"batch_size is {batch_size}; it must be at least 1, or left out")
    check_length(model, length, stride)
    if not 0.0 < temperature < float("inf"):
        raise UserError(f"temperature is {temperature}; it must be above 0 and finite, 1 is plain")
    if not 0.0 < top_p <= 1.0:
        raise UserError(f"top_p is {top_p}; it must be in (0, 1], 1 keeps every token")
    if order not in ORDERS:
        raise UserError(f"order is {order!r}; choose one of {', '.join(ORDERS)}")


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


def _check_whole(name: str, value: object, least: int) -> None:
    if not isinstance(value, Integral):
        raise UserError(f"{name} is {value!r}; it must be a whole number of at least {least}")
    if value < least:
        raise UserError(f"{name} is {value}; it must be at least {least}")
