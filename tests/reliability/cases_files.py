"""Files of every format that commands read: damaged, of another kind, or made to do harm."""

from __future__ import annotations

import os
from pathlib import Path

import torch

from tests.reliability.bad_input import (
    DEEP,
    DIGITS,
    Case,
    World,
    copied,
    file_cut,
    file_replaced,
    folder,
    json_changed,
    lines,
    samples,
    text,
    weights_changed,
)

_PROMPTS = "generate --checkpoint {student} --device cpu --output out/s.jsonl --prompt-file"
_INFILLS = "generate --checkpoint {student} --device cpu --output out/s.jsonl --infill-file"
_SAMPLES = "evaluate --evaluator {evaluator} --output out/e.json --samples {here}/s.jsonl"
_MODEL = "generate --checkpoint {here}/model --device cpu --output out/s.jsonl"
_TEXT = "inspect {teacher} --device cpu --text {here}"
_GOOD = {"text": "a", "tokens": [1, 2]}
_TOKEN = ("a list of one or more", "token ids from 0 to 16777215")
_NEW = "download it again"


class Harm:
    """What an attacker's pickle would call."""

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.mkdir, ("harm",)


def torch_file(content: object) -> object:
    """A file that ``torch.save`` wrote, as ``{here}/c.ckpt``."""

    def make(here: Path, world: World) -> None:
        torch.save(content, here / "c.ckpt")

    return make


def _link(here: Path, world: World) -> None:
    secret = here / "secret"
    secret.write_text("nobody's business")
    (here / "texts").mkdir()
    (here / "texts" / "a.txt").symlink_to(secret)


def _pipe(here: Path, world: World) -> None:
    (here / "texts").mkdir()
    os.mkfifo(here / "texts" / "a.txt")


def _only_pickle(model: Path) -> None:
    (model / "model.safetensors").rename(model / "pytorch_model.bin")


def _code_in_tokenizer(model: Path) -> None:
    json_changed(
        "tokenizer_config.json",
        auto_map={"AutoTokenizer": ["harm.Harm", "harm.Harm"]},
        tokenizer_class="Harm",
    )(model)
    (model / "harm.py").write_text("import os\nos.mkdir('harm')\n")


def _wider(tensors: dict[str, torch.Tensor]) -> None:
    name = "backbone.vocab_embed.embedding"
    tensors[name] = torch.cat([tensors[name], tensors[name]])


def _fewer(tensors: dict[str, torch.Tensor]) -> None:
    tensors.pop("backbone.vocab_embed.embedding")


def _whole(tensors: dict[str, torch.Tensor]) -> None:
    tensors["backbone.vocab_embed.embedding"] = tensors["backbone.vocab_embed.embedding"].long()


PROMPT_FILES = [
    Case("no prompt file", f"{_PROMPTS} nowhere.txt", ("nowhere.txt", "name a file")),
    Case("a folder of prompts", f"{_PROMPTS} {{here}}", ("cannot be read", "name a file")),
    Case(
        "an empty prompt file",
        f"{_PROMPTS} {{here}}/p.txt",
        ("p.txt is empty", "leave it out"),
        text("p.txt", ""),
    ),
    Case(
        "an empty file of prompts",
        f"{_PROMPTS} {{here}}/p.jsonl",
        ("p.jsonl is empty", "one prompt a line"),
        text("p.jsonl", "\n\n"),
    ),
    Case(
        "a binary prompt",
        f"{_PROMPTS} {{here}}/p.txt",
        ("not UTF-8 (byte 1)", "save it as UTF-8"),
        text("p.txt", b"a\xff\xfe\x00"),
    ),
    Case(
        "a prompt in UTF-16",
        f"{_PROMPTS} {{here}}/p.jsonl",
        ("not UTF-8", "save it as UTF-8"),
        text("p.jsonl", '"a"\n'.encode("utf-16")),
    ),
    Case(
        "a prompt that is no JSON",
        f"{_PROMPTS} {{here}}/p.jsonl",
        ("line 2", "not JSON", "one prompt a line"),
        text("p.jsonl", '"a"\n{"prompt": \n'),
    ),
    Case(
        "a prompt nested a hundred thousand deep",
        f"{_PROMPTS} {{here}}/p.jsonl",
        ("line 1", "not JSON", "one prompt a line"),
        text("p.jsonl", DEEP),
    ),
    Case(
        "a prompt of another key",
        f"{_PROMPTS} {{here}}/p.jsonl",
        ("line 1", "holds no prompt", '{"prompt": ...}'),
        lines("p.jsonl", {"promt": "a"}),
    ),
    Case(
        "a prompt with fractions",
        f"{_PROMPTS} {{here}}/p.jsonl",
        ("line 1", "a list of token ids"),
        lines("p.jsonl", [1, 2.5]),
    ),
    Case(
        "prompts of two kinds",
        f"{_PROMPTS} {{here}}/p.jsonl",
        ("mixes text and token ids", "give all as one"),
        lines("p.jsonl", "a", [1]),
    ),
    Case(
        "half a character in a prompt",
        f"{_PROMPTS} {{here}}/p.jsonl",
        ("\\ud83d", "give it as UTF-8"),
        text("p.jsonl", '"a\\ud83d"\n'),
    ),
    Case(
        "a token beyond the vocabulary",
        f"{_PROMPTS} {{here}}/p.jsonl",
        ("token id 301", "0 to 299"),
        lines("p.jsonl", [301, 302]),
    ),
    Case(
        "the mask in a prompt",
        f"{_PROMPTS} {{here}}/p.jsonl",
        ("300, the mask id", "as infill"),
        lines("p.jsonl", [1, 300]),
    ),
    Case(
        "a token of 65 bits",
        f"{_PROMPTS} {{here}}/p.jsonl",
        ("prompt", "whole numbers"),
        lines("p.jsonl", [1, 1 << 70]),
    ),
    Case(
        "a token of 64 bits",
        f"{_INFILLS} {{here}}/p.jsonl",
        ("9223372036854775808", "whole numbers"),
        lines("p.jsonl", [1 << 63]),
    ),
    Case(
        "a token of 5000 digits",
        f"{_PROMPTS} {{here}}/p.jsonl",
        ("line 1", "one prompt a line"),
        text("p.jsonl", f"[{DIGITS}]"),
    ),
    Case(
        "an infill without slots in a file",
        f"{_INFILLS} {{here}}/i.jsonl",
        ("nothing to write", "by None"),
        lines("i.jsonl", [1, 2]),
    ),
    Case(
        "an infill over the context",
        f"{_INFILLS} {{here}}/i.jsonl",
        ("length of infill is 40", "32"),
        lines("i.jsonl", [None] * 40),
    ),
]

SAMPLE_FILES = [
    Case("an empty samples file", _SAMPLES, ("header", '"steps": 16'), text("s.jsonl", "")),
    Case("a folder of samples", _SAMPLES, ("s.jsonl", "idlm generate"), folder("s.jsonl")),
    Case("no samples in it", _SAMPLES, ("no samples", "at least one"), samples()),
    Case("no header", _SAMPLES, ("does not start with a header",), lines("s.jsonl", _GOOD)),
    Case("binary samples", _SAMPLES, ("byte 0", "idlm generate"), text("s.jsonl", b"\x89PNG\r\n")),
    Case("samples that are no JSON", _SAMPLES, ("line 1", "JSON object"), text("s.jsonl", "a: 1")),
    Case("samples nested deep", _SAMPLES, ("line 1", "JSON object"), text("s.jsonl", DEEP)),
    Case("a sample that is a list", _SAMPLES, ("line 2 is a list", "object"), samples([1])),
    Case("a sample without text", _SAMPLES, ("line 2", '"text" string'), samples({"tokens": [1]})),
    Case("a sample without tokens", _SAMPLES, ("line 2", *_TOKEN), samples({"text": "a"})),
    Case("no tokens in a sample", _SAMPLES, _TOKEN, samples({**_GOOD, "tokens": []})),
    Case("a negative token", _SAMPLES, _TOKEN, samples(_GOOD, {**_GOOD, "tokens": [-1]})),
    Case("a token that is true", _SAMPLES, _TOKEN, samples({**_GOOD, "tokens": [True]})),
    Case("an enormous token", _SAMPLES, _TOKEN, samples({**_GOOD, "tokens": [1 << 40]})),
    Case("a sample with nan", _SAMPLES, ("line 2", "NaN"), samples({**_GOOD, "x": float("nan")})),
    Case(
        "half a character in a sample",
        _SAMPLES,
        ("line 2", "\\ud83d", "half a character", "idlm generate"),
        samples({**_GOOD, "text": "\ud83d"}),
    ),
    Case(
        "a sample of 5000 digits",
        _SAMPLES,
        ("line 1", "JSON object"),
        text("s.jsonl", f'{{"steps": {DIGITS}}}'),
    ),
]

CHECKPOINTS = [
    Case("a folder without a checkpoint", _MODEL, ("no config.json", "no model"), folder("model")),
    Case(
        "a config.json that is no JSON",
        _MODEL,
        ("config.json is not valid JSON", _NEW),
        copied("student", file_replaced("config.json", b"{]")),
    ),
    Case(
        "a binary config",
        _MODEL,
        ("config.json is not valid JSON", _NEW),
        copied("student", file_replaced("config.json", b"\xff\x00")),
    ),
    Case(
        "a config.json nested deep",
        _MODEL,
        ("config.json is not valid JSON", _NEW),
        copied("student", file_replaced("config.json", DEEP.encode())),
    ),
    Case(
        "a config.json that is a list",
        _MODEL,
        ("not a JSON object", _NEW),
        copied("student", file_replaced("config.json", b"[]")),
    ),
    Case(
        "a config.json of another model",
        _MODEL,
        ("model_type 'bert'", "this version loads"),
        copied("student", json_changed("config.json", model_type="bert")),
    ),
    Case(
        "a config without a size",
        _MODEL,
        ("lacks n_blocks", "complete the config.json"),
        copied("student", json_changed("config.json", n_blocks=None)),
    ),
    Case(
        "a negative size",
        _MODEL,
        ("hidden_dim is -16", "1 or more"),
        copied("student", json_changed("config.json", hidden_dim=-16)),
    ),
    Case(
        "a size in words",
        _MODEL,
        ("n_blocks is 'two'", "whole number"),
        copied("student", json_changed("config.json", n_blocks="two")),
    ),
    Case(
        "a size that is not that of the weights",
        _MODEL,
        ("do not fit its configuration", "instead of"),
        copied("student", json_changed("config.json", hidden_dim=32)),
    ),
    Case(
        "a size beyond any machine",
        _MODEL,
        ("sizes beyond any machine", "download its config.json again"),
        copied("student", json_changed("config.json", vocab_size=10**15, hidden_dim=10**15)),
    ),
    Case(
        "a process that is none",
        _MODEL,
        ("'absorbent'", "absorbing"),
        copied("student", json_changed("config.json", process="absorbent")),
    ),
    Case(
        "no weights",
        _MODEL,
        ("has no model.safetensors", "download the checkpoint again"),
        copied("student", lambda model: (model / "model.safetensors").unlink()),
    ),
    Case(
        "weights as a pickle",
        _MODEL,
        ("pickle (.bin), which is not read", "save_file"),
        copied("student", _only_pickle),
    ),
    Case(
        "truncated weights",
        _MODEL,
        ("truncated or corrupt", _NEW),
        copied("student", file_cut("model.safetensors")),
    ),
    Case(
        "empty weights",
        _MODEL,
        ("truncated or corrupt", _NEW),
        copied("student", file_replaced("model.safetensors", b"")),
    ),
    Case(
        "weights that are text",
        _MODEL,
        ("truncated or corrupt", _NEW),
        copied("student", file_replaced("model.safetensors", b"version https://git-lfs\n" * 20)),
    ),
    Case(
        "weights of another vocabulary",
        _MODEL,
        ("is (602, 16) instead of (301, 16)",),
        copied("student", weights_changed(_wider)),
    ),
    Case(
        "a weight too few",
        _MODEL,
        ("missing: backbone.vocab_embed.embedding",),
        copied("student", weights_changed(_fewer)),
    ),
    Case(
        "whole numbers as weights",
        _MODEL,
        ("not floating point: backbone.vocab_embed.embedding is int64",),
        copied("student", weights_changed(_whole)),
    ),
    Case(
        "a shard outside of the folder",
        _MODEL,
        ("no secret.safetensors", "download the checkpoint again"),
        copied(
            "student",
            file_replaced(
                "model.safetensors.index.json", b'{"weight_map": {"a": "../../secret.safetensors"}}'
            ),
        ),
    ),
    Case(
        "an index nested deep",
        _MODEL,
        ("lists no shards", _NEW),
        copied("student", file_replaced("model.safetensors.index.json", DEEP.encode())),
    ),
    Case(
        "a tokenizer that is no JSON",
        _MODEL,
        ("tokenizer", "cannot be opened", _NEW),
        copied("student", file_replaced("tokenizer.json", b"{")),
    ),
    Case(
        "an empty tokenizer",
        _MODEL,
        ("tokenizer", "cannot be opened", _NEW),
        copied("student", file_replaced("tokenizer.json", b"{}")),
    ),
    Case(
        "a tokenizer that wants to run code",
        _MODEL,
        ("tokenizer", "cannot be opened"),
        copied("student", _code_in_tokenizer),
    ),
    Case(
        "a tokenizer of another checkpoint",
        "generate --checkpoint {other} --tokenizer {teacher} --output out/s.jsonl",
        ("300 tokens", "use the tokenizer"),
    ),
    Case(
        "a checkpoint without tokenizer",
        f"{_MODEL} --prompt a",
        ("no tokenizer.json", "put the tokenizer's files"),
        copied("student", lambda model: [p.unlink() for p in model.glob("tokenizer*")] and None),
    ),
    Case(
        "a Lightning file that is not there",
        "inspect nowhere.ckpt",
        ("'nowhere.ckpt'", "check the path"),
    ),
    Case(
        "a Lightning file that is text",
        "inspect {here}/c.ckpt",
        ("c.ckpt is no PyTorch checkpoint", "give a Lightning .ckpt"),
        text("c.ckpt", "hello"),
    ),
    Case(
        "an empty Lightning file",
        "export --checkpoint {here}/c.ckpt --output out",
        ("c.ckpt is no PyTorch checkpoint", "give a Lightning .ckpt"),
        text("c.ckpt", ""),
    ),
    Case(
        "a Lightning file without weights",
        "inspect {here}/c.ckpt",
        ("holds no state_dict", "give the .ckpt that a training run wrote"),
        torch_file({"epoch": 3}),
    ),
    Case(
        "a Lightning file that runs code",
        "inspect {here}/c.ckpt",
        ("its pickle wants to call posix.mkdir", "ask for the weights as safetensors"),
        torch_file({"state_dict": {}, "callbacks": Harm()}),
    ),
    Case(
        "an evaluator of broken weights",
        "evaluate --samples {samples} --evaluator {here}/model",
        ("could not be loaded as a causal language model", "give a folder"),
        copied("evaluator", file_cut("model.safetensors")),
    ),
    Case(
        "an evaluator that is a list",
        "evaluate --samples {samples} --evaluator {here}/model",
        ("could not be loaded as a causal language model", "give a folder"),
        copied("evaluator", file_replaced("config.json", b"[]")),
    ),
    Case(
        "an evaluator without a tokenizer",
        "evaluate --samples {samples} --evaluator {here}/model",
        ("no tokenizer could be opened", "give a folder"),
        copied("evaluator", lambda model: [p.unlink() for p in model.glob("tokenizer*")] and None),
    ),
]

TEXTS = [
    Case("a text of another kind", f"{_TEXT}/a.pdf", ("a.pdf", "convert"), text("a.pdf", "%PDF")),
    Case(
        "an empty text",
        f"{_TEXT}/a.txt",
        ("no text to measure on", "with some words"),
        text("a.txt", ""),
    ),
    Case(
        "a text that is not UTF-8",
        f"{_TEXT}/a.txt",
        ("byte 0xe9 at offset 3", "iconv -t UTF-8"),
        text("a.txt", "caf\xe9".encode("latin-1") * 500),
    ),
    Case(
        "lines that are no JSON",
        f"{_TEXT}/a.jsonl",
        ("line 2", "one JSON object"),
        text("a.jsonl", '{"text": "a"}\n{"text": \n'),
    ),
    Case(
        "lines that are lists", f"{_TEXT}/a.jsonl", ("line 1", "a JSON list"), lines("a.jsonl", [])
    ),
    Case(
        "lines of another field",
        f"{_TEXT}/a.jsonl",
        ("no field 'text'", "'body'", "text_field NAME"),
        lines("a.jsonl", {"body": "a"}),
    ),
    Case(
        "a field of numbers",
        f"{_TEXT}/a.jsonl",
        ("'text' holds a int", "text_field NAME"),
        lines("a.jsonl", {"text": 3}),
    ),
    Case("lines nested deep", f"{_TEXT}/a.jsonl", ("line 1", "JSON object"), text("a.jsonl", DEEP)),
    Case(
        "a line of 5000 digits",
        f"{_TEXT}/a.jsonl",
        ("line 1", "one JSON object"),
        text("a.jsonl", f'{{"text": "a", "n": {DIGITS}}}'),
    ),
    Case(
        "half a character in a line",
        f"{_TEXT}/a.jsonl",
        ("line 1", "\\ud83d", "write the file as UTF-8"),
        text("a.jsonl", '{"text": "a\\ud83d"}\n'),
    ),
    Case(
        "a link out of a folder of text",
        f"{_TEXT}/texts",
        ("a.txt", "a link to", "put the file itself there"),
        _link,
    ),
    Case("a pipe in a folder of text", f"{_TEXT}/texts", ("a.txt", "remove it"), _pipe),
    Case("a recipe that is not there", f"{_TEXT}/r.yaml", ("r.yaml", "shipped recipes are")),
]

_REPORT = "report --output {here}/out"
REPORTS = [
    Case("a report of nothing", "report --output {here}/out", ("required: RUN", "--help")),
    Case(
        "a report of what is not there", f"{_REPORT} {{here}}/r", ("/r does not exist", "a RUN is")
    ),
    Case(
        "a report of text",
        f"{_REPORT} {{here}}/r.json",
        ("r.json is no JSON", "write it again"),
        text("r.json", "GenPPL 3"),
    ),
    Case(
        "a report of half a file",
        f"{_REPORT} {{here}}/r.json",
        ("r.json is no JSON", "write it again"),
        text("r.json", '[{"dataset": "circles"'),
    ),
    Case(
        "a report into a file",
        "report {here}/r.json --output {here}/r.json",
        ("r.json is a file", "name a folder"),
        text("r.json", "[]"),
    ),
    Case(
        "published numbers that are not there",
        f"{_REPORT} {{here}}/s.jsonl --published {{here}}/p.csv",
        ("p.csv cannot be read", "name a file"),
        samples(_GOOD),
    ),
]

FILES = [*PROMPT_FILES, *SAMPLE_FILES, *CHECKPOINTS, *TEXTS, *REPORTS]
