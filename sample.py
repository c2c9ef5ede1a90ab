"""Prompt a checkpoint.

    python sample.py --start="First Citizen:"
    python sample.py --out_dir=out/shakespeare_char --temperature=0
    python sample.py --init_from=gpt2 --start=FILE:prompt.txt --stop="\\n\\n"

Without --out_dir and --init_from it is the newest run under out/.
"""

import os
import sys
from collections.abc import Iterable
from typing import Literal

from configurator import configure, pick

import torch

from core import checkpoint
from core.batches import fold_in
from core.device import choose_device
from core.generate import KVCache, Sampling, compile_decoding, generate, prepare_for_inference
from model import GPT

# ---- settings: these, and how to sample, in core/generate.py -------------------------------------
out_dir = ""  # a run's folder or a .pt file; by default the newest run under out/
init_from = "resume"  # resume: out_dir; else gpt2, ORG/NAME on the hub, or a GPT-2 folder of it
start = "\n"  # the prompt, in which \n is a line break; FILE:path reads a file; may be empty
num_samples = 10  # how many continuations
max_new_tokens = 500  # tokens of each
stop = ""  # end a sample before this text, in which \n is a line break
seed = 1337  # the same seed, the same samples
stream = True  # print token by token; False computes all samples at once, faster in all
dataset = ""  # whose tokenizer to take, if the checkpoint names none; else that of its own
device = "auto"  # auto (cuda, else mps, else cpu), cpu, cuda, cuda:N, mps
dtype: Literal["auto", "float32", "bfloat16", "float16", "int8"] = "auto"  # of weights
compile: Literal["auto", True, False] = "auto"  # wait first, for faster tokens; auto = if it pays
settings = configure(__file__, Sampling)
globals().update(settings)

# ---- the model, its tokenizer, the prompt --------------------------------------------------------
device = choose_device(device)
loaded = checkpoint.load(out_dir if init_from == "resume" else init_from)
tokenizer = checkpoint.load_tokenizer(loaded, dataset)
model = GPT.from_state_dict(loaded["model_args"], loaded["model"])
model = prepare_for_inference(model, dtype, device)
if start.startswith("FILE:"):
    path = os.path.expanduser(start[5:])
    with open(path, encoding="utf-8-sig", errors="replace") as file:  # sig: no byte order mark
        start = file.read()
ids = tokenizer.encode_prompt(start) or [tokenizer.start_token]
known = f"{loaded['step']} steps, validation loss {loaded['best_val_loss']:.4f}"
print(f"{loaded['path']}: {known}" if loaded["step"] else loaded["path"], file=sys.stderr)
block_size = model.config.block_size
if len(ids) > block_size:
    print(f"the model reads the last {block_size} tokens of the prompt", file=sys.stderr)
seeds = [fold_in(seed, i) for i in range(num_samples)] if stream else [seed]
at_once = num_samples // len(seeds)
prompt = torch.tensor([ids[-block_size:]] * at_once, device=device)
cache = KVCache(model, at_once, min(block_size, prompt.size(1) + max_new_tokens))
decode = compile_decoding(model, cache, compile, max_new_tokens * len(seeds))


# ---- samples, as they come -----------------------------------------------------------------------
def print_until_stop(pieces: Iterable[str]) -> None:
    """Print a text up to `stop`; what may turn out to be its beginning waits for the next piece."""
    text, shown = "", 0
    for piece in pieces:
        text += piece
        if stop and stop in text:
            text = text[: text.index(stop)]
            break
        waiting = next((n for n in range(len(stop) - 1, 0, -1) if text.endswith(stop[:n])), 0)
        print(text[shown : len(text) - waiting], end="", flush=stream)
        shown = len(text) - waiting
    print(text[shown:] + "\n---------------", flush=True)


sampling = Sampling(**pick(Sampling, settings), unsampled=tokenizer.unsampled)
for own_seed in seeds:
    cache.reset()
    tokens = generate(model, prompt, max_new_tokens, sampling, own_seed, cache=cache, decode=decode)
    if stream:
        samples = [(token.item() for token in tokens)]
    else:  # all are computed before one is read, for which a GPU would wait
        samples = zip(*[token.tolist() for token in list(tokens)], strict=True)
    for sample in samples:
        print(start, end="", flush=True)
        print_until_stop(map(tokenizer.stream(ids), sample))
