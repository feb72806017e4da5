"""Small files of every kind that a report reads."""

from __future__ import annotations

import base64
import json
import types
from pathlib import Path
from typing import Any

import pytest

from idlm.report import make_report
from idlm.samples import write_samples

HOSTILE = '<script>alert("x")</script> & $x_1$ | `a` [b](javascript:c) \\input{d} =1+1'
# one white pixel
PNG = base64.b64decode(
    "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mP8/5+hHgAHggJ/PchI7wAAAABJRU5ErkJg"
    "gg=="
)
EVALUATION = {
    "evaluator": "judge",
    "evaluator_revision": "sha256:00ff",
    "evaluator_dtype": "float32",
    "eos": "published",
    "unscored_samples": 0,
}


def cell(label: str, steps: int, temperature: float, gen_ppl: float, entropy: float) -> dict:
    return {
        "label": label,
        "checkpoint": f"models/{label}",
        "steps": steps,
        "temperature": temperature,
        "top_p": 1.0,
        "seed": 0,
        "num_samples": 8,
        "length": 64,
        "tokens_per_call": 64 / steps,
        "seconds": 1.25,
        "gen_ppl": gen_ppl,
        "gen_ppl_stderr": 0.1 * gen_ppl,
        "entropy": entropy,
        "evaluation": EVALUATION,
        "sampling_dtype": "float64",
        "machine": {"device": "cpu", "threads": 2},
    }


def row(found: dict) -> dict:
    means = {f"{k}_mean": found[k] for k in ("gen_ppl", "entropy", "tokens_per_call", "seconds")}
    spread = {"gen_ppl_sd": None, "entropy_sd": None}
    own = {k: found[k] for k in ("label", "steps", "temperature", "top_p", "num_samples")}
    return {**own, "seeds": [0], **means, **spread}


def frontier(student: str = "student") -> dict[str, Any]:
    cells = [
        cell("teacher", 4, 1.0, 100.0, 5.0),
        cell("teacher", 4, 0.8, 50.0, 4.5),
        cell(student, 4, 1.0, 60.123456789012345, 4.75),
        cell(student, 8, 1.0, 40.0, 4.7),
    ]
    same = {"label": student, "temperature": 1.0}
    matched = [
        {**same, "steps": 4, "teacher_steps": 4, "ratio": 0.85, "teacher_gen_ppl": 70.7, "note": ""}
    ]
    return {
        "protocol": {"teacher": "teacher", "evaluator": "judge"},
        "reference": {"gen_ppl": 20.0, "entropy": 4.9, "num_samples": 8, "evaluation": EVALUATION},
        "summary": [row(one) for one in cells],
        "matched": matched,
        "cells": cells,
    }


def toy(method: str, seed: int, steps: int, tv: float) -> dict[str, Any]:
    return {
        "dataset": "circles",
        "method": method,
        "process": "absorbing",
        "latent": 16,
        "seed": seed,
        "steps": steps,
        "tv": tv,
        "js": tv / 10,
        "floor_tv": 0.03,
        "floor_js": 0.001,
        "samples": 500,
        "plan": {"bins": 8},
        "settings": {"lr": 0.01, "objective": {"name": method.upper()}},
    }


def oracle(method: str, steps: int, cross_entropy: float) -> dict[str, Any]:
    return {
        "dataset": "oracle",
        "method": method,
        "process": "absorbing",
        "latent": 0,
        "seed": 0,
        "steps": steps,
        "cross_entropy": cross_entropy,
        "violations": 1.0,
        "ngram_tv": 0.2,
        "bigram_entropy": 6.0,
        "overlap": 0.05,
        "entropy_rate": 2.03,
        "source_overlap": 0.044,
        "samples": 16,
        "settings": {"lr": 0.003},
    }


def sampler(network: str) -> dict[str, Any]:
    return {
        "case": "sampler",
        "network": network,
        "batch": 1,
        "length": 64,
        "steps": 4,
        "backbone_seconds": 0.5,
        "lean_seconds": 0.625,
        "plain_seconds": 2.0,
        "device": "cpu",
        "threads": 2,
    }


METRICS = """\
epoch,fake_updates,step,student_updates,train/fake_loss,train/student_entropy,train/student_loss,\
val/entropy,val/frontier_ratio,val/gen_ppl,val/student_entropy
0,1.0,0,0.0,7.5,,,,,,
0,1.0,1,1.0,7.5,4.25,0.5,,,,
0,2.0,2,1.0,7.25,4.25,0.5,,,,
0,2.0,3,2.0,7.25,4.0,0.25,,,,
0,,3,,,,,5.0,inf,90.5,3.75
0,3.0,5,3.0,7.0,3.5,0.125,,,,
0,,5,,,,,5.1,0.9,80.25,3.5
"""
CONFIG = """\
seed_everything: 3
trainer:
  precision: bf16-mixed
  callbacks:
  - class_path: idlm.training.CollapseGuard
    init_args: {floor: 1.5, window: 20}
model:
  init_args: {teacher: a-teacher, betas: [0.0, 0.99]}
"""
PUBLISHED = """\
method,model,steps,genppl,entropy,mauve,gm,evaluator,samples,precision,source,notes
MDLM,169M,1024,41.29,5.28,0.89,0.672,gpt2-large,800,float64,arXiv 0000.00001,"a, note"
IDLM,169M,16,32.75±1.62,5.42,0.93,,gpt2-large,80,,arXiv 0000.00001,
Bare,169M,8,12.5,,,,gpt2-large,,,arXiv 0000.00002,no entropy given
"""


def write_json(path: Path, value: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value), encoding="utf-8")
    return path


def write_texts(path: Path, label: str, texts: list[str], **header: Any) -> Path:
    rows = [
        {"text": text, "tokens": [1, 2], "seed": 0, "index": index}
        for index, text in enumerate(texts)
    ]
    return write_samples(path, {"label": label, "checkpoint": "c", "steps": 4, **header}, rows)


@pytest.fixture
def make() -> Any:
    """The builders above, which a test cannot import from here."""
    return types.SimpleNamespace(**{k: v for k, v in globals().items() if not k.startswith("_")})


def fill(folder: Path) -> Path:
    """A folder with a file of every kind, and published numbers beside it."""
    write_json(folder / "frontier.json", frontier())
    write_json(
        folder / "toys.json",
        [toy("idlm", 0, 1, 0.25), toy("idlm", 1, 1, 0.75), toy("dmmd", 0, 1, 0.125)],
    )
    (folder / "toys.png").write_bytes(PNG)
    write_json(folder / "oracle.json", [oracle("teacher", 1, 9.0), oracle("teacher", 4, 4.5)])
    startup = {"case": "startup", "command": "idlm --help", "seconds": 0.05, "device": "cpu"}
    write_json(folder / "speed.json", [sampler("4x128"), startup])
    write_texts(folder / "samples" / "teacher.jsonl", "teacher", ["the teacher's text"])
    write_texts(folder / "samples" / "student.jsonl", "student", ["the student's text"])
    run = folder / "run" / "logs" / "version_0"
    run.mkdir(parents=True)
    (run / "metrics.csv").write_text(METRICS, encoding="utf-8")
    (run / "config.yaml").write_text(CONFIG, encoding="utf-8")
    (folder.parent / "published.csv").write_text(PUBLISHED, encoding="utf-8")
    return folder


@pytest.fixture
def results(tmp_path: Path) -> Path:
    """What :func:`fill` makes."""
    return fill(tmp_path / "results")


@pytest.fixture(scope="session")
def report(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A report of everything, and the folder it was made from; nobody changes either."""
    folder = tmp_path_factory.mktemp("report")
    results = fill(folder / "results")
    made = make_report([results], folder / "out", published=folder / "published.csv")
    return types.SimpleNamespace(page=made.page, files=made.files, results=results)
