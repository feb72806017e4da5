"""The cases of ``idlm bench speed``: what is measured on a CPU, on CUDA, and in seconds."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from idlm.bench.speed_fit import FitCase
from idlm.bench.speed_growth import GrowthCase
from idlm.bench.speed_measure import Setting
from idlm.bench.speed_run import LossCase, Network, SamplerCase

# the published vocabulary: GPT-2's 50,257 tokens and the mask
_SMALL, _MIDDLE, _PUBLISHED = Network(4, 128), Network(8, 256), Network(12, 768)


@dataclass(frozen=True)
class Plan:
    """Cases and where each runs, by the name that ``--case`` has for them."""

    sampler: tuple[tuple[SamplerCase, Setting], ...]
    losses: tuple[tuple[LossCase, Setting], ...]
    growth: tuple[tuple[GrowthCase, Setting], ...]
    fit: tuple[tuple[FitCase, Setting], ...] = ()


def plan(device: str, threads: int, *, quick: bool) -> Plan:
    """What to measure.

    Args:
        device: ``cpu`` or ``cuda``.
        threads: of the CPU.
        quick: sizes at which everything takes seconds and means nothing.
    """
    setting = Setting(device, threads=threads)
    if quick:
        return _quick(setting)
    return _cuda(setting) if device == "cuda" else _cpu(setting)


def _cpu(setting: Setting) -> Plan:
    samplers = (
        SamplerCase(_SMALL, repeats=5, plain_repeats=1),
        SamplerCase(_MIDDLE, repeats=5, plain_repeats=1),
        SamplerCase(_MIDDLE, batch=8, repeats=3, plain_repeats=0),
        SamplerCase(_PUBLISHED, repeats=3, plain_repeats=1),
        SamplerCase(_PUBLISHED, batch=8, repeats=1, plain_repeats=0),
    )
    losses = (
        *(LossCase(_MIDDLE, name) for name in ("idlm", "dmmd", "dmmd-uniform")),
        LossCase(_MIDDLE, "idlm-duo", repeats=1),
    )
    sampler = SamplerCase(replace(_SMALL, vocab=12565), length=256, repeats=5, plain_repeats=0)
    # several chunks at the smallest size
    loss = LossCase(replace(_SMALL, vocab=12565), length=512, batch=8, repeats=3, plain=False)
    # in memory of a GPU's size, by the peaks of the process
    fit = FitCase(LossCase(_MIDDLE, batch=8, length=256))
    growth = _growth(sampler, loss, setting)
    return Plan(_with(samplers, setting), _with(losses, setting), growth, _with((fit,), setting))


def _cuda(setting: Setting) -> Plan:
    half = replace(setting, dtype="bfloat16")
    # a table [64, 1024, V] of the plain sampler has 26 GB in float64
    cases = [
        (SamplerCase(_PUBLISHED, batch=batch, repeats=5, plain_repeats=plain), half)
        for batch, plain in ((1, 3), (8, 1), (64, 0))
    ]
    cases.append((SamplerCase(_PUBLISHED, repeats=5), setting))
    cases.append((SamplerCase(_PUBLISHED, repeats=5), replace(half, compile=True)))
    losses = [
        (LossCase(_PUBLISHED, name, batch=8, length=1024, plain=plain), half)
        for name, plain in (
            ("idlm", True),
            ("dmmd", True),
            ("dmmd-uniform", False),
            ("idlm-duo", False),
        )
    ]
    sampler = SamplerCase(_PUBLISHED, length=256, repeats=5, plain_repeats=0)
    loss = LossCase(_PUBLISHED, batch=4, length=256, repeats=5, plain=False)
    fit = [
        FitCase(LossCase(_PUBLISHED, name, batch=4, length=1024))
        for name in ("idlm", "dmmd", "dmmd-uniform")
    ]
    return Plan(tuple(cases), tuple(losses), _growth(sampler, loss, half), _with(fit, half))


def _quick(setting: Setting) -> Plan:
    tiny = Network(1, 16, vocab=32)
    sampler = SamplerCase(tiny, length=16, steps=4, repeats=2)
    losses = tuple(LossCase(tiny, name, batch=2, length=8) for name in ("idlm", "dmmd-uniform"))
    loss = LossCase(tiny, batch=2, length=8, plain=False)
    growth = _growth(replace(sampler, plain_repeats=0), loss, setting, factors=(1, 2))
    # large enough for a peak that can be told from the process's own
    fit = FitCase(LossCase(Network(1, 64, vocab=512), batch=8, length=128))
    return Plan(_with((sampler,), setting), _with(losses, setting), growth, _with((fit,), setting))


def _growth(
    sampler: SamplerCase, loss: LossCase, setting: Setting, factors: tuple[int, ...] = (1, 2, 4)
) -> tuple[tuple[GrowthCase, Setting], ...]:
    cases = [GrowthCase(sampler, size, factors) for size in ("length", "vocab", "batch", "steps")]
    cases += [GrowthCase(loss, size, factors) for size in ("length", "vocab", "batch")]
    return _with(cases, setting)


def _with(cases: Any, setting: Setting) -> Any:
    return tuple((case, setting) for case in cases)
