"""Fetch a file over HTTP: retried, resumed, checked against its size and sha256, then whole."""

import hashlib
import os
import re
import time

import requests

from core import UserError


class NoNetwork(UserError):
    """The server could not be reached at all, as opposed to answering with something wrong."""


def fetch(url: str, path: str, sha256="", attempts=3, progress=None, token="") -> None:
    """Download `url` to `path`, which appears only once all of it is there and right.

    What a broken download has left in PATH.part is gone on with, by a later run as well.
    sha256: of the file; a Hugging Face hub states it itself. token: sent as its authorization.
    progress: tqdm or its like. Raises NoNetwork if no attempt reached the server, else UserError.
    """
    partial, error = f"{path}.part", UserError(f"{url}: no attempt was made.")
    os.makedirs(os.path.dirname(path) or ".", exist_ok=True)
    attempt = 0
    while attempt < attempts:
        time.sleep((2**attempt - 1) / 2)  # a server that is busy now may not be in a moment
        before = size_of(partial)
        try:
            return fetch_once(url, path, sha256, progress, token)
        except requests.HTTPError as reason:
            error = UserError(f"{url}: the server answered {reason}.")
            if reason.response.status_code in (400, 401, 403, 404, 410):
                break  # it will not change its mind
        except requests.ConnectionError as reason:
            if size_of(partial) == before:
                error = NoNetwork(f"{url} cannot be reached: {type(reason).__name__}.")
        except requests.RequestException as reason:
            error = UserError(f"{url}: the download broke off: {reason}.")
        except OSError as reason:
            raise UserError(f"{path} can't be written: {reason}.") from None
        except UserError as reason:
            error = reason
        attempt = 1 if size_of(partial) > before else attempt + 1
    raise error


def size_of(path: str) -> int:
    return os.path.getsize(path) if os.path.exists(path) else 0


def fetch_once(url: str, path: str, sha256: str, progress, token: str) -> None:
    partial = f"{path}.part"
    there = size_of(partial)
    # unpacked on the way, a file would not have the size that the server states
    headers = {"Accept-Encoding": "identity", "Range": f"bytes={there}-"}
    headers |= {"Authorization": f"Bearer {token}"} if token else {}
    headers = {k: v for k, v in headers.items() if there or k != "Range"}
    with requests.get(url, stream=True, timeout=(5, 30), headers=headers) as answer:
        if answer.status_code == 416:  # nothing lies beyond what is there: it may be all, or not
            finish(partial, path, url, sha256 or stated_sha256(answer), not sha256)
            return
        answer.raise_for_status()
        there = there if answer.status_code == 206 else 0
        length = int(answer.headers.get("Content-Length", 0))
        size = there + length if length else None
        bar = progress and progress(
            total=size, initial=there, unit="B", unit_scale=True, desc=os.path.basename(path)
        )
        try:
            with open(partial, "ab" if there else "wb") as file:
                for chunk in answer.iter_content(1 << 16):
                    file.write(chunk)
                    if bar is not None:
                        bar.update(len(chunk))
        finally:
            if bar is not None:
                bar.close()
        if size and size_of(partial) < size:
            raise UserError(f"{url}: {size_of(partial)} of {size} bytes arrived.")
        finish(
            partial, path, url, sha256 or stated_sha256(answer), size and size_of(partial) > size
        )


def stated_sha256(answer: requests.Response) -> str:
    """What a Hugging Face hub says of a large file, before it sends us on to where it lies."""
    for part in (*answer.history, answer):
        etag = part.headers.get("X-Linked-Etag", "").strip('"')
        if re.fullmatch("[0-9a-f]{64}", etag):
            return etag
    return ""


def finish(partial: str, path: str, url: str, sha256: str, doubtful) -> None:
    """Rename what has arrived if it is right; what is not is no beginning to go on with."""
    digest = hashlib.sha256()
    with open(partial, "rb") as file:
        while chunk := file.read(1 << 20):
            digest.update(chunk)
    if digest.hexdigest() != sha256 if sha256 else doubtful:
        os.remove(partial)
        expected = f"expected {sha256}" if sha256 else "and its size is wrong"
        raise UserError(f"{url}: its sha256 is {digest.hexdigest()}, {expected}.")
    os.replace(partial, path)
