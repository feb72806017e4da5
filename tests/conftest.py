"""What every test may rely on: no network, a cache of its own, and no traces of other tests."""

from __future__ import annotations

import os
import random
import shutil
import sys
import tempfile
from collections.abc import Iterator

import numpy as np
import pytest

# Before any test module imports huggingface_hub, which reads its switches once.
_CACHE = tempfile.mkdtemp(prefix="idlm-tests-")
os.environ.update(
    IDLM_CACHE=_CACHE,
    HF_HUB_OFFLINE="1",
    HF_DATASETS_CACHE=os.path.join(_CACHE, "datasets"),
    MPLBACKEND="Agg",
    TOKENIZERS_PARALLELISM="false",
)


def pytest_unconfigure() -> None:
    shutil.rmtree(_CACHE, ignore_errors=True)


@pytest.fixture(autouse=True)
def _undo_global_changes(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Start each test from seed 0 and undo what it did to torch and to Lightning's seed."""
    # seed_everything leaves PL_* variables behind; a variable touched here is restored.
    for name in ("PL_GLOBAL_SEED", "PL_SEED_WORKERS"):
        monkeypatch.setenv(name, "0")
        monkeypatch.delenv(name)
    random.seed(0)
    np.random.seed(0)  # noqa: NPY002 - the global generator is the one tests could leak through
    # A test file that does without torch stays fast.
    torch = sys.modules.get("torch")
    if torch is None:
        yield
        return
    torch.manual_seed(0)
    threads, dtype, grad = (
        torch.get_num_threads(),
        torch.get_default_dtype(),
        torch.is_grad_enabled(),
    )
    deterministic = torch.are_deterministic_algorithms_enabled()
    warn_only = torch.is_deterministic_algorithms_warn_only_enabled()
    precision = torch.get_float32_matmul_precision()
    yield
    torch.set_num_threads(threads)
    torch.set_default_dtype(dtype)
    torch.set_grad_enabled(grad)
    torch.use_deterministic_algorithms(deterministic, warn_only=warn_only)
    torch.set_float32_matmul_precision(precision)
