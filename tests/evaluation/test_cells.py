from __future__ import annotations

import math

import pytest
import torch

import idlm
from idlm.errors import UserError
from idlm.evaluation.cells import Cell, count_calls, measure, measure_reference, weights_revision
from idlm.evaluation.scoring import score
from idlm.metrics import GenerativePerplexity, load_evaluator
from idlm.metrics.diversity import sequence_entropies
from idlm.models import decode, load_tokenizer
from idlm.samples import read_samples
from tests.tiny_models import LENGTH, SENTENCES


def measured(folders, **changes):
    batch_size = changes.pop("batch_size", 2)
    save = changes.pop("save_samples", None)
    cell = Cell(
        "student",
        str(folders.student),
        **({"steps": 4, "num_samples": 3, "length": LENGTH} | changes),
    )
    return measure(cell, evaluator=str(folders.evaluator), batch_size=batch_size, save_samples=save)


def test_network_calls_are_counted_on_the_network(folders):
    model = idlm.load(folders.student)
    with count_calls(model) as counted:
        model(torch.zeros(3, 5, dtype=torch.int64))
        model.features(torch.zeros(2, 5, dtype=torch.int64))
    model(torch.zeros(1, 5, dtype=torch.int64))
    assert (counted.calls, counted.rows) == (2, 5)


def test_a_sampler_that_lies_about_its_calls_is_found_out(folders, monkeypatch):
    from idlm.evaluation import cells

    def twice(model, *args, **kwargs):
        idlm.generate(model, *args, **(kwargs | {"callback": None}))
        return idlm.generate(model, *args, **kwargs)

    monkeypatch.setattr(cells, "generate", twice)
    found = measured(folders)
    assert found["network_calls"] == 2 * found["sampler_calls"]


def test_calls_never_exceed_the_steps_and_do_not_depend_on_the_batch(folders):
    one, all_three = measured(folders, batch_size=1), measured(folders, batch_size=3)
    for found in (one, all_three):
        assert found["network_calls"] == found["sampler_calls"] <= 4
        assert found["tokens_per_call"] == LENGTH / found["network_calls"]
    # a sample that reveals nothing in a step takes no part in the call
    assert one["network_calls_mean"] == all_three["network_calls_mean"] <= 4


def test_the_numbers_do_not_depend_on_the_batch_size(folders):
    one, all_three = measured(folders, batch_size=1), measured(folders, batch_size=3)
    for name in ("gen_ppl", "gen_ppl_stderr", "entropy", "distinct_2_per_sequence"):
        assert one[name] == pytest.approx(all_three[name], rel=1e-5), name  # fp32 network


def test_the_numbers_are_those_of_the_metrics_on_the_saved_samples(folders, tmp_path):
    found = measured(folders, save_samples=tmp_path / "samples.jsonl")
    header, rows = read_samples(tmp_path / "samples.jsonl")
    tokens = torch.tensor([row["tokens"] for row in rows])
    assert found["entropy"] == pytest.approx(float(sequence_entropies(tokens).mean()))
    metric = GenerativePerplexity(str(folders.evaluator), batch_size=1, device="cpu")
    metric.update([row["text"] for row in rows])
    assert found["gen_ppl"] == pytest.approx(float(metric.compute()), rel=1e-6)
    assert header["num_samples"] == len(rows) == 3
    assert header["revision"] == found["checkpoint_revision"]
    assert header["nfe"] == found["network_calls"]
    assert [row["index"] for row in rows] == [0, 1, 2]


def test_every_number_carries_its_conditions(folders):
    found = measured(folders, temperature=0.7, top_p=0.9, seed=5)
    assert found["sampling_dtype"] == "float64"
    assert found["network_dtype"] == "float32"
    assert (found["temperature"], found["top_p"], found["seed"]) == (0.7, 0.9, 5)
    assert found["evaluation"]["evaluator_revision"] == weights_revision(folders.evaluator)
    assert found["evaluation"]["retokenized"] is True
    assert found["machine"]["torch"] == torch.__version__
    assert found["machine"]["threads"] == torch.get_num_threads()


def test_another_seed_or_temperature_gives_other_samples(folders):
    entropies = {
        measured(folders, **change)["entropy"] for change in ({}, {"seed": 1}, {"temperature": 0.5})
    }
    assert len(entropies) == 3


def test_the_standard_error_is_that_of_the_delta_method(folders):
    tokenizer = load_tokenizer(folders.teacher)
    judge = load_evaluator(str(folders.evaluator), device="cpu")
    tokens = torch.randint(0, len(tokenizer), (4, 12))
    texts = decode(tokenizer, tokens)
    found = score(tokens, texts, judge)
    nll, count = [], []
    for text in texts:
        metric = GenerativePerplexity(judge, batch_size=1)
        metric.update([text])
        nll.append(float(metric.nll_sum))
        count.append(int(metric.token_count))
    ratio = sum(nll) / sum(count)
    variance = sum((a - ratio * b) ** 2 for a, b in zip(nll, count, strict=True)) / 3 / 4
    mean = sum(count) / 4
    assert found["gen_ppl"] == pytest.approx(math.exp(ratio), rel=1e-6)
    assert found["gen_ppl_stderr"] == pytest.approx(
        math.exp(ratio) * math.sqrt(variance) / mean, rel=1e-6
    )


def test_one_sample_has_no_standard_error_and_json_gets_null(folders):
    found = measured(folders, num_samples=1)
    assert found["gen_ppl_stderr"] is None
    assert found["entropy_stderr"] is None


def test_held_out_text_is_measured_in_rows_of_the_same_length(folders, tmp_path):
    corpus = tmp_path / "text.txt"
    corpus.write_text("\n".join(SENTENCES * 30), encoding="utf-8")
    found = measure_reference(
        str(corpus),
        "validation",
        tokenizer=str(folders.teacher),
        evaluator=str(folders.evaluator),
        length=LENGTH,
        rows=3,
    )
    assert found["num_samples"] == found["evaluation"]["sample_count"] == 3
    assert found["content"].startswith("local:")
    assert 0 < found["entropy"] <= math.log(LENGTH)
    assert found["gen_ppl"] > 1


def test_a_request_the_model_cannot_meet_is_refused_before_the_work(folders):
    with pytest.raises(UserError, match=f"length is {LENGTH + 1} but the model was trained on"):
        measured(folders, length=LENGTH + 1)
    with pytest.raises(UserError, match="num_samples is 0"):
        measured(folders, num_samples=0)


def test_a_checkpoint_that_is_exported_again_is_another_revision(folders, tmp_path):
    model = idlm.load(folders.teacher)
    from idlm.models import export_folder

    folder = export_folder(model, tmp_path / "copy")
    first = weights_revision(folder)
    assert first == weights_revision(folders.teacher)
    with torch.no_grad():
        model.backbone.output_layer.linear.weight[0, 0] += 1.0
    export_folder(model, folder)
    assert weights_revision(folder) != first
