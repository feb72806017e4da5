"""Tiny checkpoints, shared by the tests of this folder."""

from __future__ import annotations

import pytest

from tests.tiny_models import Folders, Make, make_models, random_denoiser


@pytest.fixture(scope="session")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Folders:
    return make_models(tmp_path_factory.mktemp("tiny_models"))


@pytest.fixture
def make() -> Make:
    return random_denoiser
