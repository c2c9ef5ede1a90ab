"""Score a model on LAMBADA (the last word of a passage) or HellaSwag (which of four endings).

    python -m tools.evaluate --init_from=gpt2 --task=hellaswag
    python -m tools.evaluate --out_dir=out/gpt2 --task=lambada --input=lambada_test.jsonl

https://arxiv.org/abs/1606.06031 and https://arxiv.org/abs/1905.07830. Loss and perplexity of a
dataset are `python train.py --eval_only`.
"""

import sys

if not __package__:  # started by its path
    command = "python -m tools.evaluate"
    print(f"start it as a module from the repository's root: {command}", file=sys.stderr)
    sys.exit(2)

import json
import math
import os
from typing import Literal

from tqdm import tqdm

from configurator import configure
from core import UserError, checkpoint, texts
from core.device import autocast, choose_device, choose_dtype
from core.download import download
from core.score import score
from model import GPT

# ---- settings ------------------------------------------------------------------------------------
task: Literal["hellaswag", "lambada"] = "hellaswag"  # four endings, or the last word
input = ""  # its .jsonl file, by default downloaded into data/
out_dir = ""  # a run's folder or a .pt file; by default the newest run under out/
init_from = "resume"  # resume: out_dir; else gpt2, gpt2-xl, ... or a Hugging Face GPT-2 folder
limit = 0  # take only so many examples, 0 = all
batch_size = 16  # sequences computed at once
device = "auto"  # auto (cuda, else mps, else cpu), cpu, cuda, cuda:N, mps
dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"  # matmul dtype
globals().update(configure(__file__))

GITHUB, OPENAI = "https://raw.githubusercontent.com", "https://openaipublic.blob.core.windows.net"
URLS = {
    "hellaswag": f"{GITHUB}/rowanz/hellaswag/master/data/hellaswag_val.jsonl",
    "lambada": f"{OPENAI}/gpt-2/data/lambada_test.jsonl",
}

# ---- the model and the examples ------------------------------------------------------------------
device = choose_device(device)
amp = autocast(device, choose_dtype(dtype, device))
loaded = checkpoint.load(out_dir if init_from == "resume" else init_from)
tokenizer = checkpoint.load_tokenizer(loaded)
model = GPT.from_state_dict(loaded["model_args"], loaded["model"]).to(device).eval()

path = input or os.path.join("data", os.path.basename(URLS[task]))
if not input and not os.path.exists(path):
    download(URLS[task], path, progress=tqdm)


def read_example(line: str) -> tuple[str, list[str], int]:
    """The context, the continuations to choose from, and the number of the correct one."""
    row = json.loads(line)
    if task == "hellaswag":
        return row["ctx"], [f" {ending}" for ending in row["endings"]], int(row["label"])
    context, word = row["text"].rsplit(" ", 1)
    return context, [f" {word}"], 0


examples = []
with texts.reading(path) as file:
    for number, line in enumerate(file, start=1):
        try:
            examples += [read_example(line)] if line.strip() else []
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise UserError(f"{path}, line {number} is no example of {task}: {error!r}.") from None
examples = examples[: limit or None]
if not examples:
    raise UserError(f"{path} is empty: it has no example of {task}.")


# ---- the scores ----------------------------------------------------------------------------------
def encode(text: str) -> list[int]:
    return tokenizer.encode(text).tolist() or [tokenizer.start_token]


by_sum, by_mean, greedy, log_probability = 0, 0, 0, 0.0
CHUNK = 64  # examples between two movements of the bar
with tqdm(total=len(examples), desc=task) as bar:
    for first in range(0, len(examples), CHUNK):
        chunk = examples[first : first + CHUNK]
        pairs = [(encode(c), encode(ending)) for c, endings, _ in chunk for ending in endings]
        scores = iter(score(model, pairs, batch_size, amp))
        for _, endings, label in chunk:
            own = [next(scores) for _ in endings]
            by_sum += label == max(range(len(own)), key=lambda i: own[i].log_probability)
            by_mean += label == max(range(len(own)), key=lambda i: own[i].mean)
            greedy += own[label].greedy
            log_probability += own[label].log_probability
        bar.update(len(chunk))
n = len(examples)
if task == "hellaswag":  # endings differ in length: GPT-2's successors quote the mean
    result = f"accuracy {by_sum / n:.4f}, by mean per token {by_mean / n:.4f}"
else:
    result = f"accuracy {greedy / n:.4f}, perplexity {math.exp(-log_probability / n):.2f}"
print(f"{task}: {n} examples, {result}")
