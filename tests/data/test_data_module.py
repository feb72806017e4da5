from __future__ import annotations

import copy
import itertools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning
import pytest
import torch

from idlm.data import PackedDataModule
from idlm.data.loaders import Batch
from idlm.errors import UserError

Make = Callable[..., PackedDataModule]


class Recorder(lightning.LightningModule):
    """Remembers the batches it was trained and validated on."""

    def __init__(self) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.weight = torch.nn.Parameter(torch.zeros(1))
        self.trained: list[Batch] = []
        self.validated: list[Batch] = []

    def training_step(self, batch: Batch, batch_idx: int) -> None:
        self.trained.append(batch)
        self.optimizers().step()

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        self.validated.append(batch)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.1)


def _fit(
    data: PackedDataModule, steps: int, *, resume: Path | None = None, **options: object
) -> tuple[Recorder, lightning.Trainer]:
    trainer = lightning.Trainer(
        max_epochs=-1,
        max_steps=steps,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        **{"limit_val_batches": 0, **options},  # type: ignore[arg-type]
    )
    recorder = Recorder()
    trainer.fit(recorder, data, ckpt_path=resume, weights_only=None if resume is None else True)
    return recorder, trainer


def _assert_same(left: list[Batch], right: list[Batch]) -> None:
    assert len(left) == len(right)
    for one, other in zip(left, right, strict=True):
        assert torch.equal(one["index"], other["index"])
        assert torch.equal(one["input_ids"], other["input_ids"])


@pytest.mark.parametrize(
    "options", [{}, {"num_workers": 2}, {"streaming": True, "shuffle_window": 8}]
)
def test_a_resumed_run_continues_at_the_next_batch(
    data: Make, tmp_path: Path, options: dict[str, object]
) -> None:
    # 30 batches run over the end of the epoch, so that its number must be resumed as well.
    straight, _ = _fit(data(**options), 30)
    first, trainer = _fit(data(**options), 13)
    trainer.save_checkpoint(tmp_path / "last.ckpt")
    second, _ = _fit(data(**options), 30, resume=tmp_path / "last.ckpt")
    _assert_same(straight.trained, first.trained + second.trained)


def test_validation_in_between_does_not_count(data: Make, tmp_path: Path) -> None:
    options: dict[str, object] = {
        "limit_val_batches": 2,
        "val_check_interval": 2,
        "check_val_every_n_epoch": None,
    }
    module = data()
    recorder, trainer = _fit(module, 6, **options)
    assert recorder.validated
    assert module.state_dict()["samples_taken"] == 6 * 4
    trainer.save_checkpoint(tmp_path / "last.ckpt")
    resumed, _ = _fit(data(), 7, resume=tmp_path / "last.ckpt", **options)
    assert resumed.trained[0]["index"].tolist() == [24, 25, 26, 27]


def test_two_processes_together_train_on_the_batches_of_one(
    data: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    def batches(module: PackedDataModule) -> list[Batch]:
        return list(itertools.islice(module.train_dataloader(), 5))

    for streaming in (False, True):
        alone = batches(data(streaming=streaming))
        shares = []
        for rank in range(2):
            monkeypatch.setattr(PackedDataModule, "_place", lambda self, rank=rank: (rank, 2))
            shares.append(batches(data(streaming=streaming)))
        monkeypatch.undo()
        joined = [
            {key: torch.cat([left[key], right[key]]) for key in left}
            for left, right in zip(*shares, strict=True)
        ]
        _assert_same(joined, alone)


def test_a_module_without_a_trainer_serves_batches(data: Make) -> None:
    batch = next(iter(data().train_dataloader()))
    assert batch["input_ids"].shape == (4, 16)
    assert batch["index"].tolist() == [0, 1, 2, 3]


def test_validation_has_every_row_and_keeps_the_short_batch(data: Make) -> None:
    module = data(eval_batch_size=4)
    loader = module.val_dataloader()
    batches = list(loader)
    rows = torch.cat([batch["input_ids"] for batch in batches])
    assert torch.equal(rows, torch.from_numpy(module.rows("validation").astype("int64")))
    assert torch.cat([batch["index"] for batch in batches]).tolist() == list(range(len(rows)))
    assert len(batches[-1]["index"]) == len(rows) % 4 or len(rows) % 4 == 0
    _assert_same(batches, list(loader))


def test_max_eval_rows_spaces_the_rows_and_zero_means_none(data: Make) -> None:
    everything = data().evaluation_rows()
    some = data(max_eval_rows=2).evaluation_rows()
    assert (some == everything[[0, len(everything) // 2]]).all()
    assert data(max_eval_rows=0).val_dataloader() == []
    assert len(data(max_eval_rows=10**6).evaluation_rows()) == len(everything)


def test_validating_alone_packs_no_training_rows(data: Make) -> None:
    module = data()
    recorder = Recorder()
    lightning.Trainer(
        accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False
    ).validate(recorder, module, verbose=False)
    assert recorder.validated
    assert list(module.metadata) == ["validation"]


def test_metadata_reports_what_was_packed_and_dropped(data: Make) -> None:
    module = data()
    module.prepare_data()
    report = module.metadata["train"]
    assert report["rows"] == len(module.rows("train"))
    assert report["rows"] * 16 + report["dropped_tokens"] == report["tokens"]
    assert report["content"].startswith("local:")


def test_a_text_without_validation_can_be_trained_on_whole(data: Make, tmp_path: Path) -> None:
    (tmp_path / "small.txt").write_text("just enough words for a row or two here " * 3)
    with pytest.raises(UserError, match=r"the validation split of '.*small.txt' is empty"):
        data(tmp_path / "small.txt").prepare_data()
    data(tmp_path / "small.txt", max_eval_rows=0).prepare_data()


def test_another_seed_is_refused_when_resuming(data: Make) -> None:
    state = copy.deepcopy(data().state_dict())
    module = data(seed=3)
    module.load_state_dict(state)
    with pytest.raises(UserError, match=r"data seed 0, not 3; resume with --data.init_args.seed 0"):
        module.train_dataloader()


def test_another_text_is_refused_when_resuming(data: Make) -> None:
    before = data()
    before.rows("train")
    module = data(length=12)
    module.load_state_dict(before.state_dict())
    with pytest.raises(UserError, match=r"rows of '.*' are not those of the checkpoint"):
        module.train_dataloader()


def test_a_checkpoint_can_be_evaluated_on_another_text(data: Make) -> None:
    before = data()
    before.rows("train")
    module = data(length=12)
    module.load_state_dict(before.state_dict())
    assert len(list(module.val_dataloader())) > 0


def test_another_batch_size_must_fit_the_position(data: Make) -> None:
    state = {"samples_taken": 12, "seed": 0}
    module = data(global_batch_size=6)
    module.load_state_dict(state)
    assert next(iter(module.train_dataloader()))["index"][0] == 12
    module = data(global_batch_size=8)
    module.load_state_dict(state)
    with pytest.raises(UserError, match=r"sample 12, which is not a multiple of global_batch_si"):
        module.train_dataloader()


def test_streaming_must_stay_as_it_was(data: Make) -> None:
    module = data(streaming=True)
    module.load_state_dict({"samples_taken": 4, "seed": 0})
    with pytest.raises(UserError, match=r"streaming=False, not True; resume with the same"):
        module.train_dataloader()


def test_a_batch_that_cannot_be_shared_is_refused(
    data: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    module = data(global_batch_size=4)
    monkeypatch.setattr(module, "trainer", type("T", (), {"global_rank": 0, "world_size": 3}))
    with pytest.raises(UserError, match=r"global_batch_size=4 cannot be shared by 3.*such as 6"):
        module.train_dataloader()


def test_fewer_evaluation_rows_than_processes_are_refused(
    data: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    module = data(max_eval_rows=2)
    module.setup("validate")
    for rank in range(3):
        monkeypatch.setattr(PackedDataModule, "_place", lambda self, rank=rank: (rank, 3))
        with pytest.raises(UserError, match=r"2 evaluation rows .* 3 processes.*max_eval_rows=0"):
            module.val_dataloader()


@pytest.mark.parametrize("size", ["length", "global_batch_size", "eval_batch_size"])
def test_sizes_below_one_are_refused(data: Make, size: str) -> None:
    with pytest.raises(UserError, match=rf"{size}=0 is not a positive number"):
        data(**{size: 0})


def test_a_negative_number_of_rows_is_refused(data: Make) -> None:
    with pytest.raises(UserError, match=r"max_eval_rows=-1 is negative; give 0 for no evaluation"):
        data(max_eval_rows=-1)


@pytest.mark.parametrize("name", ["num_workers", "shuffle_window"])
def test_negative_numbers_of_workers_and_of_documents_are_refused(data: Make, name: str) -> None:
    with pytest.raises(UserError, match=rf"{name}=-1 is negative; give 0 for none"):
        data(**{name: -1})


@pytest.mark.parametrize("changed", [{"length": 12}, {"special_ends": False}])
def test_another_stream_is_refused_when_resuming(data: Make, changed: dict[str, Any]) -> None:
    """A position counts tokens, so it means nothing in rows that are cut otherwise."""
    module = data(streaming=True, **changed)
    module.load_state_dict(data(streaming=True, special_ends=True).state_dict())
    with pytest.raises(UserError, match=r"rows of '.*' are not those of the checkpoint"):
        module.train_dataloader()


def test_another_window_is_refused_when_resuming(data: Make) -> None:
    module = data(streaming=True, shuffle_window=8)
    state = data(streaming=True, shuffle_window=16).state_dict()
    module.load_state_dict(state)
    with pytest.raises(UserError, match=r"shuffle_window=16, not 8; resume with --data.init_arg"):
        module.train_dataloader()


def test_a_corpus_without_a_tokenizer_asks_for_one(data: Make) -> None:
    with pytest.raises(UserError, match=r"names no tokenizer; give one with --data.init_args.tok"):
        data(tokenizer=None).prepare_data()
