"""Write data/NAME/ from a dataset of web text on the Hugging Face hub, shard by shard.

    python -m projects.webtext.prepare --shards=2
    python -m projects.webtext.prepare
    python -m projects.webtext.prepare --hub_dataset=HuggingFaceFW/fineweb-edu \\
        --hub_folder=sample/10BT --name=fineweb

OpenWebText is 8 million documents, 9 billion tokens of GPT-2's BPE, 18 GB. The next shard is
downloaded while one is tokenized. Interrupted, the same command resumes at the shard where it was.
"""

import sys

if not __package__:  # started by its path
    command = "python -m projects.webtext.prepare"
    print(f"start it as a module from the repository's root: {command}", file=sys.stderr)
    sys.exit(2)

import contextlib
import os
import shutil
from collections.abc import Iterator

from configurator import configure

import numpy as np
from tqdm import tqdm

from core import UserError
from core.dataset import DTYPES, SPLITS, Writer, folder_for, read_meta
from core.extras import splits, texts
from core.extras.ending import exit_at_once
from core.extras.gpt2_tokenizer import GPT2Tokenizer

# ---- settings ------------------------------------------------------------------------------------
hub_dataset = "Skylion007/openwebtext"  # the dataset's name on the hub
hub_folder = ""  # take only the files below this folder of it, such as sample/10BT
column = "text"  # of its parquet files
name = "openwebtext"  # the folder under data/ to write
shards = 0  # how many of its files to take, 0 = all
val_fraction = 0.0005  # of the documents, as in nanoGPT
seed = 1337  # of the choice of documents
globals().update(configure(__file__))

# here, so that a missing package is known before any download
import pyarrow.parquet  # noqa: F401 (core/extras/tables.py reads by it)
from huggingface_hub import HfApi, errors, hf_hub_download

splits.check_fraction(val_fraction)
folder, tokenizer = folder_for(name), GPT2Tokenizer()
unfinished = os.path.join(folder, "shards")  # the downloads, and a dataset of each finished shard


# ---- the hub -------------------------------------------------------------------------------------
@contextlib.contextmanager
def asking_hub() -> Iterator[None]:
    """The errors of the hub's client as one sentence."""
    try:
        yield
    except Exception as error:  # it lets through whatever its own HTTP client raises
        reason = f"{type(error).__name__}: {error}".splitlines()[0].rstrip(".")
        raise UserError(
            f"--hub_dataset={hub_dataset} cannot be downloaded ({reason}). Set HF_TOKEN for a "
            "private dataset, HF_ENDPOINT for another hub."
        ) from None


@asking_hub()
def list_parquet_files(revision: str) -> list[str]:
    below = f"{hub_folder.strip('/')}/" if hub_folder else ""
    try:
        paths = HfApi().list_repo_files(hub_dataset, repo_type="dataset", revision=revision)
    except errors.RevisionNotFoundError:
        return []
    paths = sorted(path for path in paths if path.startswith(below) and path.endswith(".parquet"))
    return [path for path in paths if "train" in path] or paths


@asking_hub()
def download(path: str) -> str:
    options = {"repo_type": "dataset", "revision": revision, "local_dir": unfinished}
    return hf_hub_download(hub_dataset, path, **options)


# ---- the tokens ----------------------------------------------------------------------------------
def pieces(path: str) -> Iterator[texts.Piece]:
    for document in map(tuple, texts.documents([path], column)):
        # not by its number: equal documents share a split, in whichever shards they are
        train_length = 0 if splits.validates(document, val_fraction, seed) else sys.maxsize
        yield from texts.split_pieces(document, train_length, with_end=True)


def tokenize(shard: int, path: str, target: str) -> None:
    """Write the shard's tokens as a dataset of its own, which is there only once it is whole."""
    shutil.rmtree(target, ignore_errors=True)  # of other settings
    shutil.rmtree(f"{target}.tmp", ignore_errors=True)  # of a process that was killed
    bar = tqdm(desc=f"shard {shard + 1}/{len(paths)}", unit="B", unit_scale=True)
    with bar, Writer(f"{target}.tmp", tokenizer, source) as writer:
        for ids, sizes in texts.encoded(pieces(path), tokenizer):
            for split in ids:
                writer.append(split, ids[split], num_bytes=sizes[split])
            bar.update(sum(sizes.values()))
    os.rename(f"{target}.tmp", target)


def append_shard(writer: Writer, target: str) -> None:
    meta = read_meta(target)
    for split in SPLITS:
        writer.append(split, [], num_bytes=meta[f"{split}_bytes"])
        if meta[f"{split}_tokens"]:
            ids = np.memmap(os.path.join(target, f"{split}.bin"), DTYPES[meta["dtype"]], mode="r")
            for first in range(0, len(ids), 2**20):
                writer.append(split, ids[first : first + 2**20])


@contextlib.contextmanager
def not_waiting_for_downloads() -> Iterator[None]:
    """A signal ends the script at once: the same command continues a download."""
    try:
        yield
    except (SystemExit, KeyboardInterrupt) as stop:
        exit_at_once(stop.code if isinstance(stop, SystemExit) else 130)


tokenizer.encode("")  # fails early if its vocabulary cannot be loaded
revision = "main"
paths = list_parquet_files(revision)
if not paths:
    revision = "refs/convert/parquet"  # where the hub keeps its conversion of other formats
    paths = list_parquet_files(revision)
if not paths:
    raise UserError(f"--hub_dataset={hub_dataset} has no parquet files in hub_folder={hub_folder}.")
paths = paths[: shards or None]
source = {"name": f"{hub_dataset}/{hub_folder}", "shards": paths, "column": column}
source |= {"val_fraction": val_fraction, "seed": seed}
targets = [os.path.join(unfinished, f"{shard:05d}") for shard in range(len(paths))]
missing = [
    shard
    for shard, target in enumerate(targets)
    if not os.path.exists(target) or read_meta(target)["source"] != source
]
if len(missing) < len(paths):
    print(f"resuming after {len(paths) - len(missing)} of {len(paths)} shards")
downloaded = texts.in_threads(download, [paths[shard] for shard in missing], threads=1, ahead=1)
with not_waiting_for_downloads():
    for shard, path in zip(missing, downloaded, strict=True):
        tokenize(shard, path, targets[shard])
        os.remove(path)
with Writer(folder, tokenizer, source) as writer:
    for target in targets:
        append_shard(writer, target)
    if not all(writer.counts.values()):
        raise UserError(
            f"--val_fraction={val_fraction} leaves a split empty, so few are the documents: "
            "give one nearer to 0.5."
        )
shutil.rmtree(unfinished)
for split, tokens in writer.counts.items():
    print(f"{os.path.join(folder, split)}.bin: {tokens:,} tokens")
