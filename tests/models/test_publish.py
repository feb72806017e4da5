"""Pushing is one commit, or one sentence that says why not."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import huggingface_hub
import pytest
from huggingface_hub.errors import HfHubHTTPError, LocalTokenNotFoundError, OfflineModeIsEnabled

from idlm.errors import UserError
from idlm.models.publish import push_folder


class Hub:
    """Stands in for HfApi and remembers what it was asked."""

    def __init__(self, *, private: bool = False, error: Exception | None = None) -> None:
        self.private, self.error = private, error
        self.calls: list[tuple[str, dict[str, Any]]] = []

    def create_repo(self, repo_id: str, **options: Any) -> None:
        self.calls.append(("create", {"repo_id": repo_id, **options}))
        if self.error is not None:
            raise self.error

    def repo_info(self, repo_id: str) -> SimpleNamespace:
        return SimpleNamespace(private=self.private)

    def upload_folder(self, **options: Any) -> SimpleNamespace:
        self.calls.append(("upload", options))
        return SimpleNamespace(commit_url=f"https://hub/{options['repo_id']}/commit/1")


def hub(monkeypatch: pytest.MonkeyPatch, **options: Any) -> Hub:
    fake = Hub(**options)
    monkeypatch.setattr(huggingface_hub, "HfApi", lambda: fake)
    return fake


def answer(status: int) -> HfHubHTTPError:
    """What the hub raises for a status code."""
    error = HfHubHTTPError.__new__(HfHubHTTPError)
    Exception.__init__(error, f"{status} Client Error\nwith a second line")
    error.response = SimpleNamespace(status_code=status)  # type: ignore[assignment]
    return error


def test_a_push_creates_the_repository_and_uploads_once(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    fake = hub(monkeypatch)
    assert push_folder(tmp_path, "me/model") == "https://hub/me/model/commit/1"
    assert [name for name, _ in fake.calls] == ["create", "upload"]
    created, uploaded = (options for _, options in fake.calls)
    assert created == {"repo_id": "me/model", "private": None, "exist_ok": True}
    assert (uploaded["repo_id"], uploaded["folder_path"]) == ("me/model", tmp_path)
    # shards of an earlier upload would be loaded beside the new weights
    assert "*.safetensors.index.json" in uploaded["delete_patterns"]


def test_private_means_private(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    fake = hub(monkeypatch, private=True)
    push_folder(tmp_path, "me/model", private=True)
    assert fake.calls[0][1]["private"] is True
    fake = hub(monkeypatch, private=False)
    with pytest.raises(UserError, match="exists and is public, so nothing was uploaded"):
        push_folder(tmp_path, "me/model", private=True)
    assert [name for name, _ in fake.calls] == ["create"]


class ConnectError(Exception):
    """As the HTTP client's: no relative of Python's ConnectionError."""


ConnectError.__module__ = "httpx"


@pytest.mark.parametrize(
    ("error", "named"),
    [
        (LocalTokenNotFoundError("no token"), "there is no Hugging Face token .* `hf auth login`"),
        (OfflineModeIsEnabled("offline"), "HF_HUB_OFFLINE is set"),
        (answer(401), r"refuses to write to me/model \(HTTP 401\)"),
        (answer(403), r"\(HTTP 403\): the token is invalid or may not write there"),
        (answer(500), "did not take me/model .500 Client Error with a second line"),
        (ConnectionError("down"), r"cannot be reached \(ConnectionError\)"),
        (ConnectError("down"), r"cannot be reached \(ConnectError\)"),
    ],
)
def test_what_stops_a_push_is_one_sentence_and_the_export_stays(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, error: Exception, named: str
) -> None:
    hub(monkeypatch, error=error)
    with pytest.raises(UserError, match=named) as raised:
        push_folder(tmp_path, "me/model")
    assert "\n" not in str(raised.value)
    assert f"the export is complete in {tmp_path}" in str(raised.value)


def test_a_fault_of_ours_is_not_blamed_on_the_network(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    hub(monkeypatch, error=ZeroDivisionError("oops"))
    with pytest.raises(ZeroDivisionError):
        push_folder(tmp_path, "me/model")


@pytest.mark.parametrize("name", ["model", "a/b/c", "me/bad name", "me/--x"])
def test_a_name_the_hub_does_not_allow_is_refused_before_anything_is_asked(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, name: str
) -> None:
    fake = hub(monkeypatch)
    with pytest.raises(UserError, match="give owner/name"):
        push_folder(tmp_path, name)
    assert fake.calls == []
