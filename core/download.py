"""Download a plain file: checked, and there only once it is whole. The hub has its own client."""

import hashlib
import os

import requests
from tqdm import tqdm

from core import UserError
from core.files import replacing


def download(urls: str, path: str, sha256: str = "") -> None:
    """Download `path` from the first address that gives it; a UserError names all that did not.

    urls: addresses with spaces between them, tried in turn, three times. sha256: "" = anything.
    """
    failures = {}
    os.makedirs(os.path.dirname(path) or ".", exist_ok=True)
    for url in urls.split() * 3:
        digest = hashlib.sha256()
        try:
            with replacing(path) as file, requests.get(url, stream=True, timeout=(5, 30)) as answer:
                if not answer.ok:
                    raise UserError(f"status {answer.status_code}")
                size = int(answer.headers.get("Content-Length", 0)) or None
                bar = tqdm(total=size, unit="B", unit_scale=True)
                for chunk in answer.iter_content(1 << 16):
                    file.write(chunk)
                    digest.update(chunk)
                    bar.update(len(chunk))
                if sha256 not in ("", digest.hexdigest()):
                    raise UserError(f"its sha256 is {digest.hexdigest()}, not {sha256}")
            return
        except UserError as error:
            failures[url] = str(error)
        except requests.RequestException as error:
            failures[url] = type(error).__name__
    reasons = "; ".join(f"{url}: {reason}" for url, reason in failures.items())
    raise UserError(
        f"{path} cannot be downloaded ({reasons}). Without a network, get the file "
        "elsewhere and run this script with --input=FILE."
    )
