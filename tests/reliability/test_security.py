"""What SECURITY.md promises: no code from data, no path out of a folder, nothing left readable."""

from __future__ import annotations

import ast
import contextlib
import json
import os
import stat
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

import idlm
from idlm.data import cache
from idlm.data.corpora import LocalText, text_files
from idlm.data.huggingface import HuggingFaceDataset
from idlm.data.packing import PackingReport
from idlm.data.recipes import recipe_file, recipe_names
from idlm.data.registry import open_corpus
from idlm.errors import UserError
from idlm.evaluation.keep import file_name
from idlm.evaluation.protocol import read_protocol
from idlm.metrics.evaluators import load_evaluator, open_tokenizer
from idlm.models import load_tokenizer
from idlm.models.export import replacing
from idlm.models.publish import check_repository
from idlm.paths import check_writable, leads_inside, repo_dir, resolve
from idlm.samples import replace_bytes, replace_file
from tests.tiny_models import Folders, make_models

PACKAGE = repo_dir() / "idlm"
SOURCES = sorted(PACKAGE.rglob("*.py")) + sorted((repo_dir() / "scripts").rglob("*.py"))
# What opens a model, tokenizer or dataset by name, and could fetch code along with it.
LOADERS = {"from_pretrained", "load_dataset", "load_dataset_builder", "get_dataset_split_names"}
CLIMBING = st.one_of(
    st.sampled_from(
        ["..", "../x", "/etc/passwd", "a/../../b", "./x", "~/x", "~root", "\0", "a\0b"]
    ),
    st.sampled_from(["..\\x", "C:\\x", "x" * 5000, "é" * 300, "", ".", "con", "a/b/c", "//x"]),
    st.text(max_size=12),
    st.lists(st.sampled_from(["..", ".", "a", "", "\0"]), min_size=1, max_size=6).map("/".join),
)
TRIED = settings(
    max_examples=60,
    derandomize=True,
    database=None,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Folders:
    return make_models(tmp_path_factory.mktemp("models"))


def calls(path: Path) -> list[ast.Call]:
    """Every call in a source file."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    return [node for node in ast.walk(tree) if isinstance(node, ast.Call)]


def name_of(call: ast.Call) -> str:
    """``load`` for ``torch.load(...)``."""
    return getattr(call.func, "attr", getattr(call.func, "id", ""))


def keywords(call: ast.Call) -> dict[str, str]:
    return {word.arg: ast.unparse(word.value) for word in call.keywords if word.arg}


# no code from checkpoints and datasets


def test_no_call_lets_remote_code_in() -> None:
    seen = 0
    for path in SOURCES:
        for call in calls(path):
            given_ = keywords(call)
            assert given_.get("trust_remote_code", "False") == "False", path
            # transformers' tokenizers and models ask at the terminal unless they are told no
            owner = ast.unparse(getattr(call.func, "value", call.func))
            if name_of(call) == "from_pretrained" and owner.startswith("Auto"):
                has_options = any(word.arg is None for word in call.keywords)
                assert "trust_remote_code" in given_ or has_options, path
                seen += 1
    assert seen >= 4
    text = (PACKAGE / "metrics" / "evaluators.py").read_text()
    assert '"trust_remote_code": False' in text  # the options of the one call that has them


def test_nothing_in_the_package_unpickles_or_evaluates() -> None:
    allowed = {PACKAGE / "models" / "unpickle.py"}  # whose reader answers no name with a callable
    # the process that a generated program is to run in, behind the kernel's filter
    sandboxed = PACKAGE / "sandbox" / "child.py"
    for path in SOURCES:
        tree = ast.parse(path.read_text(encoding="utf-8"))
        modules = {a.name for n in ast.walk(tree) if isinstance(n, ast.Import) for a in n.names}
        assert not modules & {"dill", "cloudpickle", "joblib", "marshal", "shelve"}, path
        assert "pickle" not in modules or path in allowed, path
        for call in calls(path):
            callee = ast.unparse(call.func)
            forbidden = {"eval", "exec", "os.system", "yaml.load", "pickle.loads"}
            assert callee not in forbidden - ({"exec"} if path == sandboxed else set()), path
            if callee == "torch.load":
                assert keywords(call).get("weights_only") == "True", path
            if callee == "np.load":
                assert keywords(call).get("allow_pickle", "False") == "False", path


def remote_code(folder: Path, kind: str) -> Path:
    """A folder whose configuration names a class of its own, in a file that leaves a trace."""
    folder.mkdir()
    names = {"AutoConfig": "harm.Config", kind: "harm.Model", "AutoTokenizer": ["harm.T", "harm.T"]}
    (folder / "config.json").write_text(json.dumps({"model_type": "harm", "auto_map": names}))
    (folder / "tokenizer_config.json").write_text(
        json.dumps({"tokenizer_class": "T", "auto_map": names})
    )
    (folder / "tokenizer.json").write_text("{}")
    (folder / "harm.py").write_text("open('harmed', 'w')\nclass Config: ...\nclass Model: ...\n")
    return folder


@pytest.mark.parametrize("open_", [load_evaluator, open_tokenizer, load_tokenizer, idlm.load])
def test_the_code_of_a_repository_is_never_run(
    open_: object, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    folder = remote_code(tmp_path / "model", "AutoModelForCausalLM")
    with pytest.raises(UserError):
        open_(str(folder))  # type: ignore[operator]
    assert not (tmp_path / "harmed").exists()


@pytest.mark.parametrize("streaming", [False, True])
def test_a_dataset_with_a_script_is_refused_and_the_script_not_run(
    streaming: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "corpus"
    folder.mkdir()
    (folder / "corpus.py").write_text("open('harmed', 'w')\n")
    with pytest.raises(UserError, match="could not be loaded"):
        list(HuggingFaceDataset(str(folder), streaming=streaming).documents("train"))
    with pytest.raises(UserError, match="could not be loaded"):
        list(HuggingFaceDataset(str(folder / "corpus.py")).documents("train"))
    assert not (tmp_path / "harmed").exists()


def test_an_evaluator_that_is_a_pickle_runs_nothing(
    folders: Folders, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Harm:
        def __reduce__(self) -> tuple[object, tuple[str]]:
            return os.mkdir, ("harmed",)

    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "judge"
    folder.mkdir()
    (folder / "config.json").write_bytes((folders.evaluator / "config.json").read_bytes())
    torch.save({"transformer.wte.weight": Harm()}, folder / "pytorch_model.bin")
    with pytest.raises(UserError, match="could not be loaded"):
        load_evaluator(str(folder))
    assert not (tmp_path / "harmed").exists()


# names from outside are no paths


@TRIED
@given(name=CLIMBING)
@example(name="../models/python-docs-teacher")
def test_a_recipe_is_found_by_its_name_alone(name: str) -> None:
    if name.endswith((".yaml", ".yml")):  # a path that the user gives
        return
    found = recipe_file(name)
    assert (found is not None) == (name in recipe_names())


@TRIED
@given(name=CLIMBING)
def test_a_bundled_model_is_found_by_its_name_alone(name: str) -> None:
    assert resolve(name) == str(name)


@TRIED
@given(name=CLIMBING)
@example(name="owner/../../name")
@example(name="owner/..")
@example(name="-owner/name")
def test_a_repository_has_an_owner_and_a_name_and_climbs_nowhere(name: str) -> None:
    try:
        check_repository(name)
    except UserError:
        return
    owner, repository = name.split("/")
    assert ".." not in name
    assert "" not in (owner, repository)
    assert not name.startswith((".", "-", "/"))


@TRIED
@given(name=CLIMBING)
def test_a_corpus_that_is_no_file_is_a_plain_name_or_refused(name: str) -> None:
    if _exists(name):
        return
    try:
        corpus = open_corpus(name)
    except (UserError, OSError):
        return
    if isinstance(corpus, HuggingFaceDataset):
        assert not name.startswith((".", "/", "~"))
        assert name.count("/") <= 1
        assert "\0" not in name


@TRIED
@given(name=CLIMBING)
def test_a_field_is_looked_up_in_the_row_and_nowhere_else(name: str, tmp_path: Path) -> None:
    file = tmp_path / "rows.jsonl"
    file.write_text(json.dumps({name: "found", "other": "not this"}) + "\n")
    corpus = LocalText(file, text_field=name, validation=file)
    assert list(corpus.documents("train")) == ["found"]
    absent = LocalText(file, text_field=f"{name}?", validation=file)
    with pytest.raises(UserError, match="there is no field"):
        list(absent.documents("train"))


@pytest.mark.parametrize("label", ["../x", "/tmp/x", "a/b", "../..", ".", "a\0b"])
def test_a_label_of_a_protocol_names_a_file_in_its_folder(label: str, tmp_path: Path) -> None:
    body = {
        "models": [{"label": label, "checkpoint": "x", "steps": [1]}],
        "teacher": label,
        "evaluator": "x",
    }
    path = tmp_path / "p.yaml"
    path.write_text(json.dumps(body))
    with pytest.raises(UserError, match="label"):
        read_protocol(path)


@TRIED
@given(name=CLIMBING)
def test_the_name_of_a_checkpoint_leads_no_sample_file_out_of_its_folder(name: str) -> None:
    # as `idlm evaluate --save-samples` names it
    written = file_name({"checkpoint": name, "steps": 16, "temperature": 1.0, "seed": 0})
    assert "/" not in written
    assert (Path("/folder") / written).parent == Path("/folder")


def test_a_link_out_of_a_folder_of_text_is_refused_and_one_inside_is_read(tmp_path: Path) -> None:
    folder = tmp_path / "text"
    folder.mkdir()
    (tmp_path / "secret").write_text("nobody's business")
    (folder / "real.txt").write_text("mine")
    (folder / "again.txt").symlink_to("real.txt")
    assert [file.name for file in text_files(folder)] == ["again.txt", "real.txt"]
    for target in ("../secret", str(tmp_path / "secret"), "nowhere", "loop.txt"):
        (folder / "loop.txt").symlink_to(target)
        with pytest.raises(UserError, match=r"loop\.txt"):
            text_files(folder)
        (folder / "loop.txt").unlink()


def test_the_links_of_the_hugging_face_cache_are_inside_of_it(tmp_path: Path) -> None:
    blobs, snapshot = tmp_path / "blobs", tmp_path / "snapshots" / "abc"
    blobs.mkdir()
    snapshot.mkdir(parents=True)
    (blobs / "1").write_text("text")
    (snapshot / "a.txt").symlink_to("../../blobs/1")
    assert leads_inside(snapshot / "a.txt", snapshot)
    assert text_files(snapshot) == [snapshot / "a.txt"]


@TRIED
@given(name=CLIMBING)
def test_any_name_of_an_output_is_writable_or_refused(name: str, tmp_path: Path) -> None:
    # a name that is too long is the system's to refuse, which the command line tells
    with contextlib.suppress(UserError, OSError):
        check_writable("--output", tmp_path / "out" / name.lstrip("/"))
    assert list(tmp_path.iterdir()) == []


def _exists(name: str) -> bool:
    try:
        return Path(name).expanduser().exists()
    except (OSError, RuntimeError, ValueError):
        return False


# temporary files


def temporary(folder: Path) -> list[Path]:
    """What lies in a folder under a name that begins with a dot."""
    return [path for path in folder.iterdir() if path.name.startswith(".")]


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


@pytest.mark.parametrize("mask", [0o022, 0o077, 0o000])
def test_a_file_being_written_is_its_owners_alone_and_then_has_the_usual_permissions(
    mask: int, tmp_path: Path
) -> None:
    path = tmp_path / "out.json"
    seen = []

    def pieces() -> object:
        seen.extend(mode(file) for file in temporary(tmp_path))
        yield "text"

    before = os.umask(mask)
    try:
        replace_file(path, pieces())  # type: ignore[arg-type]
        assert os.umask(mask) == mask  # looked at, and put back
    finally:
        os.umask(before)
    assert seen == [0o600]
    assert mode(path) == 0o666 & ~mask
    assert temporary(tmp_path) == []


def test_a_file_that_is_replaced_keeps_its_permissions(tmp_path: Path) -> None:
    path = tmp_path / "private.json"
    path.write_text("old")
    path.chmod(0o600)
    replace_file(path, ["new"])
    assert (path.read_text(), mode(path)) == ("new", 0o600)


def test_a_link_waiting_under_the_temporary_name_is_not_followed(tmp_path: Path) -> None:
    victim = tmp_path / "victim"
    victim.write_text("precious")
    folder = tmp_path / "shared"
    folder.mkdir()
    for number in (os.getpid(), os.getpid() + 1):
        for name in (f".out.{number}.tmp", f".out.json.{number}.tmp", f".out.png.{number}.png"):
            (folder / name).symlink_to(victim)
    replace_file(folder / "out.json", ["text"])
    replace_bytes(folder / "out.png", lambda file: file.write(b"png"))
    assert victim.read_text() == "precious"


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt, OSError, MemoryError])
def test_a_failed_write_leaves_the_old_file_and_nothing_else(
    error: type[BaseException], tmp_path: Path
) -> None:
    path = tmp_path / "out.json"
    path.write_text("old")

    def fail(_: object = None) -> None:
        raise error("full")

    with pytest.raises((error, UserError)):
        replace_bytes(path, fail)
    with pytest.raises(UserError, match="half a character"):
        replace_file(path, ["a", "\ud800"])
    seen = []
    with pytest.raises(error), replacing(tmp_path / "model") as staging:
        fail(seen.append(mode(staging)))
    assert seen == [0o700]
    assert [file.name for file in tmp_path.iterdir()] == ["out.json"]
    assert path.read_text() == "old"


def test_packed_rows_are_private_while_they_are_written_and_gone_if_that_fails(
    tmp_path: Path,
) -> None:
    seen = []

    def blocks(broken: bool) -> object:
        yield np.zeros((2, 4), np.uint16)
        seen.extend(mode(file) for file in temporary(tmp_path))
        if broken:
            raise RuntimeError("the corpus went away")

    for broken in (True, False):
        try:
            cache.write_rows(
                tmp_path,
                "k",
                blocks(broken),
                conditions={},
                report=PackingReport(),  # type: ignore[arg-type]
            )
        except RuntimeError:
            assert list(tmp_path.iterdir()) == []
    assert seen
    assert all(found & 0o077 == 0 for found in seen)
    assert temporary(tmp_path) == []


def test_the_longest_name_that_a_folder_takes_can_be_written(tmp_path: Path) -> None:
    for name in ("x" * 255, "é" * 127):
        assert replace_file(tmp_path / name, ["text"]).read_text() == "text"
    with pytest.raises(UserError, match="too long"):
        replace_file(tmp_path / ("x" * 256), ["text"])
    with pytest.raises(UserError, match="cannot be written"):
        replace_file(tmp_path / "a\0b", ["text"])


# the page


def test_the_security_page_names_tests_that_exist() -> None:
    page = (repo_dir() / "SECURITY.md").read_text(encoding="utf-8")
    named = {word.strip("`.,;:()") for word in page.split() if "tests/" in word}
    assert len(named) >= 5
    assert [name for name in named if not (repo_dir() / name).exists()] == []
