"""Fetch a file over HTTP: retried, checked against its size and sha256, whole or not there."""

import hashlib
import os
import time

import requests

from core import UserError


class NoNetwork(UserError):
    """The server could not be reached at all, as opposed to answering with something wrong."""


def fetch(url: str, path: str, sha256: str = "", attempts: int = 3, progress=None) -> None:
    """Download `url` to `path`, which appears only once all of it is there and right.

    progress: tqdm or its like. Raises NoNetwork if no attempt reached the server, else UserError.
    """
    error = UserError(f"{url}: no attempt was made.")
    for attempt in range(attempts):
        time.sleep(2**attempt - 1)  # a server that is busy now may not be in a moment
        try:
            return fetch_once(url, path, sha256, progress)
        except requests.HTTPError as reason:
            error = UserError(f"{url}: the server answered {reason}.")
            if reason.response.status_code in (400, 401, 403, 404, 410):
                break  # it will not change its mind
        except requests.ConnectionError as reason:
            error = NoNetwork(f"{url} cannot be reached: {type(reason).__name__}.")
        except requests.RequestException as reason:
            error = UserError(f"{url}: the download broke off: {reason}.")
        except UserError as reason:
            error = reason
    raise error


def fetch_once(url: str, path: str, sha256: str, progress) -> None:
    partial, digest, received = f"{path}.{os.getpid()}.part", hashlib.sha256(), 0
    os.makedirs(os.path.dirname(path) or ".", exist_ok=True)
    try:
        # unpacked on the way, a file would not have the size that the server states
        headers = {"Accept-Encoding": "identity"}
        with requests.get(url, stream=True, timeout=(5, 30), headers=headers) as answer:
            answer.raise_for_status()
            size = int(answer.headers.get("Content-Length", 0))
            bar = progress and progress(total=size or None, unit="B", unit_scale=True, desc=path)
            with open(partial, "wb") as file:
                for chunk in answer.iter_content(1 << 16):
                    file.write(chunk)
                    digest.update(chunk)
                    received += len(chunk)
                    if bar is not None:
                        bar.update(len(chunk))
            if bar is not None:
                bar.close()
        if size and received != size:
            raise UserError(f"{url}: {received} of {size} bytes arrived.")
        if sha256 and digest.hexdigest() != sha256:
            raise UserError(f"{url}: its sha256 is {digest.hexdigest()}, expected {sha256}.")
        os.replace(partial, path)
    finally:
        if os.path.exists(partial):
            os.remove(partial)
