"""Prompt a checkpoint.

python sample.py --start="First Citizen:"
python sample.py --out_dir=out/shakespeare_char --temperature=0 --num_samples=1
python sample.py --init_from=gpt2 --start=FILE:prompt.txt --stop="\\n\\n"
"""

import os
import sys
from collections.abc import Iterable, Iterator
from typing import Literal

import torch
from tqdm import tqdm

from configurator import configure
from core import UserError, checkpoint, runtime
from core.dataset import read_meta
from core.tokenizer import from_dict
from model import GPT

# ---- settings ------------------------------------------------------------------------------------
out_dir = ""  # a run's folder or a .pt file; by default the newest run under out/
init_from = "resume"  # resume: out_dir; else gpt2, gpt2-xl, ... or a Hugging Face GPT-2 folder
start = "\n"  # the prompt; FILE:path reads it from a file; may be empty
num_samples = 10  # how many continuations
max_new_tokens = 500  # tokens of each
temperature = 0.8  # 0 = always the likeliest token, 1 = as trained, above = more random
top_k = 200  # draw from the k likeliest tokens only, 0 = from all
top_p = 1.0  # draw from the fewest tokens that hold this share of the probability
min_p = 0.0  # draw from tokens at least this fraction as likely as the likeliest
repetition_penalty = 1.0  # above 1: what the context holds becomes less likely
stop = ""  # end a sample before this text
seed = 1337  # the same seed, the same samples
stream = True  # print token by token; False computes all samples at once, faster in all
dataset = ""  # whose tokenizer to take, for a nanoGPT checkpoint that carries none
device = "auto"  # auto (cuda, else mps, else cpu), cpu, cuda, cuda:N, mps
dtype: Literal["auto", "float32", "bfloat16", "float16", "int8"] = "auto"  # of weights
compile = False  # torch.compile: a wait of half a minute, then faster tokens
settings = configure(__file__)
globals().update(settings)

# ---- the model, its tokenizer, the prompt --------------------------------------------------------
run = runtime.start(device)
wanted = out_dir or checkpoint.newest_run() if init_from == "resume" else init_from
path = checkpoint.find(wanted, tqdm)
loaded = checkpoint.load(path)
saved_tokenizer = loaded["tokenizer"]
if saved_tokenizer is None:
    if not dataset:
        raise UserError(
            f"{path} carries no tokenizer: name its dataset, --dataset=shakespeare_char."
        )
    saved_tokenizer = read_meta(os.path.join("data", dataset))["tokenizer"]
tokenizer = from_dict(saved_tokenizer)
model = GPT.from_weights(loaded["model_args"], loaded["model"])
model = runtime.for_generation(model, dtype, run.device)

if start.startswith("FILE:"):
    try:
        with open(start[5:], encoding="utf-8") as file:
            start = file.read()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"--start={start}: the prompt can't be read: {error}.") from None
ids = tokenizer.encode(start) or [tokenizer.start_token]
known = f"{loaded['step']} updates, best val loss {loaded['best_val_loss']:.4f}"
print(f"{path}: {known if loaded['config'] else 'weights of others'}", file=sys.stderr)
if len(ids) > model.config.block_size:
    print(
        f"the model reads the last {model.config.block_size} tokens of the prompt", file=sys.stderr
    )
prompt = torch.tensor([ids], device=run.device)
options = ("temperature", "top_k", "top_p", "min_p", "repetition_penalty")
drawing = {name: settings[name] for name in options}


def until_stop(pieces: Iterable[str]) -> Iterator[str]:
    """The pieces of a text up to `stop`, holding back what may turn out to be its beginning."""
    held = ""
    for piece in pieces:
        held += piece
        if stop and stop in held:
            yield held[: held.index(stop)]
            return
        kept = next((n for n in range(len(stop) - 1, 0, -1) if held.endswith(stop[:n])), 0)
        yield held[: len(held) - kept]
        held = held[len(held) - kept :]
    yield held


# ---- samples, as they come -----------------------------------------------------------------------
prompt = prompt if stream else prompt.repeat(num_samples, 1)
cache = model.new_cache(prompt.size(1) + max_new_tokens)
if compile:
    print(f"compile {runtime.compile_generation(model, prompt, cache)}", file=sys.stderr)


def generated(seed: int) -> Iterator[torch.Tensor]:
    cache.clear()
    return model.generate(prompt, max_new_tokens, seed=seed, use_cache=cache, **drawing)


if stream:
    seeds = range(seed, seed + num_samples)
    samples = ((token.item() for (token,) in generated(s)) for s in seeds)
else:
    tokens = list(generated(seed))
    samples = torch.stack(tokens, dim=1).tolist() if tokens else [[]] * num_samples
for sample in samples:
    print(start, end="", flush=True)
    for piece in until_stop(map(tokenizer.stream(), sample)):
        print(piece, end="", flush=stream)
    print("\n---------------", flush=True)
