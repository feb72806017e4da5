from __future__ import annotations

from pathlib import Path

import pytest

from idlm.data.corpora import LocalText, PythonDocs
from idlm.data.huggingface import HuggingFaceDataset
from idlm.data.recipes import load_recipe, recipe_file, recipe_names
from idlm.data.registry import open_corpus
from idlm.errors import UserError


def test_the_promised_recipes_ship() -> None:
    assert {"lm1b", "openwebtext", "python_docs", "wikitext103"} <= set(recipe_names())


@pytest.mark.parametrize("name", recipe_names())
def test_a_shipped_recipe_loads_and_says_what_it_is(name: str) -> None:
    file = recipe_file(name)
    assert file is not None
    recipe = load_recipe(file)
    assert recipe.description
    assert recipe.license
    assert recipe.homepage.startswith("https://")
    assert recipe.tokenizer
    assert open_corpus(name).tokenizer == recipe.tokenizer


@pytest.mark.parametrize("name", recipe_names())
def test_a_recipe_from_the_hub_is_pinned_to_a_commit(name: str) -> None:
    corpus = open_corpus(name)
    if isinstance(corpus, HuggingFaceDataset):
        assert corpus.revision is not None
        assert len(corpus.revision) == 40


def test_openwebtext_is_the_published_split() -> None:
    corpus = open_corpus("openwebtext")
    assert isinstance(corpus, HuggingFaceDataset)
    assert corpus._split("train") == "train[:-100000]"
    assert corpus._split("validation") == "train[-100000:]"
    assert corpus.special_ends
    assert corpus.tokenizer == "gpt2"


def test_python_docs_is_found_by_name() -> None:
    assert isinstance(open_corpus("python_docs"), PythonDocs)


def test_a_local_recipe_is_relative_to_its_file(tmp_path: Path) -> None:
    (tmp_path / "text.txt").write_text("words")
    (tmp_path / "mine.yaml").write_text("source: local\npath: text.txt\ntokenizer: gpt2\n")
    corpus = open_corpus(str(tmp_path / "mine.yaml"))
    assert isinstance(corpus, LocalText)
    assert corpus.files == [tmp_path / "text.txt"]
    assert corpus.tokenizer == "gpt2"


def test_options_override_a_recipe() -> None:
    corpus = open_corpus("wikitext103", text_field="body", revision="main")
    assert isinstance(corpus, HuggingFaceDataset)
    assert (corpus.text_field, corpus.revision) == ("body", "main")


def test_a_name_may_carry_a_configuration() -> None:
    corpus = open_corpus("owner/name:config", revision="v1")
    assert isinstance(corpus, HuggingFaceDataset)
    assert (corpus.path, corpus.config, corpus.revision) == ("owner/name", "config", "v1")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("validation_doc: 5", r"unknown key 'validation_doc'; did you mean 'validation_docum"),
        ("path: a\nvalidation_documents: many", r"cannot be read: Value 'many' of type 'str'"),
        ("path: [", r"bad.yaml' cannot be read: while parsing a flow node"),
        ("source: web\npath: a", r"source is 'web'; Known: huggingface, local, python_docs"),
        ("source: locale\npath: a", r"source is 'locale'; did you mean 'local'\?"),
        ("source: local", r"a recipe of source 'local' needs a path"),
        ("- a\n- b", r"bad.yaml' is not a mapping of keys to values"),
    ],
)
def test_a_bad_recipe_is_refused(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "bad.yaml").write_text(text)
    with pytest.raises(UserError, match=message):
        open_corpus(str(tmp_path / "bad.yaml"))


def test_a_missing_recipe_names_those_that_ship() -> None:
    with pytest.raises(UserError, match=r"no recipe 'none.yaml'; shipped recipes are lm1b, "):
        open_corpus("none.yaml")


def test_a_misspelt_recipe_is_corrected() -> None:
    with pytest.raises(UserError, match=r"no corpus 'python_doc'; did you mean .*'python_docs'"):
        open_corpus("python_doc")


@pytest.mark.parametrize("corpus", ["a/b/c", "./none", "~/none.jsonl", "some words"])
def test_what_can_only_be_a_path_is_not_looked_for_on_the_hub(corpus: str) -> None:
    with pytest.raises(UserError, match=r"there is no file or folder .*a recipe \(lm1b"):
        open_corpus(corpus)


def test_options_that_do_not_apply_are_refused(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("words")
    with pytest.raises(UserError, match=r"revision='v1' cannot be used here.*not on the hub"):
        open_corpus(str(tmp_path / "a.txt"), revision="v1")
    with pytest.raises(UserError, match=r"revision='v1' cannot be used here"):
        open_corpus("python_docs", revision="v1")
    with pytest.raises(UserError, match=r"text_field='body' .* 'python_docs' has no fields"):
        open_corpus("python_docs", text_field="body")
