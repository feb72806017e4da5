"""One set of tiny models and one text for all trainings."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.tiny_models import Folders, make_models
from tests.training.helpers import write_corpus


@pytest.fixture(scope="session")
def models(tmp_path_factory: pytest.TempPathFactory) -> Folders:
    return make_models(tmp_path_factory.mktemp("models"))


@pytest.fixture(scope="session")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_corpus(tmp_path_factory.mktemp("text") / "corpus.txt")
