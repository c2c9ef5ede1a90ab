"""Score a model on LAMBADA (the last word of a passage) or HellaSwag (which of four endings).

    python -m tools.evaluate --init_from=gpt2 --task=hellaswag
    python -m tools.evaluate --init_from=gpt2 --task=hellaswag \\
        --protocol=lm-eval
    python -m tools.evaluate --out_dir=out/gpt2 --task=lambada \\
        --input=lambada_test.jsonl

https://arxiv.org/abs/1606.06031 and https://arxiv.org/abs/1905.07830. HellaSwag's figures compare
only within a protocol: llm.c's takes its texts as they are and the mean per token; lm-eval's puts
the activity before the context, drops WikiHow's brackets and takes the mean per character. Loss
and perplexity of a dataset are `python train.py --eval_only`.
"""

import sys

if not __package__:  # started by its path
    command = "python -m tools.evaluate"
    print(f"start it as a module from the repository's root: {command}", file=sys.stderr)
    sys.exit(2)

import json
import math
import os
import re
from typing import Literal

from configurator import configure

from tqdm import tqdm

from core import UserError, checkpoint
from core.device import autocast, choose_device, choose_dtype
from core.download import download
from core.extras import texts
from core.extras.score import Score, score
from model import GPT

# ---- settings ------------------------------------------------------------------------------------
task: Literal["hellaswag", "lambada"] = "hellaswag"  # four endings, or the last word
protocol: Literal["llm.c", "lm-eval"] = "llm.c"  # of hellaswag, as llm.c or lm-eval reports it
input = ""  # its .jsonl file, by default downloaded into data/
out_dir = ""  # a run's folder or a .pt file; by default the newest run under out/
init_from = "resume"  # resume: out_dir; else gpt2, ORG/NAME on the hub, or a GPT-2 folder of it
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
    download(URLS[task], path)


def clean(text: str) -> str:
    """As lm-eval: " [title]" ends a sentence, other brackets such as [header] are dropped."""
    text = text.strip().replace(" [title]", ". ")
    return re.sub(r"\[.*?\]", "", text).replace("  ", " ")


def read_example(line: str) -> tuple[str, list[str], int]:
    """The context, the continuations to choose from, and the number of the correct one."""
    row = json.loads(line)
    if task == "lambada":
        context, word = row["text"].rsplit(" ", 1)
        return context, [f" {word}"], 0
    if protocol == "llm.c":
        context, endings = row["ctx"], row["endings"]
    else:
        context = f"{row['activity_label']}: {row['ctx_a']} {row['ctx_b'].capitalize()}"
        context, endings = clean(context), [clean(ending) for ending in row["endings"]]
    label = int(row["label"])
    if not isinstance(endings, list) or not 0 <= label < len(endings):
        raise ValueError(f"label {label} is none of its endings")
    return context, [f" {ending}" for ending in endings], label


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


def mean(score: Score, ending: str) -> float:
    """Its log-probability per token or, for lm-eval, per character without the leading space."""
    return score.mean if protocol == "llm.c" else score.log_probability / max(1, len(ending) - 1)


by_sum, by_mean, greedy, log_probability = 0, 0, 0, 0.0
CHUNK = 64  # examples between two movements of the bar
with tqdm(total=len(examples), desc=task) as bar:
    for first in range(0, len(examples), CHUNK):
        chunk = examples[first : first + CHUNK]
        pairs = [(encode(c), encode(ending)) for c, endings, _ in chunk for ending in endings]
        scores = iter(score(model, pairs, batch_size, amp))
        for _, endings, label in chunk:
            own = [next(scores) for _ in endings]
            sums = [one.log_probability for one in own]
            by_sum += label == sums.index(max(sums))
            means = [mean(*pair) for pair in zip(own, endings, strict=True)]
            by_mean += label == means.index(max(means))
            greedy += own[label].greedy
            log_probability += sums[label]
        bar.update(len(chunk))
n = len(examples)
if task == "hellaswag":  # endings differ in length: GPT-2's successors quote the mean
    unit = "token" if protocol == "llm.c" else "character"
    result = f"accuracy {by_sum / n:.4f}, by mean per {unit} {by_mean / n:.4f}, as {protocol}"
else:
    result = f"accuracy {greedy / n:.4f}, perplexity {math.exp(-log_probability / n):.2f}"
print(f"{task}: {n} examples, {result}")
