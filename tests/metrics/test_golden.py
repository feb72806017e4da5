"""The metrics against values that were computed apart from this package (golden/README.md)."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
import torch

from idlm.metrics import Entropy, GenerativePerplexity, GradientMoment
from idlm.metrics.diversity import sequence_entropies

GOLDEN = Path(__file__).with_name("golden")
EVALUATOR = str(GOLDEN / "evaluator")


@pytest.fixture(scope="module")
def golden() -> Mapping[str, np.ndarray]:
    with np.load(GOLDEN / "metrics.npz") as found:
        return {name: found[name] for name in found.files}


@pytest.mark.parametrize("batch_size", [1, 8])
def test_perplexity_and_its_valid_tokens_are_those_of_the_published_rule(
    golden: Mapping[str, np.ndarray], batch_size: int
) -> None:
    metric = GenerativePerplexity(EVALUATOR, retokenize=False, batch_size=batch_size, device="cpu")
    metric.update(torch.from_numpy(golden["samples"]))
    assert int(metric.token_count) == int(golden["valid_tokens"])
    # float32 logits of another batch shape
    assert float(metric.compute()) == pytest.approx(float(golden["gen_ppl"]), rel=1e-5)


def test_entropy_of_each_sequence_and_their_mean_are_in_nats(
    golden: Mapping[str, np.ndarray],
) -> None:
    samples = torch.from_numpy(golden["samples"])
    own = sequence_entropies(samples).numpy()
    # the reference sums in float32
    np.testing.assert_allclose(own, golden["entropy_per_sequence"], rtol=1e-6, atol=1e-6)
    metric = Entropy()
    metric.update(samples)
    assert float(metric.compute()) == pytest.approx(float(golden["entropy"]), rel=1e-6)


@pytest.mark.parametrize("batch_size", [1, 8])
def test_gradient_moment_and_its_uncentred_products(
    golden: Mapping[str, np.ndarray], batch_size: int
) -> None:
    metric = GradientMoment(EVALUATOR, eos=None, batch_size=batch_size, device="cpu")
    metric.update(*(torch.from_numpy(golden[name]) for name in ("samples", "data")))
    samples, data = metric.uncentred()
    # float32 gradients summed in another order; the moment is a difference of larger products
    assert float(samples) == pytest.approx(float(golden["gm_samples"]), rel=1e-4)
    assert float(data) == pytest.approx(float(golden["gm_data"]), rel=1e-4)
    assert float(metric.compute()) == pytest.approx(float(golden["gradient_moment"]), rel=1e-4)
