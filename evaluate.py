"""Score a model on LAMBADA (the last word of a passage) or HellaSwag (which of four endings).

    python evaluate.py --init_from=gpt2 --task=hellaswag
    python evaluate.py --out_dir=out/gpt2 --task=lambada --input=lambada_test.jsonl

Loss and perplexity of a dataset's splits are `python train.py --eval_only`.
"""

import json
import math
import os
from typing import Literal

from tqdm import tqdm

from configurator import configure
from core import UserError, checkpoint, runtime
from core.download import fetch
from core.score import score
from core.tokenizer import from_dict
from model import GPT

# ---- settings ------------------------------------------------------------------------------------
task: Literal["hellaswag", "lambada"] = "hellaswag"  # four endings, or the last word
input = ""  # its .jsonl file, by default downloaded into data/
out_dir = ""  # a run's folder or a .pt file; by default the newest run under out/
init_from = ""  # instead of out_dir: gpt2, gpt2-medium, ... or the path of a Hugging Face folder
limit = 0  # take only so many examples, 0 = all
batch_size = 16  # continuations computed at once
device = "auto"  # auto (cuda, else mps, else cpu), cpu, cuda, cuda:N, mps
dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"  # of matrix products
globals().update(configure(__file__))

GITHUB, OPENAI = "https://raw.githubusercontent.com", "https://openaipublic.blob.core.windows.net"
URLS = {
    "hellaswag": f"{GITHUB}/rowanz/hellaswag/master/data/hellaswag_val.jsonl",
    "lambada": f"{OPENAI}/gpt-2/data/lambada_test.jsonl",
}

# ---- the model and the examples ------------------------------------------------------------------
run = runtime.start(device)
path = checkpoint.find(init_from or out_dir or checkpoint.newest_run(), tqdm)
loaded = checkpoint.load(path)
if loaded["tokenizer"] is None:
    raise UserError(f"{path} carries no tokenizer: its vocabulary is unknown.")
tokenizer = from_dict(loaded["tokenizer"])
model = GPT.from_weights(loaded["model_args"], loaded["model"]).to(run.device).eval()
autocast = runtime.autocast(run.device, runtime.choose_dtype(dtype, run.device))

file_path = input or os.path.join("data", os.path.basename(URLS[task]))
if not input and not os.path.exists(file_path):
    fetch(URLS[task], file_path, progress=tqdm)


def example(row: dict) -> tuple[str, list[str], int]:
    """The context, the continuations to choose from, and which is right."""
    if task == "hellaswag":
        return row["ctx"], [f" {ending}" for ending in row["endings"]], int(row["label"])
    context, word = row["text"].rsplit(" ", 1)
    return context, [f" {word}"], 0


examples, number = [], 0
try:
    with open(file_path, encoding="utf-8") as file:
        for line in file:
            number += 1
            if line.strip() and not (limit and len(examples) == limit):
                examples.append(example(json.loads(line)))
except OSError as error:
    raise UserError(f"--input={file_path}: it can't be read: {error}.") from None
except (ValueError, KeyError, TypeError) as error:
    raise UserError(f"{file_path}, line {number} is no example of {task}: {error!r}.") from None
if not examples:
    raise UserError(f"{file_path} is empty: it has no example of {task}.")

# ---- the scores ----------------------------------------------------------------------------------
by_sum, by_mean, greedy, log_likely = 0, 0, 0, 0.0
CHUNK = 64  # examples between two movements of the bar
with tqdm(total=len(examples), desc=task) as bar:
    for first in range(0, len(examples), CHUNK):
        chunk = examples[first : first + CHUNK]
        pairs = [
            (tokenizer.encode(context), tokenizer.encode(ending))
            for context, endings, _ in chunk
            for ending in endings
        ]
        scores = iter(score(model, pairs, batch_size, autocast))
        for _, endings, label in chunk:
            mine = [next(scores) for _ in endings]
            by_sum += label == max(range(len(mine)), key=lambda i: mine[i].log_probability)
            by_mean += label == max(range(len(mine)), key=lambda i: mine[i].mean)
            greedy += mine[label].greedy
            log_likely += mine[label].log_probability
        bar.update(len(chunk))
n = len(examples)
if task == "hellaswag":  # endings differ in length: GPT-2's successors quote the mean
    print(f"hellaswag: {n} examples, accuracy {by_sum / n:.4f}, by mean a token {by_mean / n:.4f}")
else:
    perplexity = math.exp(-log_likely / n)
    print(f"lambada: {n} examples, accuracy {greedy / n:.4f}, perplexity {perplexity:.2f}")
