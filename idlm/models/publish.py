"""Put an exported folder on the Hugging Face hub, in one commit."""

from __future__ import annotations

from pathlib import Path

from idlm.errors import UserError

# weights of an earlier upload that the new ones do not overwrite would be loaded beside them
_STALE = ["*.safetensors", "*.safetensors.index.json"]


def check_repository(name: str) -> str:
    """The name of a repository, if the hub allows it.

    Raises:
        UserError: if it is not of the form ``owner/name``.
    """
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id

    try:
        validate_repo_id(name)
    except HFValidationError as error:
        raise UserError(f"{name!r} is no hub repository ({error}); give owner/name") from error
    if name.count("/") != 1:
        raise UserError(f"{name!r} is no hub repository; give owner/name")
    return name


def push_folder(folder: str | Path, repository: str, *, private: bool = False) -> str:
    """Create the repository if need be and upload the folder as one commit.

    Args:
        folder: what :func:`idlm.models.export_folder` wrote.
        repository: ``owner/name``.
        private: whether nobody else may see it; an existing public repository is then refused.

    Returns:
        The address of the commit.

    Raises:
        UserError: without a token, permission or network.
    """
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError, LocalTokenNotFoundError, OfflineModeIsEnabled

    check_repository(repository)
    kept = f"the export is complete in {folder}"
    api = HfApi()
    try:
        # None leaves an existing repository, and the owner's default, as they are
        api.create_repo(repository, private=private or None, exist_ok=True)
        if private and not api.repo_info(repository).private:
            raise UserError(
                f"{repository} exists and is public, so nothing was uploaded; choose another name "
                f"or leave out --private ({kept})"
            )
        commit = api.upload_folder(
            repo_id=repository,
            folder_path=folder,
            commit_message="Export by idlm",
            delete_patterns=_STALE,
        )
    except LocalTokenNotFoundError as error:
        raise UserError(
            f"there is no Hugging Face token to push to {repository} with; run `hf auth login` or "
            f"set HF_TOKEN ({kept})"
        ) from error
    except OfflineModeIsEnabled as error:
        raise UserError(
            f"HF_HUB_OFFLINE is set, so nothing can be pushed to {repository}; unset it ({kept})"
        ) from error
    except HfHubHTTPError as error:
        raise UserError(_refused(error, repository, kept)) from error
    except Exception as error:
        if not _is_of_the_network(error):
            raise
        raise UserError(
            f"the Hugging Face hub cannot be reached ({type(error).__name__}), so {repository} was "
            f"not pushed; check the network ({kept})"
        ) from error
    return str(getattr(commit, "commit_url", commit))


def _is_of_the_network(error: Exception) -> bool:
    """Whether the connection failed; the HTTP client's errors share no base class with Python's."""
    known = isinstance(error, (ConnectionError, TimeoutError))
    return known or type(error).__module__.startswith("httpx")


def _refused(error: Exception, repository: str, kept: str) -> str:
    """One sentence on an answer of the hub that is no success."""
    status = getattr(getattr(error, "response", None), "status_code", None)
    if status in (401, 403):
        return (
            f"the hub refuses to write to {repository} (HTTP {status}): the token is invalid or "
            f"may not write there; run `hf auth login` with a token of role write ({kept})"
        )
    reason = " ".join(str(error).split())[:160]
    return f"the hub did not take {repository} ({reason}); {kept}"
