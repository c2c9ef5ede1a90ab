"""Download a plain file: checked, and there only once it is whole. The hub has its own client."""

import hashlib
import os
from typing import IO

import requests

from core import UserError
from core.files import replacing


def download(urls: str, path: str, sha256: str = "", progress=None, attempts: int = 3) -> None:
    """Download `path` from the first address that gives it; a UserError names all that did not.

    urls: addresses with spaces between them, tried in turn, the last followed by the first again.
    sha256: of the file, "" = anything. progress: tqdm or its like. attempts: of each address.
    """
    failures = {}
    os.makedirs(os.path.dirname(path) or ".", exist_ok=True)
    for url in urls.split() * attempts:
        try:
            with replacing(path) as file:
                found = fetch(url, file, progress)
                if sha256 and found != sha256:
                    raise UserError(f"its sha256 is {found}, not {sha256}")
            return
        except UserError as error:
            failures[url] = str(error)
        except requests.RequestException as error:
            status = getattr(error.response, "status_code", None)
            failures[url] = f"status {status}" if status else type(error).__name__
    reasons = "; ".join(f"{url}: {reason}" for url, reason in failures.items())
    raise UserError(
        f"{path} cannot be downloaded ({reasons}). Without a network, get the file "
        "elsewhere and run this script with --input=FILE."
    )


def fetch(url: str, file: IO[bytes], progress) -> str:
    """Write what the address gives to `file`, and return its sha256."""
    digest = hashlib.sha256()
    with requests.get(url, stream=True, timeout=(5, 30)) as answer:
        answer.raise_for_status()
        size = int(answer.headers.get("Content-Length", 0)) or None
        bar = progress(total=size, unit="B", unit_scale=True) if progress else None
        for chunk in answer.iter_content(1 << 16):
            file.write(chunk)
            digest.update(chunk)
            if bar is not None:
                bar.update(len(chunk))
    return digest.hexdigest()
