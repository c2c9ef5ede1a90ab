"""Hugging Face's hub, and the tokenizer in a folder of its format.

FOLDER/folio_tokenizer.json            one of ours, of an export
FOLDER/tokenizer.json                  for transformers' AutoTokenizer
FOLDER/vocab.json, FOLDER/merges.txt   a byte-level BPE, as GPT-2's
FOLDER/vocab.txt                       BERT's WordPiece, with tokenizer_config.json
FOLDER/added_tokens.json               ids of more tokens of the latter two
"""

import hashlib
import json
import os
import re

from core import UserError

RELEASED = ("gpt2", "gpt2-medium", "gpt2-large", "gpt2-xl")  # by OpenAI
REPOSITORIES = {name: f"openai-community/{name}" for name in RELEASED}
REPOSITORIES |= {"distilgpt2": "distilbert/distilgpt2"}
TOKENIZER = ("tokenizer.json", "tokenizer_config.json", "added_tokens.json")
TOKENIZER += ("vocab.json", "merges.txt", "vocab.txt")
# in the order of preference; an index lists the shards
WEIGHTS = ("model.safetensors", "model.safetensors.index.json")
WEIGHTS += ("pytorch_model.bin", "pytorch_model.bin.index.json")
# sha256 of GPT-2's 50257 tokens, spelled as in its encoder.json, joined by line breaks
GPT2_TOKENS = "e35a33a0b2250c932ffdafc4c3a3552aef0cc7af7a11e9ebfddf1d2a6517371f"


def is_hub_id(source: str) -> bool:
    """Whether it is GPT-2's name or ORG/NAME, and not a path: no such file or folder is there."""
    if os.path.exists(source):
        return False
    owner = re.fullmatch(r"([A-Za-z0-9][\w.-]*)/[\w.-]+", source)
    is_path = source.endswith(".pt") or (owner and (owner[1] == "out" or os.path.isdir(owner[1])))
    return source in REPOSITORIES or bool(owner and not is_path)


def download(source: str, with_weights: bool = True) -> str:
    """The folder, in the hub's own cache, of a model's files, or of its tokenizer's alone.

    What is there is not asked for: it does not change, and a network may be slow to fail.
    """
    if with_weights:
        import safetensors  # noqa: F401 (so that a missing package is known before the download)
    import huggingface_hub  # noqa: F401

    repository = REPOSITORIES.get(source, source)
    try:
        names = ("config.json",) if with_weights else ("config.json", "tokenizer.json")
        found = next(filter(None, (fetch(repository, name) for name in names)), None)
        if found is None:
            raise UserError(f"it has no {' or '.join(names)}.")
        folder = os.path.dirname(found)
        commit = os.path.basename(folder)  # all files are of one
        for file in () if source in RELEASED else TOKENIZER:
            fetch(repository, file, commit)
        if with_weights:
            fetch_weights(repository, commit)
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


def fetch_weights(repository: str, commit: str) -> None:
    for file in WEIGHTS:
        path = fetch(repository, file, commit)
        if path and file.endswith(".index.json"):
            for shard in set(read_json(path)["weight_map"].values()):
                fetch(repository, shard, commit)
        if path:
            return
    raise UserError(f"it has none of {', '.join(WEIGHTS)}.")


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


def read_tokenizer(folder: str) -> dict | None:
    """The tokenizer that the folder's files say, as a dict for core.tokenizer.from_dict."""
    names = ("folio_tokenizer.json", *TOKENIZER)
    there = {name: os.path.join(folder, name) for name in names}
    there = {name: path for name, path in there.items() if os.path.exists(path)}
    if "folio_tokenizer.json" in there:
        return read_json(there["folio_tokenizer.json"])
    if "tokenizer.json" in there:
        return read_tokenizer_json(there["tokenizer.json"])
    ids = read_json(there["added_tokens.json"]) if "added_tokens.json" in there else {}
    added = sorted(ids, key=lambda name: str(ids[name]).zfill(9))
    if {"vocab.json", "merges.txt"} <= there.keys():
        vocab, lines = read_json(there["vocab.json"]), read_text(there["merges.txt"]).splitlines()
        merges = [line for line in lines if not line.startswith("#version")]
        if is_gpt2_bpe({"type": "BPE", "vocab": vocab, "merges": merges}):
            return gpt2_with(added)
        from core.hf_tokenizer import from_bpe_files

        return from_bpe_files(there["vocab.json"], there["merges.txt"], added).to_dict()
    if "vocab.txt" in there:
        from core.hf_tokenizer import from_wordpiece_file

        about = there.get("tokenizer_config.json")
        config = read_json(about) if about else {}
        return from_wordpiece_file(there["vocab.txt"], config, added).to_dict()
    return None


def read_tokenizer_json(path: str) -> dict:
    saved = read_json(path)
    if not is_gpt2_bpe(saved.get("model")):
        return {"kind": "hf", "json": read_text(path)}
    return gpt2_with([t["content"] for t in saved.get("added_tokens", []) if t["id"] > 50256])


def gpt2_with(special: list[str]) -> dict:
    return {"kind": "gpt2", "special": special} if special else {"kind": "gpt2"}


def is_gpt2_bpe(model) -> bool:
    """Whether the model of a tokenizer.json has GPT-2's tokens, and merges that make just them."""
    if not isinstance(model, dict):
        return False
    vocab, merges = model.get("vocab"), model.get("merges")
    if model.get("type") != "BPE" or not isinstance(vocab, dict) or not merges:
        return False
    tokens = sorted(vocab, key=vocab.get)[:50257]
    merged = [m.replace(" ", "") if isinstance(m, str) else "".join(m) for m in merges]
    digest = hashlib.sha256("\n".join(tokens).encode()).hexdigest()
    return digest == GPT2_TOKENS and merged == tokens[256:-1]


def read_text(path: str) -> str:
    try:
        with open(path, encoding="utf-8") as file:
            return file.read()
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is damaged: {error}.") from None


def read_json(path: str) -> dict:
    try:
        content = json.loads(read_text(path))
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path} is damaged: {error}.") from None
    if not isinstance(content, dict):
        raise UserError(f"{path} is damaged: it holds no JSON object.")
    return content
