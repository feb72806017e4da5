"""What ``fit``, ``validate`` and ``test`` are given: YAML, keys, checkpoints, corpora, recipes."""

from __future__ import annotations

from typing import Any

from tests.reliability.bad_input import Case, config, copied, json_changed, lines, text
from tests.reliability.cases_files import Harm, torch_file

_SMALL = (
    "--model.init_args.teacher={teacher} --data.init_args.corpus={corpus} "
    "--data.init_args.length=32 --data.init_args.global_batch_size=4"
)
_FIT = f"fit --config {{configs}}/tiny.yaml {_SMALL}"
_FILE = f"fit --config {{here}}/c.yaml {_SMALL}"
_MODEL = "--model.init_args"
_DATA = "--data.init_args"
_HELP = "idlm fit --help=all"


def _set(section: str, **changes: Any) -> Any:
    """``tiny.yaml`` with other arguments in a section."""

    def change(content: dict[str, Any]) -> None:
        target = content[section]
        target.get("init_args", target).update(changes)

    return config(change)


def _recipe(body: str) -> Any:
    return text("r.yaml", body)


CONFIG_FILES = [
    Case("no config", "fit --config nowhere.yaml", ("nowhere.yaml", "name a YAML file")),
    Case("no config to validate", "validate --config nowhere.yaml", ("nowhere.yaml", "name")),
    Case("no config to test", "test --config nowhere.yaml", ("nowhere.yaml", "name a YAML file")),
    Case("a folder as config", "fit --config {here}", ("a folder", "name a YAML file")),
    Case("a config of 5000 letters", "fit --config {long}", ("xxx", "too long", "name another")),
    Case("an empty config", _FILE, ("c.yaml is empty", "it needs sections"), text("c.yaml", "")),
    Case("a config that is a list", _FILE, ("holds a list", "it needs"), text("c.yaml", "- a\n")),
    Case("a config that is a word", _FILE, ("holds a str", "it needs"), text("c.yaml", "trainer")),
    Case("a binary config file", _FILE, ("not UTF-8", "save"), text("c.yaml", b"\x80\x02}q\x00.")),
    Case(
        "a config with a tab",
        _FILE,
        ("no YAML", "line 2", "correct it"),
        text("c.yaml", "trainer:\n\tmax_steps: 1\n"),
    ),
    Case("a config cut off", _FILE, ("no YAML", "correct it"), text("c.yaml", 'a: {b: "c\n')),
    Case("a config nested deep", _FILE, ("no YAML", "correct it"), text("c.yaml", "[" * 5_000)),
    Case(
        "a config that makes objects",
        _FILE,
        ("no YAML", "python/object", "correct it"),
        text("c.yaml", "trainer: !!python/object/apply:os.mkdir [harm]\n"),
    ),
    Case(
        "a key twice",
        _FILE,
        ("duplicate key", "seed_everything"),
        text("c.yaml", "seed_everything: 1\nseed_everything: 2\n"),
    ),
    Case(
        "a misspelt section",
        _FILE,
        ("'modle'", "did you mean 'model'?"),
        config(lambda content: content.update(modle=content.pop("model"))),
    ),
    Case(
        "a reference to nowhere",
        _FILE,
        ("nowhere",),
        _set("model", lr="${nowhere.at.all}"),
    ),
]

KEYS = [
    Case("a misspelt option of fit", f"{_FIT} --trianer.max_steps 3", ("--trianer", "--trainer?")),
    Case("an unknown trainer key", f"{_FIT} --trainer.max_stpes 3", ("max_stpes", "max_steps")),
    Case("steps in words", f"{_FIT} --trainer.max_steps many", ("max_steps", "many", _HELP)),
    Case(
        "an unknown trainer key in a file",
        _FILE,
        ("max_stpes", "max_steps"),
        _set("trainer", max_stpes=3),
    ),
    Case(
        "an unknown model key",
        f"{_FIT} {_MODEL}.micro_batch 3",
        ("micro_batch", "did you mean 'micro_batch_size'"),
    ),
    Case(
        "an unknown model key in a file",
        _FILE,
        ("emma_decay", "did you mean 'ema_decay'"),
        _set("model", emma_decay=0.9),
    ),
    Case("an unknown data key", f"{_FIT} {_DATA}.lenght 3", ("lenght", "did you mean 'length'")),
    Case(
        "a class that is none",
        f"fit --model idlm.training.DistilationModule {_SMALL}",
        ("DistilationModule", "DistillationModule"),
    ),
    Case(
        "an objective that is none",
        f"{_FIT} {_MODEL}.objective=idlm.objectives.IDML",
        ("IDML", "idlm.objectives"),
    ),
    Case("a rate in words", f"{_FIT} {_MODEL}.lr=fast", ("lr", "fast", "float")),
    Case("a rate of nan", f"{_FIT} {_MODEL}.lr=.nan", ("lr is nan", "0 or more")),
    Case("a negative rate", f"{_FIT} {_MODEL}.lr=-1.0e-3", ("lr is -0.001", "0 or more")),
    Case("an infinite rate", f"{_FIT} {_MODEL}.fake_lr=.inf", ("fake_lr is inf", "0 or more")),
    Case("a negative decay", f"{_FIT} {_MODEL}.weight_decay=-1", ("weight_decay is -1.0", "0 or")),
    Case("a beta of two", f"{_FIT} {_MODEL}.betas=[0.9,2.0]", ("betas", "2.0", "[0, 1)")),
    Case("a negative warmup", f"{_FIT} {_MODEL}.warmup=-5", ("warmup is -5", "0 or more")),
    Case("a clip of nan", f"{_FIT} {_MODEL}.clip=.nan", ("clip is nan", "0 turns clipping off")),
    Case("an average beyond one", f"{_FIT} {_MODEL}.ema_decay=1.5", ("ema_decay is 1.5", "[0, 1)")),
    Case("an average of nan", f"{_FIT} {_MODEL}.ema_decay=.nan", ("ema_decay is nan", "[0, 1)")),
    Case("no micro batch", f"{_FIT} {_MODEL}.micro_batch_size=0", ("is 0", "at least 1")),
    Case("no updates", f"{_FIT} {_MODEL}.max_student_updates=0", ("is 0", "at least 1")),
    Case("a negative seed to train", f"{_FIT} {_MODEL}.seed=-1", ("seed is -1", "0 or more")),
    Case("a decay that is none", f"{_FIT} {_MODEL}.decay=quadratic", ("quadratic", "cosine")),
    Case("a dropout of one", f"{_FIT} {_MODEL}.dropout=1.0", ("dropout is 1.0", "[0, 1)")),
    Case("a negative latent", f"{_FIT} {_MODEL}.latent_global=-1", ("latent_global is -1", "0")),
    Case("an attention that is none", f"{_FIT} {_MODEL}.attention=flesh", ("flesh", "sdpa")),
    Case(
        "a precision that loses updates",
        f"{_FIT} --trainer.precision=bf16-true",
        ("bf16-true", "bf16-mixed"),
    ),
    Case("an accelerator that is none", f"{_FIT} --trainer.accelerator=abacus", ("abacus", "cpu")),
    Case("a length of zero to train", f"{_FIT} {_DATA}.length=0", ("length=0", "1 or more")),
    Case("no batch to train", f"{_FIT} {_DATA}.global_batch_size=0", ("=0", "1 or more")),
    Case("a length over the teacher's", f"{_FIT} {_DATA}.length=64", ("64", "32", "length")),
    Case(
        "negative workers", f"{_FIT} {_DATA}.num_workers=-1", ("num_workers=-1", "give 0 for none")
    ),
    Case("a negative data seed", f"{_FIT} {_DATA}.seed=-1", ("seed=-1", "0 or more")),
    Case("negative rows to evaluate", f"{_FIT} {_DATA}.max_eval_rows=-1", ("=-1", "0 for no")),
]

PARTS = [
    Case(
        "a teacher that is not there",
        f"{_FIT} {_MODEL}.teacher=./nowhere",
        ("'./nowhere'", "give a folder"),
    ),
    Case(
        "a teacher that is a generator",
        f"{_FIT} {_MODEL}.teacher={{student}}",
        ("latent", "give a teacher without one"),
    ),
    Case(
        "a student of another shape",
        f"{_FIT} {_MODEL}.student={{other}}",
        ("vocab_size: 281 against 301", "start the student"),
    ),
    Case(
        "a student of another process",
        f"{_FIT} {_MODEL}.student={{uniform}}",
        ("differ in", "start the student"),
    ),
    Case(
        "a teacher of another process",
        f"{_FIT} {_MODEL}.teacher={{uniform}} {_MODEL}.objective=idlm.objectives.IDLM",
        ("uniform", "absorbing"),
    ),
    Case(
        "a tokenizer of another teacher",
        f"{_FIT} {_DATA}.tokenizer={{small_tokenizer}}",
        ("280 tokens", "give both the same tokenizer"),
    ),
    Case(
        "a corpus that is not there",
        f"{_FIT} {_DATA}.corpus=nowhere.txt",
        ("'nowhere.txt'", "give a path"),
    ),
    Case(
        "a corpus with a NUL",
        _FILE.replace("--data.init_args.corpus={corpus}", ""),
        ("\\x00", "give a path"),
        _set("data", corpus="a\0b"),
    ),
    Case(
        "a misspelt corpus", f"{_FIT} {_DATA}.corpus=openwebtxt", ("'openwebtxt'", "'openwebtext'")
    ),
    Case(
        "a corpus of no field",
        f"{_FIT} {_DATA}.corpus={{here}}/a.jsonl",
        ("no field 'text'", "text_field NAME"),
        lines("a.jsonl", {"body": "a"}),
    ),
    Case(
        "a field name that climbs",
        f"{_FIT} {_DATA}.corpus={{here}}/a.jsonl {_DATA}.text_field=../../x",
        ("'../../x'", "text_field NAME"),
        lines("a.jsonl", {"body": "a"}),
    ),
    Case(
        "a corpus too short",
        f"{_FIT} {_DATA}.corpus={{here}}/a.txt",
        ("is empty", "give more text"),
        text("a.txt", "a\n"),
    ),
    Case(
        "a cache that cannot be",
        f"{_FIT} {_DATA}.cache_dir={{here}}/f",
        ("cache", "IDLM_CACHE"),
        text("f", "here first"),
    ),
    Case(
        "a recipe with an unknown key",
        f"{_FIT} {_DATA}.corpus={{here}}/r.yaml",
        ("'souce'", "did you mean 'source'?"),
        _recipe("souce: local\n"),
    ),
    Case(
        "a recipe of a wrong type",
        f"{_FIT} {_DATA}.corpus={{here}}/r.yaml",
        ("validation_documents", "many"),
        _recipe("path: x\nvalidation_documents: many\n"),
    ),
    Case(
        "a recipe of an unknown source",
        f"{_FIT} {_DATA}.corpus={{here}}/r.yaml",
        ("'lokal'", "did you mean 'local'?"),
        _recipe("source: lokal\npath: x\n"),
    ),
    Case(
        "a recipe without path",
        f"{_FIT} {_DATA}.corpus={{here}}/r.yaml",
        ("needs a path",),
        _recipe("source: local\n"),
    ),
    Case(
        "a recipe that is a word",
        f"{_FIT} {_DATA}.corpus={{here}}/r.yaml",
        ("r.yaml", "unknown key 'local'"),
        _recipe("local\n"),
    ),
    Case(
        "a recipe that is a list",
        f"{_FIT} {_DATA}.corpus={{here}}/r.yaml",
        ("r.yaml", "mapping of keys to values"),
        _recipe("- a\n- b\n"),
    ),
    Case(
        "a checkpoint of something else",
        f"{_FIT} --ckpt_path {{here}}/c.ckpt",
        ("no student_updates", "--ckpt_path"),
        torch_file({"state_dict": {}, "epoch": 3, "pytorch-lightning_version": "2.5.0"}),
    ),
    Case(
        "a binary recipe",
        f"{_FIT} {_DATA}.corpus={{here}}/r.yaml",
        ("r.yaml", "cannot be read"),
        text("r.yaml", b"\xff\xfe\x00"),
    ),
    Case(
        "a recipe nested deep",
        f"{_FIT} {_DATA}.corpus={{here}}/r.yaml",
        ("r.yaml", "cannot be read"),
        text("r.yaml", "[" * 5_000),
    ),
    Case(
        "a share of nothing",
        f"{_FIT} {_DATA}.corpus={{here}}/r.yaml",
        ("validation_fraction=1.5", "try 0.05"),
        _recipe("source: local\npath: x\nvalidation_fraction: 1.5\n"),
    ),
    Case(
        "a checkpoint that is not there",
        f"{_FIT} --ckpt_path nowhere.ckpt",
        ("'nowhere.ckpt'", "leave it out"),
    ),
    Case(
        "a checkpoint that is text",
        f"{_FIT} --ckpt_path {{here}}/c.ckpt",
        ("c.ckpt", "give the .ckpt"),
        text("c.ckpt", "hello"),
    ),
    Case(
        "a checkpoint that runs code",
        f"{_FIT} --ckpt_path {{here}}/c.ckpt",
        ("posix.mkdir", "as safetensors"),
        torch_file({"state_dict": {}, "callbacks": Harm()}),
    ),
    Case(
        "a checkpoint read without care",
        f"{_FIT} --weights_only false",
        ("weights_only is false", "leave it out"),
    ),
    Case(
        "a damaged teacher",
        f"{_FIT} {_MODEL}.teacher={{here}}/model",
        ("n_blocks is 0", "1 or more"),
        copied("teacher", json_changed("config.json", n_blocks=0)),
    ),
]

_ROWS = "--data.init_args.corpus={corpus} --data.init_args.length=32"
_TEACHER = (
    f"fit --config {{configs}}/python_docs_teacher.yaml {_MODEL}.tokenizer={{teacher}} {_ROWS}"
)
_EVALUATOR = f"fit --config {{configs}}/python_docs_evaluator.yaml {_MODEL}.tokenizer={{teacher}}"

OTHERS = [
    Case(
        "a teacher of odd heads", f"{_TEACHER} {_MODEL}.hidden_dim=15", ("hidden_dim 15", "n_heads")
    ),
    Case(
        "a teacher of no blocks", f"{_TEACHER} {_MODEL}.n_blocks=0", ("n_blocks is 0", "1 or more")
    ),
    Case(
        "a schedule that is none", f"{_TEACHER} {_MODEL}.schedule=linear", ("linear", "log-linear")
    ),
    Case(
        "a process that is none to train",
        f"{_TEACHER} {_MODEL}.process=gauss",
        ("gauss", "absorbing"),
    ),
    Case("a negative Muon", f"{_TEACHER} {_MODEL}.muon_lr=-1", ("muon_lr is -1.0", "0 or more")),
    Case(
        "a teacher of a missing tokenizer",
        f"{_TEACHER} {_MODEL}.tokenizer=./no",
        ("'./no'", "give a folder"),
    ),
    Case(
        "an evaluator of no layer",
        f"{_EVALUATOR} {_MODEL}.n_layer=0",
        ("n_layer is 0", "at least 1"),
    ),
    Case(
        "an evaluator of odd heads", f"{_EVALUATOR} {_MODEL}.n_embd=15", ("n_embd=15", "multiple")
    ),
    Case(
        "an evaluator of a missing tokenizer",
        f"{_EVALUATOR} {_MODEL}.tokenizer=./no",
        ("'./no'", "give a folder"),
    ),
]

TRAINING = [*CONFIG_FILES, *KEYS, *PARTS, *OTHERS]
