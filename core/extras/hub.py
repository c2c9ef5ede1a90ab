"""Hugging Face's hub: files of a model, of PEFT's adapters or a tokenizer, in its own cache."""

import os

from core import UserError
from core.extras import peft
from core.extras.gpt2 import RELEASED, REPOSITORIES, is_hub_id
from core.extras.hf_folder import TOKENIZER, read_json, read_tokenizer, read_tokenizer_json

# in the order of preference; an index lists the shards
WEIGHTS = ("model.safetensors", "model.safetensors.index.json")
WEIGHTS += ("pytorch_model.bin", "pytorch_model.bin.index.json")


def download(source: str, with_weights: bool = True) -> str:
    """The folder, in the hub's cache, of a model's or adapters' files, or of a tokenizer's alone.

    What is there is not asked for: it does not change, and a network may be slow to fail.
    """
    if with_weights:
        import safetensors  # noqa: F401 (so that a missing package is known before the download)
    import huggingface_hub  # noqa: F401

    repository = REPOSITORIES.get(source, source)
    try:
        names = ("config.json", peft.CONFIG if with_weights else "tokenizer.json")
        found = next(filter(None, (fetch(repository, name) for name in names)), None)
        if found is None:
            raise UserError(f"it has no {' or '.join(names)}.")
        folder = os.path.dirname(found)
        commit = os.path.basename(folder)  # all files are of one
        is_adapter = with_weights and os.path.basename(found) == peft.CONFIG
        for file in () if source in RELEASED or is_adapter else TOKENIZER:
            fetch(repository, file, commit)
        if with_weights:
            fetch_weights(repository, commit, (peft.WEIGHTS,) if is_adapter else WEIGHTS)
    except Exception as error:  # it lets through whatever its HTTP client raises
        raise UserError(
            f"{source} cannot be downloaded: {str(error).splitlines()[0]} Without a network, copy "
            "its files (config.json, the weights, the tokenizer's) into a folder and name that."
        ) from None
    return folder


def fetch(repository: str, file: str, commit: str | None = None) -> str | None:
    """The path of a file in the cache, downloaded if need be; None if the repository has none."""
    from huggingface_hub import hf_hub_download, try_to_load_from_cache
    from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError

    path = try_to_load_from_cache(repository, file, revision=commit)
    if path is not None:  # or a mark that it is not in the repository
        return path if isinstance(path, str) else None
    try:
        return hf_hub_download(repository, file, revision=commit)
    except LocalEntryNotFoundError:  # no network
        raise
    except EntryNotFoundError:
        return None


def fetch_weights(repository: str, commit: str, names: tuple[str, ...]) -> None:
    """Those of the first of these names that the repository has."""
    for file in names:
        path = fetch(repository, file, commit)
        if path and file.endswith(".index.json"):
            for shard in set(read_json(path)["weight_map"].values()):
                fetch(repository, shard, commit)
        if path:
            return
    raise UserError(f"it has none of {', '.join(names)}.")


def find_tokenizer(source: str) -> dict:
    """The tokenizer of a tokenizer.json, of a folder with one, or of ORG/NAME, as a dict for
    core.tokenizer.from_dict. UserError if there is none."""
    if source in RELEASED:
        return {"kind": "gpt2"}
    if os.path.isfile(source):
        return read_tokenizer_json(source)
    folder = download(source, with_weights=False) if is_hub_id(source) else source
    saved = read_tokenizer(folder)
    if saved is None:
        raise UserError(
            f"--tokenizer={source} is not accepted: gpt2, char, byte, train, a tokenizer.json, a "
            "folder with one (or with vocab.json and merges.txt, or vocab.txt), or ORG/NAME."
        )
    return saved
