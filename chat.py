"""Talk to a model that was trained on dialogues.

    python chat.py --out_dir=out/dialogue_tiny
    printf 'hello\\n' | python chat.py --temperature=0

/reset forgets what was said, /temp 0.5 sets the temperature, /quit leaves, Ctrl-C ends a reply.
"""

import contextlib
import sys
from itertools import chain

import torch
from tqdm import tqdm

from configurator import configure
from core import UserError, checkpoint, runtime
from core.tokenizer import EOS, SEP, from_dict
from model import GPT, KVCache

# ---- settings ------------------------------------------------------------------------------------
out_dir = ""  # a run's folder or a .pt file; by default the newest run under out/
max_new_tokens = 100  # of a reply
temperature = 0.7  # 0 = always the likeliest token, 1 = as trained, above = more random
top_k = 50  # draw from the k likeliest tokens only, 0 = from all
top_p = 0.9  # draw from the fewest tokens that hold this share of the probability
repetition_penalty = 1.1  # above 1: what was said becomes less likely
seed = 1337  # the same seed and the same words, the same replies
device = "auto"  # auto (cuda, else mps, else cpu), cpu, cuda, cuda:N, mps
dtype = "auto"  # of weights: auto, float32, bfloat16, float16, int8
globals().update(configure(__file__))

# ---- the model -----------------------------------------------------------------------------------
run = runtime.start(device)
path = checkpoint.find(out_dir or checkpoint.newest_run(), tqdm)
loaded = checkpoint.load(path)
tokenizer = from_dict(loaded["tokenizer"] or {"kind": "gpt2"})
if SEP not in tokenizer.special:
    raise UserError(f"{path} was not trained on dialogues: its vocabulary has no {SEP}.")
model = GPT.from_weights(loaded["model_args"], loaded["model"])
model = runtime.for_generation(model, dtype, run.device)
block_size = model.config.block_size
room = min(max_new_tokens, block_size // 2)
sep = tokenizer.special[SEP]
ends = [tokenizer.special[name] for name in (SEP, EOS) if name in tokenizer.special]

interactive = sys.stdin.isatty()
if interactive:
    with contextlib.suppress(ImportError):
        import readline  # noqa: F401 (input() then edits lines and remembers them)
    print(f"{path}: /reset, /temp 0.5, /quit", file=sys.stderr)

# ---- turn by turn: only new tokens are computed --------------------------------------------------
turns: list[list[int]] = []
cache, said = KVCache(block_size), 0
while True:
    try:
        line = input("> " if interactive else "").strip()
    except (EOFError, KeyboardInterrupt):
        break
    if line == "/quit":
        break
    if line == "/reset":
        turns = []
        cache.clear()
        continue
    if line.startswith("/temp"):
        try:
            temperature = max(0.0, float(line.removeprefix("/temp")))
        except ValueError:
            print("/temp takes a number, such as /temp 0.7", file=sys.stderr)
        continue
    if not line:
        continue
    try:
        ids = tokenizer.encode_array(line).tolist()
    except UserError as error:
        print(error, file=sys.stderr)
        continue
    turns.append([*ids[-(block_size - room - 1) :], sep])
    while sum(map(len, turns)) + room > block_size:
        del turns[0]  # whole turns are forgotten, and the rest read again
        cache.clear()
    idx = torch.tensor([list(chain.from_iterable(turns))], device=run.device)
    said += 1
    reply, text = [], tokenizer.stream()
    replies = model.generate(
        idx,
        room - 1,  # and the token that ends it
        stop_tokens=ends,
        seed=runtime.seed_at(seed, said),
        use_cache=cache,
        temperature=temperature,
        top_k=top_k,
        top_p=top_p,
        repetition_penalty=repetition_penalty,
    )
    try:
        for (token,) in replies:
            reply.append(token.item())
            if reply[-1] not in tokenizer.special.values():
                print(text(reply[-1]), end="", flush=True)
    except KeyboardInterrupt:
        cache.clear()  # it may hold half a token
    print(flush=True)
    turns.append([*reply, sep])
