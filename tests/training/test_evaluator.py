from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import lightning as L
import pytest
import torch
from torch.utils.data import DataLoader

from idlm.errors import UserError
from idlm.training.evaluator import EvaluatorModule, ExportBest

SIZES = {"n_layer": 1, "n_head": 2, "n_embd": 16, "n_positions": 16}


@pytest.fixture(scope="module")
def tokenizer_folder(tmp_path_factory: pytest.TempPathFactory) -> str:
    from tokenizers import Tokenizer, models
    from transformers import PreTrainedTokenizerFast

    vocabulary = {"<|endoftext|>": 0, **{chr(96 + i): i for i in range(1, 12)}}
    core = Tokenizer(models.WordLevel(vocabulary, unk_token="<|endoftext|>"))
    folder = tmp_path_factory.mktemp("tokenizer")
    PreTrainedTokenizerFast(tokenizer_object=core, eos_token="<|endoftext|>").save_pretrained(
        folder
    )
    return str(folder)


def loader(rows: torch.Tensor, batch: int = 8) -> Any:
    items = [{"input_ids": row, "index": torch.tensor(i)} for i, row in enumerate(rows)]
    return DataLoader(items, batch_size=batch)


def alternating(n: int) -> torch.Tensor:
    """Rows 1 2 1 2 ...: learnable at once."""
    return torch.tensor([[1, 2] * 8]).repeat(n, 1)


def trainer(tmp_path: Path, *callbacks: L.Callback, **kwargs: Any) -> L.Trainer:
    return L.Trainer(
        **{
            "accelerator": "cpu",
            "max_epochs": -1,
            "logger": False,
            "enable_checkpointing": False,
            "enable_progress_bar": False,
            "enable_model_summary": False,
            "num_sanity_val_steps": 0,
            "default_root_dir": tmp_path,
            "callbacks": list(callbacks),
            **kwargs,
        }
    )


def test_vocabulary_is_exactly_that_of_the_tokenizer(tokenizer_folder: str) -> None:
    assert EvaluatorModule(tokenizer_folder, **SIZES).model.config.vocab_size == 12


def test_a_run_learns_stops_at_max_updates_and_exports_a_model_that_loads(
    tmp_path: Path, tokenizer_folder: str
) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    module = EvaluatorModule(
        tokenizer_folder, **SIZES, lr=2e-2, warmup=2, max_updates=25, dropout=0.0
    )
    before = float(module.nll(alternating(1)).detach())
    folder = tmp_path / "judge"
    run = trainer(tmp_path, ExportBest(str(folder), dtype="float16", data="Two letters."))
    run.fit(module, loader(alternating(16)), loader(alternating(4)))
    assert run.global_step == 25
    after = float(run.callback_metrics["val/loss"])
    assert after < before / 2
    assert float(run.callback_metrics["val/ppl"]) == pytest.approx(2.718281828**after, rel=1e-4)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    loss = model(alternating(1), labels=alternating(1)).loss
    assert float(loss.detach()) == pytest.approx(after, abs=0.02)  # fp16 storage of a sharp model
    assert len(AutoTokenizer.from_pretrained(folder)) == 12
    card = (folder / "README.md").read_text()
    for expected in ("Two letters.", "val/ppl", "idlm", "float16"):
        assert expected in card


def test_micro_batches_give_the_update_of_the_whole_batch(
    tmp_path: Path, tokenizer_folder: str
) -> None:
    rows = torch.randint(0, 12, (8, 16))
    weights = []
    for micro in (None, 3):
        torch.manual_seed(1)
        module = EvaluatorModule(
            tokenizer_folder, **SIZES, dropout=0.0, max_updates=2, micro_batch_size=micro
        )
        trainer(tmp_path, limit_val_batches=0).fit(module, loader(rows), loader(rows))
        weights.append(torch.cat([p.detach().flatten() for p in module.model.parameters()]))
    torch.testing.assert_close(weights[0], weights[1], atol=1e-5, rtol=0)  # fp32, Adam near zero


def test_validation_loss_weighs_tokens_and_not_batches(
    tmp_path: Path, tokenizer_folder: str
) -> None:
    rows = torch.randint(0, 12, (5, 16))
    module = EvaluatorModule(tokenizer_folder, **SIZES).eval()
    with torch.no_grad():
        expected = float(module.nll(rows))
    run = trainer(tmp_path)
    run.validate(module, loader(rows, batch=3), verbose=False)
    assert float(run.callback_metrics["val/loss"]) == pytest.approx(expected, rel=1e-5)


def test_only_a_better_validation_replaces_the_export(
    tmp_path: Path, tokenizer_folder: str
) -> None:
    module = EvaluatorModule(tokenizer_folder, **SIZES)
    best = ExportBest(str(tmp_path / "judge"))
    kept = []
    for value in (2.0, 3.0, 1.0):
        run: Any = SimpleNamespace(
            callback_metrics={"val/loss": torch.tensor(value)},
            sanity_checking=False,
            is_global_zero=True,
            global_step=1,
        )
        best.on_validation_end(run, module)
        kept.append((tmp_path / "judge" / "README.md").read_text())
    assert kept[0] == kept[1] != kept[2]
    resumed = ExportBest(str(tmp_path / "judge"))
    resumed.load_state_dict(best.state_dict())
    assert resumed.best == 1.0


def test_export_never_replaces_a_folder_that_is_not_an_export(
    tmp_path: Path, tokenizer_folder: str
) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("precious")
    module = EvaluatorModule(tokenizer_folder, **SIZES)
    with pytest.raises(UserError, match="is no earlier export"):
        module.export(tmp_path / "mine")
    assert [p.name for p in (tmp_path / "mine").iterdir()] == ["thesis.txt"]


def test_an_interrupted_export_leaves_the_previous_one(
    tmp_path: Path, tokenizer_folder: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    module = EvaluatorModule(tokenizer_folder, **SIZES)
    module.export(tmp_path / "judge")
    before = (tmp_path / "judge" / "model.safetensors").read_bytes()

    def cut(*args: object, **kwargs: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(module.tokenizer, "save_pretrained", cut)
    torch.nn.init.ones_(module.model.lm_head.weight)
    with pytest.raises(KeyboardInterrupt):
        module.export(tmp_path / "judge")
    assert (tmp_path / "judge" / "model.safetensors").read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == ["judge"]


def test_impossible_requests_are_one_sentence(tmp_path: Path, tokenizer_folder: str) -> None:
    with pytest.raises(UserError, match="n_embd=15 must be a multiple of n_head=2"):
        EvaluatorModule(tokenizer_folder, n_embd=15, n_head=2)
    with pytest.raises(UserError, match="could not be opened"):
        EvaluatorModule(str(tmp_path / "nothing"))
    module = EvaluatorModule(tokenizer_folder, **SIZES)
    with pytest.raises(UserError, match="float32, float16, bfloat16"):
        module.export(tmp_path / "judge", dtype="int8")
    with pytest.raises(UserError, match="rows of 17 tokens do not fit"):
        module._check(torch.ones(1, 17, dtype=torch.int64))
    with pytest.raises(UserError, match="the data holds token 12"):
        module._check(torch.full((1, 16), 12))
