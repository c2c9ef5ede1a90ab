"""Download a plain file: checked, and there only once it is whole. The hub has its own client."""

import hashlib
import os

import requests

from core import UserError


def download(url: str, path: str, sha256: str = "", progress=None, attempts: int = 3) -> None:
    """Download `url` to `path`. sha256: of the file, "" = anything. progress: tqdm or its like."""
    digest = hashlib.sha256()
    os.makedirs(os.path.dirname(path) or ".", exist_ok=True)
    try:
        with requests.get(url, stream=True, timeout=(5, 30)) as answer:
            answer.raise_for_status()
            size = int(answer.headers.get("Content-Length", 0)) or None
            bar = progress(total=size, unit="B", unit_scale=True) if progress else None
            with open(f"{path}.part", "wb") as file:
                for chunk in answer.iter_content(1 << 16):
                    file.write(chunk)
                    digest.update(chunk)
                    if bar is not None:
                        bar.update(len(chunk))
    except requests.RequestException as reason:
        if attempts > 1:
            return download(url, path, sha256, progress, attempts - 1)
        why = reason if isinstance(reason, requests.HTTPError) else type(reason).__name__
        raise UserError(
            f"{url} cannot be downloaded ({why}). Without a network, give the file as --input."
        ) from None
    if sha256 and digest.hexdigest() != sha256:
        os.remove(f"{path}.part")
        raise UserError(f"{url}: its sha256 is {digest.hexdigest()}, not {sha256}.")
    os.replace(f"{path}.part", path)
