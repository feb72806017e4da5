from __future__ import annotations

import platform
import subprocess
import sys

import pytest

from idlm.data import python_docs


@pytest.fixture(scope="session")
def everything() -> list[str]:
    return list(python_docs.documents())


def test_the_corpus_has_about_two_megabytes(everything: list[str]) -> None:
    size = sum(len(text.encode()) for text in everything)
    assert 1_000_000 < size < 3_000_000


def test_the_splits_are_disjoint_and_together_are_everything(everything: list[str]) -> None:
    train = list(python_docs.documents("train"))
    validation = list(python_docs.documents("validation"))
    assert not set(train) & set(validation)
    assert sorted(train + validation) == sorted(everything)
    assert 0.03 < len(validation) / len(everything) < 0.07


def test_no_document_is_short_or_there_twice(everything: list[str]) -> None:
    assert min(map(len, everything)) >= python_docs.MIN_CHARACTERS
    assert len(set(everything)) == len(everything)


def test_both_sources_are_in_it(everything: list[str]) -> None:
    import json
    from pydoc_data import topics

    assert topics.topics["assert"].strip() in everything
    assert any(text.startswith((json.__doc__ or "").strip()[:60]) for text in everything)


def test_a_new_process_finds_the_same_text_and_imports_nothing_to_read_it(
    everything: list[str],
) -> None:
    code = (
        "import sys; from idlm.data import python_docs; print(python_docs.fingerprint()); "
        "sys.exit(bool({'this', 'antigravity', 'turtle', 'torch', 'transformers'} & "
        "set(sys.modules)))"
    )
    process = subprocess.run(
        [sys.executable, "-c", code], check=False, capture_output=True, text=True
    )
    assert process.returncode == 0, process.stderr
    assert process.stdout.strip() == python_docs.fingerprint()
    assert process.stdout.startswith(f"cpython-{platform.python_version()}-")


def test_an_unknown_split_is_refused() -> None:
    with pytest.raises(ValueError, match=r"split='test' is not one of train, validation or None"):
        list(python_docs.documents("test"))
