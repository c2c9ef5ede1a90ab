"""Fetch a file over HTTP: retried, checked against its size and sha256, complete or not there."""

import hashlib
import os
import time
from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import requests

from core import UserError


class NoNetwork(UserError):
    """The server could not be reached at all, as opposed to answering with something wrong."""


def fetch(
    url: str,
    path: str,
    sha256: str | None = None,
    attempts: int = 3,
    progress: Callable[..., Any] | None = None,
) -> None:
    """Download `url` to `path`, which appears only when the whole file is there and right.

    progress: tqdm or its like, called with total=bytes, unit, unit_scale and desc.
    Raises NoNetwork where no attempt reached the server, else UserError with the last reason.
    """
    error: UserError | None = None
    for attempt in range(attempts):
        time.sleep(2**attempt - 1)  # a server that is busy now may not be in a moment
        try:
            return fetch_once(url, path, sha256, progress)
        except requests.HTTPError as e:
            error = UserError(f"{url}: the server answered {e}.")
            if e.response.status_code < 500 and e.response.status_code != 429:
                break  # it will not change its mind
        except requests.ConnectionError as e:
            error = NoNetwork(f"{url} cannot be reached: {type(e).__name__}.")
        except (requests.RequestException, OSError) as e:
            error = UserError(f"{url}: the download broke off: {type(e).__name__}: {e}")
        except UserError as e:
            error = e
    assert error is not None
    raise error


def fetch_once(url: str, path: str, sha256: str | None, progress: Callable | None) -> None:
    partial = f"{path}.{os.getpid()}.part"
    digest, received = hashlib.sha256(), 0
    os.makedirs(os.path.dirname(path) or ".", exist_ok=True)
    try:
        with requests.get(url, stream=True, timeout=(5, 30)) as answer:
            if answer.status_code != 200:
                raise requests.HTTPError(f"{answer.status_code} {answer.reason}", response=answer)
            # the header counts bytes on the wire, which compression makes fewer
            plain = "Content-Encoding" not in answer.headers
            size = int(answer.headers.get("Content-Length", 0)) if plain else 0
            describe = dict(total=size or None, unit="B", unit_scale=True, desc=path)
            with open(partial, "wb") as file, (progress or nullcontext)(**describe) as bar:
                for chunk in answer.iter_content(1 << 16):
                    file.write(chunk)
                    digest.update(chunk)
                    received += len(chunk)
                    if bar is not None:
                        bar.update(len(chunk))
        if size and received != size:
            raise UserError(f"{url}: {received} of {size} bytes arrived.")
        if sha256 and digest.hexdigest() != sha256:
            raise UserError(f"{url}: sha256 is {digest.hexdigest()}, expected {sha256}.")
        os.replace(partial, path)
    finally:
        if os.path.exists(partial):
            os.remove(partial)
