"""Lightning checkpoints as the original repositories write them, and as ``idlm fit`` does."""

from __future__ import annotations

import copy
import re
import shutil
from pathlib import Path
from typing import Any

import omegaconf
import pytest
import torch
from omegaconf import OmegaConf
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from torch import Tensor
from transformers import PreTrainedTokenizerFast

import idlm
from idlm.errors import UserError
from idlm.models.archive import Archive
from idlm.models.lightning_ckpt import read_lightning, read_lightning_config
from tests.tiny_models import SIZES, Folders, Make, make_models
from tests.training.helpers import (
    QUIET,
    copy_of,
    distillation,
    rows,
    teacher_training,
    trainer,
    write_corpus,
)

pytestmark = QUIET
MODEL = {
    "name": "small",
    "hidden_size": SIZES["hidden_dim"],
    "cond_dim": SIZES["cond_dim"],
    "length": SIZES["model_length"],
    "n_blocks": SIZES["n_blocks"],
    "n_heads": SIZES["n_heads"],
    "scale_by_sigma": True,
    "dropout": 0.25,
}
# what each repository's settings say of the method
METHODS: dict[str, dict[str, Any]] = {
    "mdlm": {
        "diffusion": "absorbing_state",
        "backbone": "dit",
        "parameterization": "subs",
        "time_conditioning": False,
        "noise": {"type": "loglinear", "sigma_min": 1e-4, "sigma_max": 20},
    },
    "mdlm with time": {
        "backbone": "dit",
        "parameterization": "subs",
        "time_conditioning": True,
        "noise": {"type": "cosine"},
    },
    "sdtt": {
        "parameterization": {"name": "multi-round-sdtt", "distill_mode": "kl-bwd"},
        "time_conditioning": False,
        "is_di4c": False,
        "noise": {"type": "loglinear"},
    },
    "idlm": {
        "algo": {
            "name": "mdlm",
            "backbone": "hf_dit",
            "parameterization": "subs",
            "time_conditioning": False,
            "causal_attention": False,
        },
        "noise": {"type": "log-linear", "eps": 1e-3},
    },
    "duo": {
        "algo": {
            "name": "duo",
            "backbone": "dit",
            "parameterization": "mean",
            "time_conditioning": True,
            "causal_attention": False,
        },
        "noise": {"type": "log-linear", "eps": 2e-3},
    },
    "dcd": {
        "algo": {"name": "distillation", "parameterization": "mean", "time_conditioning": True},
        "noise": {"type": "log-linear", "eps": 1e-3},
    },
}
NORM = "backbone.blocks.1.norm1.weight"
SAYS = {
    "mdlm": ("absorbing", False, "log-linear", 1e-3),
    "mdlm with time": ("absorbing", True, "cosine", 1e-3),
    "sdtt": ("absorbing", False, "log-linear", 1e-3),
    "idlm": ("absorbing", False, "log-linear", 1e-3),
    "duo": ("uniform", True, "log-linear", 2e-3),
    "dcd": ("uniform", True, "log-linear", 1e-3),
}


def settings(method: str = "mdlm", **changes: Any) -> dict[str, Any]:
    """A repository's settings; a change names its place with dots, ``None`` removes it."""
    tree = copy.deepcopy({"data": {"tokenizer_name_or_path": "gpt2"}, "model": MODEL})
    tree.update(copy.deepcopy(METHODS[method]))
    for place, value in changes.items():
        *parents, last = place.split("__")
        branch: Any = tree
        for parent in parents:
            branch = branch.setdefault(parent, {})
        branch[last] = value
        if value is None:
            del branch[last]
    return tree


def tokenizer(**special: str) -> PreTrainedTokenizerFast:
    return PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(WordLevel({"a": 0, "b": 1}, unk_token="a")), **special
    )


def drifted(weights: dict[str, Tensor], size: float = 0.05) -> dict[str, Tensor]:
    """The raw weights an average of ``weights`` could belong to."""
    torch.manual_seed(3)
    return {
        n: w + size * torch.randn_like(w) if "inv_freq" not in n else w for n, w in weights.items()
    }


def parameters(state: dict[str, Tensor]) -> list[Tensor]:
    return [value for name, value in state.items() if "inv_freq" not in name]


def write(
    path: Path,
    raw: dict[str, Tensor],
    shadows: list[Tensor] | None,
    config: dict[str, Any] | None,
    **changes: Any,
) -> Path:
    """A file with all that Lightning and the repositories put into it."""
    optimizer = torch.optim.AdamW([torch.nn.Parameter(torch.ones(4))])
    hyper = {"config": OmegaConf.create(config), "tokenizer": tokenizer()}
    checkpoint = {
        "epoch": 3,
        "global_step": 1000,
        "pytorch-lightning_version": "2.2.1",
        "state_dict": raw,
        "loops": {"fit_loop": {"epoch_progress": {"current": {"completed": 3}}}},
        "callbacks": {"ModelCheckpoint": {"best_model_score": torch.tensor(3.2)}},
        "optimizer_states": [optimizer.state_dict()],
        "lr_schedulers": [{"base_lrs": [3e-4], "lr_lambdas": [{}]}],
        "sampler": {"random_state": torch.Generator().get_state()},
        "hparams_name": "kwargs",
        "hyper_parameters": hyper if config is not None else {},
        "ema": {"decay": 0.9999, "num_updates": 1000, "shadow_params": shadows},
        **changes,
    }
    torch.save({k: v for k, v in checkpoint.items() if v is not None}, path)
    return path


@pytest.mark.parametrize("method", METHODS)
def test_every_repository_loads_average_and_raw_weights_exactly(
    method: str, make: Make, tmp_path: Path
) -> None:
    process, time, schedule, eps = SAYS[method]
    model = make(
        process=process, time_conditioning=time, schedule=schedule, schedule_eps=eps, dropout=0.25
    )
    average = model.state_dict()
    raw = drifted(average)
    path = write(tmp_path / "x.ckpt", raw, parameters(average), settings(method))
    for weights, asked in ((average, False), (raw, True)):
        config, read = read_lightning(path, raw=asked)
        for name in (*SIZES, "time_conditioning", "process", "schedule", "schedule_eps"):
            assert getattr(config, name) == getattr(model.config, name), name
        assert read.keys() == weights.keys()
        assert all(torch.equal(read[name], weights[name]) for name in weights)
    assert read_lightning_config(path).to_dict() == config.to_dict()
    loaded = idlm.load(path)
    tokens, sigma = torch.arange(12).unsqueeze(0), torch.tensor([0.7])
    assert torch.equal(loaded(tokens, sigma).logits, model(tokens, sigma).logits)


def test_a_distillation_gives_its_student_under_any_wrapper(make: Make, tmp_path: Path) -> None:
    student, other = make(seed=0), make(seed=1)
    average = student.state_dict()
    raw = drifted(average)
    wrapped: dict[str, Tensor] = {}
    for name, value in raw.items():
        # a hub model as the backbone, compiled, in DistributedDataParallel
        wrapped[f"module.backbone._orig_mod.{name}"] = value
    for prefix in ("teacher.", "fake_model.", "teacher_copy.backbone."):
        wrapped.update({f"{prefix}{n}": v for n, v in other.state_dict().items()})
    fake = {"decay": 0.9999, "num_updates": 9, "shadow_params": parameters(other.state_dict())}
    path = write(tmp_path / "x.ckpt", wrapped, parameters(average), settings("idlm"), ema_fake=fake)
    for weights, asked in ((average, False), (raw, True)):
        _, read = read_lightning(path, raw=asked)
        assert read.keys() == weights.keys()
        assert all(torch.equal(read[name], weights[name]) for name in weights)


def test_settings_and_tokenizer_are_read_without_running_their_code(
    make: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = make()
    path = write(
        tmp_path / "x.ckpt", model.state_dict(), parameters(model.state_dict()), settings()
    )

    def harm(*_: Any, **__: Any) -> None:
        raise AssertionError("code that the pickle names was run")

    for kind in (omegaconf.DictConfig, omegaconf.nodes.ValueNode, PreTrainedTokenizerFast):
        for method in ("__init__", "__setstate__", "__getattr__"):
            monkeypatch.setattr(kind, method, harm, raising=False)
    assert read_lightning(path)[0].model_length == SIZES["model_length"]


def test_optimiser_states_and_other_networks_are_never_read(
    make: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    state = make().state_dict()
    both = {**state, **{f"fake_model.{n}": v for n, v in state.items()}}
    path = write(tmp_path / "x.ckpt", both, parameters(state), settings())
    reads = []
    tensor = Archive.tensor
    monkeypatch.setattr(Archive, "tensor", lambda self, v: reads.append(v) or tensor(self, v))
    read_lightning(path, raw=True)
    assert len(reads) == len(state)
    reads.clear()
    read_lightning_config(path)
    assert not reads


def exchange(order: list[str], *pairs: tuple[str, str]) -> list[str]:
    places = {name: i for i, name in enumerate(order)}
    order = list(order)
    for a, b in pairs:
        order[places[a]], order[places[b]] = order[places[b]], order[places[a]]
    return order


def block_pairs(names: list[str], first: int, second: int) -> list[tuple[str, str]]:
    mine = [name for name in names if f".blocks.{first}." in name]
    return [(name, name.replace(f".blocks.{first}.", f".blocks.{second}.")) for name in mine]


@pytest.mark.parametrize(
    "what", ["two blocks", "three blocks", "two norms of a block", "MLP biases"]
)
def test_an_average_in_another_order_is_refused(what: str, make: Make, tmp_path: Path) -> None:
    average = make(n_blocks=4).state_dict()
    names = [name for name in average if "inv_freq" not in name]
    block = "backbone.blocks.1."
    pairs = {
        "two blocks": [block_pairs(names, 0, 2)],
        "three blocks": [block_pairs(names, 0, 1), block_pairs(names, 1, 2)],
        "two norms of a block": [[(f"{block}norm1.weight", f"{block}norm2.weight")]],
        "MLP biases": [[(f"{block}mlp.0.bias", "backbone.blocks.3.mlp.0.bias")]],
    }[what]
    order = names
    for step in pairs:
        order = exchange(order, *step)
    assert order != names
    assert [average[n].shape for n in order] == [average[n].shape for n in names]
    shadows = [average[name] for name in order]
    config = settings(model__n_blocks=4)
    path = write(tmp_path / "x.ckpt", drifted(average), shadows, config)
    with pytest.raises(UserError, match=r"another order.*nearest to backbone\.blocks\..*--raw"):
        read_lightning(path)
    assert read_lightning(path, raw=True)[0].n_blocks == 4


def test_an_average_that_lags_far_behind_is_not_taken_for_a_permuted_one(
    make: Make, tmp_path: Path
) -> None:
    start = make(n_blocks=4).state_dict()
    # norms and adaLN as they start: alike in all blocks
    start = {n: torch.ones_like(w) if "norm" in n else w for n, w in start.items()}
    start = {n: torch.zeros_like(w) if "adaLN" in n else w for n, w in start.items()}
    raw = drifted(start, 0.5)
    # every block moved the same way, some further
    for name in [n for n in raw if ".blocks." in n and "norm1" in n]:
        number = int(re.search(r"blocks\.(\d)", name)[1])  # type: ignore[index]
        raw[name] = start[name] + 0.6**number * torch.linspace(-1, 1, 16)
    average = {n: start[n] + 0.6 * (raw[n] - start[n]) for n in raw}
    path = write(tmp_path / "x.ckpt", raw, parameters(average), settings(model__n_blocks=4))
    read = read_lightning(path)[1]
    assert all(torch.equal(read[n], average[n]) for n in average if "inv_freq" not in n)


def test_an_average_unlike_any_raw_weights_is_not_taken_for_a_permuted_one(
    make: Make, tmp_path: Path
) -> None:
    average, raw = make(n_blocks=4, seed=0).state_dict(), make(n_blocks=4, seed=1).state_dict()
    path = write(tmp_path / "x.ckpt", raw, parameters(average), settings(model__n_blocks=4))
    assert torch.equal(read_lightning(path)[1][NORM], average[NORM])


def test_parameters_of_a_few_numbers_are_not_taken_for_permuted_ones(
    make: Make, tmp_path: Path
) -> None:
    raw = make(hidden_dim=4).state_dict()
    average = dict(raw)
    first, second = "backbone.blocks.0.norm1.weight", NORM
    average[first], average[second] = raw[second], raw[first]  # as chance does to 4 numbers
    config = settings(model__hidden_size=4)
    path = write(tmp_path / "x.ckpt", raw, parameters(average), config)
    assert torch.equal(read_lightning(path)[1][first], raw[second])


def test_an_average_that_was_never_updated_is_said_to_be_the_start(
    make: Make, tmp_path: Path
) -> None:
    start = make().state_dict()
    ema = {"decay": 0.9999, "num_updates": 0, "shadow_params": parameters(start)}
    path = write(tmp_path / "x.ckpt", drifted(start), None, settings(), ema=ema)
    with pytest.warns(UserWarning, match=r"never updated.*raw"):
        read_lightning(path)
    path = write(tmp_path / "y.ckpt", start, None, settings(), ema=ema)
    read_lightning(path)  # nothing was trained either, so nothing is wrong


def test_an_average_that_is_missing_or_incomplete_points_to_the_raw_weights(
    make: Make, tmp_path: Path
) -> None:
    state = make().state_dict()
    shadows = parameters(state)
    wrong: list[tuple[Any, str]] = [
        (None, "no moving average"),
        ({"shadow_params": None}, "no moving average"),
        ({"shadow_params": shadows[:-1]}, "29 tensors for 30 parameters"),
        ({"shadow_params": [*shadows, torch.ones(1)]}, "31 tensors for 30"),
        ({"shadow_params": shadows[::-1]}, r"vocab_embed\.embedding is of another shape"),
        ({"shadow_params": [3.5] * len(shadows)}, r"vocab_embed\.embedding is of another shape"),
    ]
    for ema, message in wrong:
        path = write(tmp_path / "x.ckpt", state, None, settings(), ema=ema)
        with pytest.raises(UserError, match=f"{message}.*--raw"):
            read_lightning(path)
        assert read_lightning(path, raw=True)[1].keys() == state.keys()


@pytest.mark.parametrize(
    ("method", "change", "named"),
    [
        ("mdlm", {"parameterization": "sedd"}, "parameterization 'sedd'"),
        ("mdlm", {"parameterization": "d3pm"}, "parameterization 'd3pm'"),
        ("mdlm", {"parameterization": "ar"}, "parameterization 'ar'"),
        ("mdlm", {"parameterization": None}, "parameterization None"),
        ("mdlm", {"backbone": "dimamba"}, "backbone 'dimamba'"),
        ("mdlm", {"diffusion": "uniform"}, "diffusion 'uniform'"),
        ("mdlm", {"noise__type": "geometric"}, "noise.type 'geometric'"),
        ("sdtt", {"is_di4c": True}, "is_di4c True"),
        ("sdtt", {"parameterization__name": "ar"}, "parameterization.name 'ar'"),
        ("duo", {"algo__name": "sedd"}, "algo.name 'sedd'"),
        ("duo", {"algo__name": "ar"}, "algo.name 'ar'"),
        ("duo", {"algo__parameterization": "subs"}, "algo.parameterization 'subs'"),
        ("duo", {"algo__causal_attention": True}, "algo.causal_attention True"),
        ("duo", {"algo__backbone": "unet"}, "algo.backbone 'unet'"),
        ("duo", {"noise__type": "cosine"}, "noise.type 'cosine'"),
    ],
)
def test_a_method_of_another_family_is_refused_by_name(
    method: str, change: dict[str, Any], named: str, make: Make, tmp_path: Path
) -> None:
    state = make(process=SAYS[method][0]).state_dict()
    path = write(tmp_path / "x.ckpt", state, parameters(state), settings(method, **change))
    with pytest.raises(UserError, match=re.escape(named)) as told:
        read_lightning(path)
    assert "\n" not in str(told.value)


def test_a_mask_inside_the_vocabulary_is_refused(make: Make, tmp_path: Path) -> None:
    state = make().state_dict()
    for name in ("bert-base-uncased", "text8"):
        config = settings(data__tokenizer_name_or_path=name)
        path = write(tmp_path / "x.ckpt", state, parameters(state), config)
        with pytest.raises(UserError, match=f"{name}.*mask of its own"):
            read_lightning(path)
    hyper = {
        "config": OmegaConf.create(settings()),
        "tokenizer": tokenizer(mask_token="b", pad_token="a"),
    }
    path = write(tmp_path / "x.ckpt", state, None, settings(), hyper_parameters=hyper)
    with pytest.raises(UserError, match="mask of its own"):
        read_lightning(path)


def test_sizes_come_from_the_tensors_and_settings_must_agree(make: Make, tmp_path: Path) -> None:
    state = make().state_dict()

    def read(raw: dict[str, Tensor], method: str = "mdlm", **change: Any) -> Any:
        path = write(tmp_path / "x.ckpt", raw, None, settings(method, **change))
        return read_lightning(path, raw=True)[0]

    for name, value in (("hidden_size", 32), ("cond_dim", 9), ("n_blocks", 3), ("n_heads", 4)):
        with pytest.raises(UserError, match=rf"model\.{name} {value} but its tensors have"):
            read(state, **{f"model__{name}": value})
        # IDLM takes its backbone from the hub, whatever the settings say of sizes
        assert read(state, "idlm", **{f"model__{name}": value}).n_heads == 2
    no_table = {n: w for n, w in state.items() if "inv_freq" not in n}
    assert read(no_table, model__n_heads=4).n_heads == 4
    assert read(state, model__n_heads=None).n_heads == 2
    with pytest.raises(UserError, match=r"neither model\.n_heads nor the rotary table"):
        read(no_table, model__n_heads=None)
    assert read(state, model__dropout=None).dropout == 0.1


def test_what_the_settings_leave_open_is_asked_for(make: Make, tmp_path: Path) -> None:
    state = make().state_dict()

    def read(config: dict[str, Any] | None, **change: Any) -> Any:
        path = write(tmp_path / "x.ckpt", state, None, config, **change)
        return read_lightning(path, raw=True)[0]

    with pytest.raises(UserError, match=r"no hyper_parameters\.config"):
        read(None)
    with pytest.raises(UserError, match=r"no hyper_parameters\.config"):
        read(None, hyper_parameters=[1])
    for value in (None, "long", True):
        with pytest.raises(UserError, match=rf"model\.length {value!r}.*int is needed"):
            read(settings(model__length=value))
    with pytest.raises(UserError, match=r"time_conditioning None.*bool is needed"):
        read(settings(time_conditioning=None))
    assert read(settings(model__length="${wanted}", wanted=24)).model_length == 24
    for text in ("${eval:2 * 12}", "${other}"):
        with pytest.raises(UserError, match=re.escape(f"model.length is {text}")):
            read(settings(model__length=text, other=text))


def test_unknown_missing_and_wrongly_shaped_tensors_are_listed(make: Make, tmp_path: Path) -> None:
    state = make().state_dict()

    def read(raw: dict[str, Tensor], **change: Any) -> Any:
        path = write(tmp_path / "x.ckpt", raw, parameters(state), settings(), **change)
        return read_lightning(path)

    bias = "backbone.blocks.1.mlp.0.bias"
    wrong = {n: w for n, w in state.items() if n != bias}
    wrong["backbone.class_embed.weight"] = torch.ones(2)
    wrong["backbone.blocks.0.norm1.weight"] = torch.ones(5)
    with pytest.raises(UserError, match=r"missing.*unexpected.*wrongly shaped") as told:
        read(wrong)
    for name in (bias, "backbone.class_embed.weight", "backbone.blocks.0.norm1.weight is (5,)"):
        assert name in str(told.value)
    with pytest.raises(UserError, match=f"holds {bias} a second time"):
        read({**state, bias.replace("backbone.", "backbone._orig_mod."): state[bias]})
    with pytest.raises(UserError, match=r"n_blocks 2 but its tensors have 3"):
        read({**state, "backbone.blocks.99999999.norm1.weight": torch.ones(16)})
    with pytest.raises(UserError, match=r"holds encoder\.weight beside its backbone"):
        read({**state, "encoder.weight": torch.ones(2)})
    with pytest.raises(UserError, match="holds no network of this family"):
        read({"backbone.transformer.wte.weight": torch.ones(2, 3)})
    with pytest.raises(UserError, match=rf"missing: {bias}"):
        read({**state, bias: "text"})  # type: ignore[dict-item]
    for other in (None, [1]):
        with pytest.raises(UserError, match="no Lightning checkpoint: it holds no state_dict"):
            read(state, state_dict=other)


def test_runs_of_this_toolkit_load_from_where_they_stopped(tmp_path: Path) -> None:
    models: Folders = make_models(tmp_path / "models")
    corpus = write_corpus(tmp_path / "corpus.txt")
    words = tmp_path / "models" / "tokenizer"

    def run(module: Any, name: str) -> Path:
        path = tmp_path / f"{name}.ckpt"
        fit = trainer(tmp_path / name)
        fit.fit(module, rows(corpus, words))
        fit.save_checkpoint(path)
        return path

    new = teacher_training(words, schedule="cosine", time_conditioning=True)
    teacher = run(new, "teacher")
    grown = teacher_training(words, init=str(models.teacher), model_length=48)
    student = distillation(models.teacher)
    chained = distillation(models.teacher, student=str(models.student))
    for module, network, path in (
        (new, new.model, teacher),
        (grown, "model", run(grown, "grown")),
        (student, "student", run(student, "student")),
        (chained, "student", run(chained, "chained")),
    ):
        raw = getattr(module, network) if isinstance(network, str) else network
        for asked, expected in ((False, module.ema.module), (True, raw)):
            loaded = idlm.load(path, raw=asked)
            weights = copy_of(expected)
            assert loaded.state_dict().keys() == weights.keys()
            assert all(torch.equal(v, weights[n]) for n, v in loaded.state_dict().items())
            for field in (*SIZES, "time_conditioning", "schedule", "latent_global"):
                if field != "dropout":
                    assert getattr(loaded.config, field) == getattr(expected.config, field), field
    # the file alone is enough, wherever it goes and whatever becomes of its start
    shutil.rmtree(models.teacher)
    shutil.move(tmp_path / "student.ckpt", tmp_path / "elsewhere.ckpt")
    assert idlm.load(tmp_path / "elsewhere.ckpt").config.latent_global == 4
    content = torch.load(tmp_path / "elsewhere.ckpt", weights_only=True)
    content["network"]["hidden_dim"] = 32
    torch.save(content, tmp_path / "wrong.ckpt")
    with pytest.raises(UserError, match="says hidden_dim 32 but its tensors have 16"):
        idlm.load(tmp_path / "wrong.ckpt")
    del content["network"]["schedule"]
    torch.save(content, tmp_path / "less.ckpt")
    with pytest.raises(UserError, match="does not say schedule of its network"):
        idlm.load(tmp_path / "less.ckpt")
