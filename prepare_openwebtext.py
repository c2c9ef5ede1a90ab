"""Write data/NAME/ from a dataset of web text on the Hugging Face hub, shard by shard.

    python prepare_openwebtext.py --shards=2
    python prepare_openwebtext.py
    python prepare_openwebtext.py --hub_dataset=HuggingFaceFW/fineweb-edu --hub_config=sample-10BT

OpenWebText is 8 million documents, 9 billion tokens of GPT-2's BPE, 18 GB; the next shard is
downloaded while one is tokenized. Stopped, it goes on at the shard where it was.
"""

import os
import shutil
import signal
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import requests
from tqdm import tqdm

from configurator import configure
from core import UserError, corpus, huggingface
from core.dataset import Writer
from core.download import fetch
from core.tokenizer import GPT2Tokenizer

# ---- settings ------------------------------------------------------------------------------------
hub_dataset = "Skylion007/openwebtext"  # the dataset's name on the hub; it has parquet files of all
hub_config = ""  # one of its configurations, by default the first
column = "text"  # of the parquet files
name = "openwebtext"  # the folder under data/ to write
shards = 0  # how many of its files to take, 0 = all
val_share = 0.0005  # of the documents, as in nanoGPT
seed = 1337  # of the choice of documents
globals().update(configure(__file__))
signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # by way of what tidies up

# ---- which files ---------------------------------------------------------------------------------
endpoint, token = huggingface.hub()
listing = f"{endpoint}/api/datasets/{hub_dataset}/parquet"
headers = {"Authorization": f"Bearer {token}"} if token else {}
try:
    answer = requests.get(listing, timeout=30, headers=headers)
    answer.raise_for_status()
    configs = {name: splits["train"] for name, splits in answer.json().items() if "train" in splits}
except (requests.RequestException, ValueError, AttributeError) as error:
    raise UserError(
        f"{listing} does not list the files of --hub_dataset={hub_dataset}: {error}. HF_ENDPOINT "
        "names another hub, HF_TOKEN is sent to it."
    ) from None
hub_config = hub_config or next(iter(configs), "")
if hub_config not in configs:
    raise UserError(f"--hub_config={hub_config}: {hub_dataset} has {', '.join(configs) or 'none'}.")
urls = configs[hub_config][: shards or None]

# ---- the tokens ----------------------------------------------------------------------------------
folder, coder = os.path.join("data", name), GPT2Tokenizer()
coder.encode("")  # complains early if it can't be loaded
downloads = os.path.join(folder, "shards")
source = {"name": f"{hub_dataset}/{hub_config}", "files": len(urls), "val_share": val_share}
source |= {"seed": seed, "column": column}


def download(number: int) -> str:
    path = os.path.join(downloads, f"{number}.parquet")
    if not os.path.exists(path):
        fetch(urls[number], path, progress=tqdm, token=token, attempts=6)
    return path


def texts(path: str, first: int) -> Iterator[tuple[str, str, bool]]:
    """Every piece of a file whose first document has that number, as corpus.encoded wants it."""
    global documents
    for number, document in enumerate(corpus.documents([path], column), start=first):
        yield from corpus.with_end(document, corpus.split_of(number, val_share, seed))
        documents = number + 1


with ThreadPoolExecutor(1) as downloader, Writer(folder, coder, source, resumable=True) as writer:
    done, documents = writer.progress or (0, 0)  # shards and documents
    if done:
        print(f"going on after {done} of {len(urls)} files, {documents:,} documents")
    coming = downloader.submit(download, done) if done < len(urls) else None
    for shard in range(done, len(urls)):
        path = coming.result()
        coming = downloader.submit(download, shard + 1) if shard + 1 < len(urls) else None
        with tqdm(desc=f"encoding {shard + 1}/{len(urls)}", unit="B", unit_scale=True) as bar:
            for ids, size in corpus.encoded(texts(path, documents), coder):
                for split, part in ids.items():
                    writer.append(split, part)
                bar.update(size)
        writer.checkpoint((shard + 1, documents))
        os.remove(path)
if not all(writer.counts.values()):
    raise UserError(f"{folder} has an empty split: {writer.counts}; take more --shards.")
shutil.rmtree(downloads, ignore_errors=True)
for split, tokens in writer.counts.items():
    print(f"{os.path.join(folder, split)}.bin: {tokens:,} tokens")
