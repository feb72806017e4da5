"""Whether the Hugging Face hub answers, asked once and quickly.

Left alone, ``datasets`` and ``transformers`` retry an unreachable hub for the better part of a
minute and print a line per attempt. We ask first; when nothing answers, only what is cached on
this machine is used, and what is missing is told at once.
"""

from __future__ import annotations

import contextlib
import http.client
import ssl
import urllib.error
import urllib.request
from collections.abc import Iterator


def hub_reachable(timeout: float = 5.0) -> bool:
    """Whether the hub's address answers within ``timeout`` seconds (proxies are respected).

    Only a plain failure to connect counts as unreachable: an HTTP error is an answer, and
    certificates are judged by the real client, which may know others than ``urllib`` does.
    """
    from huggingface_hub import constants

    if constants.HF_HUB_OFFLINE:
        return False
    request = urllib.request.Request(constants.ENDPOINT, method="HEAD")
    try:
        urllib.request.urlopen(request, timeout=timeout).close()
    except (urllib.error.HTTPError, http.client.HTTPException):
        return True
    except urllib.error.URLError as error:
        return isinstance(error.reason, ssl.SSLError)
    except OSError as error:
        return isinstance(error, ssl.SSLError)
    return True


@contextlib.contextmanager
def cached_datasets_only() -> Iterator[None]:
    """Keep ``datasets`` from the network within the block."""
    import datasets

    before = datasets.config.HF_HUB_OFFLINE
    datasets.config.HF_HUB_OFFLINE = True
    try:
        yield
    finally:
        datasets.config.HF_HUB_OFFLINE = before
