"""The adapter for the LM Evaluation Harness, which small substitutes stand for here."""

from __future__ import annotations

import math
import sys
from collections.abc import Iterator
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch

from idlm.cli import evaluate
from idlm.errors import UserError
from idlm.evaluation import harness
from idlm.evaluation.harness import MaskedHarness
from idlm.evaluation.masked_likelihood import MaskedLikelihood, rolling_windows
from idlm.models import DiffusionConfig, DiffusionLM

WORDS = {"<eos>": 0, "a": 1, "b": 2, "c": 3, "d": 4}


class Words:
    """A tokenizer of single letters; anything else is no token."""

    bos_token_id = eos_token_id = pad_token_id = 0
    name_or_path = "words/of-letters"

    def __len__(self) -> int:
        return len(WORDS)

    def encode(self, text: str, add_special_tokens: bool = True) -> list[int]:
        return [WORDS[letter] for letter in text if letter in WORDS]

    def decode(self, ids: list[int]) -> str:
        return "".join([*WORDS][i] for i in ids)


def random_model(**changes: Any) -> DiffusionLM:
    sizes = {"model_length": 8, "hidden_dim": 4, "cond_dim": 4, "n_blocks": 1, "n_heads": 2}
    torch.manual_seed(1)
    settings = {"vocab_size": len(WORDS) + 1, "dropout": 0.0, **sizes, **changes}
    model = DiffusionLM(DiffusionConfig(**settings))
    for weight in model.parameters():
        torch.nn.init.normal_(weight, std=0.7)
    return model.double().eval()


def made(model: DiffusionLM | None = None, **options: Any) -> MaskedHarness:
    return MaskedHarness(model or random_model(), tokenizer=Words(), **options)


def requests(*args: Any) -> list[Any]:
    return [SimpleNamespace(args=arg) for arg in args]


def log_p(model: DiffusionLM, state: list[int | None], position: int, token: int) -> float:
    """One conditional of the model; None is a mask."""
    mask = model.process.vocab_size - 1
    z = torch.tensor([[mask if item is None else item for item in state]])
    with torch.no_grad():
        table = model.process.log_probs(model(z).logits, z)
    return float(table[0, position, token])


def test_a_likelihood_is_the_mean_over_orders_of_revealing_the_continuation() -> None:
    """E_n E_M of |y| / n times the masked nats is the mean over orders of -log p (any order)."""
    model = random_model()
    orders = [
        log_p(model, [1, 2, None, None], 2, 3) + log_p(model, [1, 2, 3, None], 3, 4),
        log_p(model, [1, 2, None, None], 3, 4) + log_p(model, [1, 2, None, 4], 2, 3),
    ]
    samples = 4096
    ((value, _),) = made(model, samples=samples, batch_size=512).loglikelihood(
        requests(("ab", "cd"))
    )
    # half of the samples mask one position, and only which one is left to chance
    ends = [log_p(model, [1, 2, 3, None], 3, 4), log_p(model, [1, 2, None, 4], 2, 3)]
    error = abs(ends[0] - ends[1]) / 2 / math.sqrt(samples / 2)
    assert error < 0.01 * abs(value)
    assert abs(value - sum(orders) / 2) < 5 * error
    # and so a bound of the likelihood of the mixture of both orders
    assert sum(orders) / 2 < math.log(sum(map(math.exp, orders)) / 2)


def test_a_single_token_needs_one_sample_and_has_no_noise() -> None:
    model = random_model()
    found = made(model, samples=128).loglikelihood(requests(("ab", "c"), ("", "c")))
    wanted = [log_p(model, [1, 2, None], 2, 3), log_p(model, [0, None], 1, 3)]  # eos before nothing
    assert [value for value, _ in found] == pytest.approx(wanted, rel=1e-12)


def test_the_value_depends_on_the_seed_and_the_request_and_not_on_the_batch_size() -> None:
    model = random_model()
    likelihood = [
        MaskedLikelihood(model, samples=8, batch_size=size, seed=seed)
        for size, seed in ((3, 0), (8, 0), (8, 1))
    ]
    values = [one.nats([1], [2, 3, 4], 0) for one in likelihood]
    assert values[0] == pytest.approx(values[1], rel=1e-12)
    assert values[1] != values[2]
    assert likelihood[0].nats([1], [2, 3, 4], 1) != values[0]


def test_a_conditioned_network_is_told_the_share_that_is_masked() -> None:
    model, told = random_model(time_conditioning=True), []
    features = model.features

    def listen(states: Any, timesteps: Any = None, latent: Any = None) -> Any:
        told.append((states, timesteps))
        return features(states, timesteps, latent)

    model.features = listen  # type: ignore[method-assign]
    MaskedLikelihood(model, samples=6, batch_size=6).nats([1], [2, 3], 0)
    ((states, sigma),) = told
    for state, s in zip(states, sigma, strict=True):
        share = float((state == len(WORDS)).sum()) / 2
        # no time of training has more noise than time 1, where a thousandth survives
        assert float(s) == pytest.approx(-math.log(max(1 - share, 1e-3)), rel=1e-9)


def test_greedy_is_what_decoding_the_surest_position_first_gives() -> None:
    model = random_model()
    state: list[int | None] = [1, None, None, None]
    while None in state:  # the same by hand
        tables = {
            i: [log_p(model, state, i, token) for token in range(len(WORDS))]
            for i, item in enumerate(state)
            if item is None
        }
        place = max(tables, key=lambda i: max(tables[i]))
        state[place] = tables[place].index(max(tables[place]))
    likelihood = MaskedLikelihood(model)
    target = [int(item) for item in state[1:] if item is not None]
    assert likelihood.is_greedy([1], target)
    for place in range(3):
        other = list(target)
        other[place] = (other[place] + 1) % len(WORDS)
        assert not likelihood.is_greedy([1], other)


@pytest.mark.parametrize(
    ("size", "prefix", "windows"),
    [
        (10, 1, [(1, 3), (1, 3), (1, 3), (3, 1)]),
        (3, 1, [(1, 3)]),
        (4, 1, [(1, 3), (3, 1)]),
        (4, 0, [(0, 4)]),
        (2, 7, [(2, 2)]),
        (6, 7, [(1, 3), (1, 3)]),
        (0, 1, []),
    ],
)
def test_windows_score_each_token_once_with_all_the_context_that_fits(
    size: int, prefix: int, windows: list[tuple[int, int]]
) -> None:
    found = rolling_windows(list(range(100, 100 + size)), list(range(prefix)), 4)
    assert [(len(given), len(scored)) for given, scored in found] == windows
    assert [token for _, scored in found for token in scored] == list(range(100, 100 + size))
    whole = [*range(prefix), *range(100, 100 + size)]
    for given, scored in found:
        end = whole.index(scored[-1]) + 1
        assert given + scored == whole[end - len(given) - len(scored) : end]


def test_a_long_text_is_the_sum_of_its_windows() -> None:
    model = random_model()
    adapter = made(model, samples=4)
    (value,) = adapter.loglikelihood_rolling(requests(("abcdabcdab",)))
    tokens = [1, 2, 3, 4, 1, 2, 3, 4, 1, 2]
    windows = [([0], tokens[:7]), (tokens[2:7], tokens[7:])]
    assert value == pytest.approx(-sum(adapter.likelihood.nats(*w, 0) for w in windows))
    assert adapter.loglikelihood_rolling(requests(("",))) == [0.0]


def test_a_context_that_is_too_long_loses_its_beginning() -> None:
    adapter = made(samples=4)
    ((value, _),) = adapter.loglikelihood(requests(("abcdabcdab", "cd")))
    # of ten tokens the last six are left, and the two that are scored
    assert value == pytest.approx(-adapter.likelihood.nats([1, 2, 3, 4, 1, 2], [3, 4], 0))


def test_spaces_at_the_contexts_end_go_with_the_continuation() -> None:
    adapter = made()
    assert adapter._encode_pair("ab  ", "c") == ([1, 2], [3])
    assert adapter._encode_pair("  ", "c") == ([0], [3])


def test_generations_end_at_eos_and_at_the_first_stop_text() -> None:
    model = random_model()
    with torch.no_grad():
        model.backbone.output_layer.linear.bias[WORDS["c"]] = 60.0
    adapter = made(model, steps=2, max_gen_toks=3)
    asked = [("ab", {"until": ["x"]}), ("ab", {"until": "c"}), ("", {"max_gen_toks": 2})]
    assert adapter.generate_until(requests(*asked)) == ["ccc", "", "cc"]
    with torch.no_grad():
        model.backbone.output_layer.linear.bias[0] = 90.0
    assert adapter.generate_until(requests(("ab", {"until": []}))) == [""]


def test_a_generation_longer_than_the_context_is_cut_aloud(
    caplog: pytest.LogCaptureFixture,
) -> None:
    adapter = made(steps=2)
    (text,) = adapter.generate_until(requests(("abcdabcd", {"max_gen_toks": 300})))
    assert len(text.replace("<eos>", "e")) <= 4
    assert "at most 4 tokens are generated: the context has 8" in caplog.text


def test_sampling_is_at_the_tasks_temperature_only_when_the_task_samples(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    seen: list[tuple[float, float]] = []

    def generate(model: Any, **options: Any) -> Any:
        seen.append((options["temperature"], options["top_p"]))
        return SimpleNamespace(tokens=torch.zeros(1, 8, dtype=torch.int64))

    monkeypatch.setattr(harness, "generate", generate)
    adapter = made(temperature=0.7, top_p=0.9)
    asked = {"temperature": 0.3, "top_p": 0.5, "max_gen_toks": 2}
    adapter.generate_until(requests(("a", asked), ("a", {**asked, "do_sample": True})))
    assert seen == [(0.7, 0.9), (0.3, 0.5)]


@pytest.mark.parametrize("asked", [{"temperature": 0.0}, {"top_p": 0.0}, {"top_p": 1.5}])
def test_a_task_that_samples_where_no_sampler_can_is_refused_before_any_generation(
    monkeypatch: pytest.MonkeyPatch, asked: dict[str, float]
) -> None:
    monkeypatch.setattr(harness, "generate", lambda *a, **k: pytest.fail("generated"))
    fine = ("a", {"do_sample": True, "temperature": 0.3})
    with pytest.raises(UserError, match=r"a temperature above 0 and a top_p in \(0, 1\]") as caught:
        made().generate_until(requests(fine, ("a", {**asked, "do_sample": True})))
    assert "\n" not in str(caught.value)


def test_greedy_decoding_at_temperature_zero_is_at_the_models_own(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    seen: list[float] = []

    def generate(model: Any, **options: Any) -> Any:
        seen.append(options["temperature"])
        return SimpleNamespace(tokens=torch.zeros(1, 8, dtype=torch.int64))

    monkeypatch.setattr(harness, "generate", generate)
    asked = {"temperature": 0.0, "do_sample": False, "max_gen_toks": 2}
    made(temperature=0.7).generate_until(requests(("a", asked)))
    assert seen == [0.7]


def test_results_carry_the_conditions() -> None:
    found = made(samples=7, steps=3, seed=5).get_model_info()
    assert (found["samples"], found["steps"], found["seed"]) == (7, 3, 5)
    assert "lower bound" in found["likelihood"]


@pytest.mark.parametrize(
    ("model", "options", "sentence"),
    [
        ({}, {"samples": 0}, "samples is 0; it must be 1 or more"),
        ({}, {"batch_size": "auto"}, "batch_size is 'auto'; give the rows per forward pass"),
        ({}, {"tokenizer": None}, "a model in memory has no tokenizer; give tokenizer="),
        ({"process": "uniform", "time_conditioning": True}, {}, "process is 'uniform'.* masked"),
    ],
)
def test_what_cannot_be_answered_is_refused(model: Any, options: Any, sentence: str) -> None:
    with pytest.raises(UserError, match=sentence):
        MaskedHarness(random_model(**model), **{"tokenizer": Words(), **options})


@pytest.fixture
def substitute(monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[str, Any]]:
    """As much of the harness as the adapter touches."""
    registry: dict[str, Any] = {}

    class LM:
        def __init__(self) -> None:
            self.cache_hook = SimpleNamespace(add_partial=lambda *seen: calls.append(seen))

    calls: list[Any] = []
    modules = {
        "lm_eval": {},
        "lm_eval.api": {},
        "lm_eval.api.model": {"LM": LM},
        "lm_eval.api.registry": {
            "register_model": lambda name: lambda cls: registry.setdefault(name, cls)
        },
        "lm_eval.__main__": {"cli_evaluate": lambda: calls.append(sys.argv)},
    }
    for name, content in modules.items():
        module = ModuleType(name)
        vars(module).update(content)
        monkeypatch.setitem(sys.modules, name, module)
    harness.register.cache_clear()
    yield {"registry": registry, "calls": calls, "LM": LM}
    harness.register.cache_clear()


def test_the_registered_model_is_one_of_the_harness_and_tells_its_cache(
    substitute: dict[str, Any],
) -> None:
    cls = harness.register()
    assert substitute["registry"] == {"idlm": cls}
    assert issubclass(cls, substitute["LM"])
    model = cls(random_model(), tokenizer=Words(), samples=2)
    ((value, greedy),) = model.loglikelihood(requests(("a", "b")), disable_tqdm=True)
    assert substitute["calls"] == [("loglikelihood", ("a", "b"), (value, greedy))]


def test_the_command_hands_its_line_to_the_harness(substitute: dict[str, Any]) -> None:
    before = list(sys.argv)
    evaluate.run(["--lm-eval", "--model", "idlm", "--tasks", "x"])
    assert substitute["calls"] == [["lm_eval", "--model", "idlm", "--tasks", "x"]]
    assert "idlm" in substitute["registry"]
    assert sys.argv == before
    with pytest.raises(UserError, match="--lm-eval comes first"):
        evaluate.run(["--model", "idlm", "--lm-eval"])


def test_without_the_harness_one_sentence_says_what_to_install(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(sys.modules, "lm_eval.api.model", None)
    harness.register.cache_clear()
    with pytest.raises(UserError, match=r"pip install 'idlm\[lm-eval\]'"):
        harness.register()
