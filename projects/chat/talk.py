"""Talk to a model that was trained on dialogues.

    python -m projects.chat.talk --out_dir=out/dialogue_tiny
    printf 'hello\\n' | python -m projects.chat.talk --temperature=0

/undo forgets the last turn and its reply, /reset the conversation, /temp 0.5 sets the temperature,
/quit leaves; Ctrl-C ends a reply.
"""

import sys

if not __package__:  # started by its path
    command = "python -m projects.chat.talk"
    print(f"start it as a module from the repository's root: {command}", file=sys.stderr)
    sys.exit(2)

import contextlib
from itertools import chain
from typing import Literal

from configurator import configure, pick

import torch

from core import UserError, checkpoint
from core.batches import fold_in
from core.device import choose_device
from core.generate import KVCache, Sampling, compile_decoding, generate, prepare_for_inference
from model import GPT
from projects.chat.tokens import TurnTokens

# ---- settings: these, and how to sample, in core/generate.py -------------------------------------
out_dir = ""  # a run's folder or a .pt file; by default the newest run under out/
init_from = "resume"  # resume: out_dir; else gpt2, ORG/NAME on the hub, or a GPT-2 folder of it
max_new_tokens = 100  # of a reply
temperature = 0.7  # 0 = always the likeliest token, 1 = as trained, above = more random
top_k = 50  # sample from the k likeliest tokens only, 0 = from all
top_p = 0.9  # sample from the fewest tokens that have this fraction of the probability
repetition_penalty = 1.1  # above 1: tokens of the conversation become less likely
seed = 1337  # the same seed and the same turns, the same replies
device = "auto"  # auto (cuda, else mps, else cpu), cpu, cuda, cuda:N, mps
dtype: Literal["auto", "float32", "bfloat16", "float16", "int8"] = "auto"  # of weights
compile: Literal["auto", True, False] = "auto"  # wait first, for faster tokens; auto = on a CPU
settings = configure(__file__, Sampling)
globals().update(settings)

# ---- the model -----------------------------------------------------------------------------------
device = choose_device(device)
loaded = checkpoint.load(out_dir if init_from == "resume" else init_from)
tokenizer = checkpoint.load_tokenizer(loaded)
sampling = Sampling(**pick(Sampling, settings), unsampled=tokenizer.unsampled)
tokens = TurnTokens(tokenizer, loaded["path"])
model = GPT.from_state_dict(loaded["model_args"], loaded["model"])
model = prepare_for_inference(model, dtype, device)
block_size = model.config.block_size
cache = KVCache(model, 1, block_size)
decode = compile_decoding(model, cache, compile, tokens=max_new_tokens * 10)  # some replies
room = min(max_new_tokens + 3, block_size // 2)  # tokens of a reply, and of those around turns

is_terminal = sys.stdin.isatty()
if is_terminal:
    with contextlib.suppress(ImportError):
        import readline  # noqa: F401 (input() then edits lines and remembers them)
    print(f"{loaded['path']}: /undo, /reset, /temp 0.5, /quit", file=sys.stderr)


# ---- the conversation: only new tokens are computed ----------------------------------------------
def set_temperature(text: str) -> None:
    try:
        sampling.temperature = max(0.0, float(text))
    except ValueError:
        print("/temp takes a number, such as /temp 0.7", file=sys.stderr)


def reply(seed: int) -> list[int]:
    """Print a reply to `turns` as it comes, and return its ids."""
    idx = torch.tensor([[*chain(*turns), *tokens.assistant]], device=device)  # (1, T)
    ids, text = [], tokenizer.stream()
    try:
        for token in generate(model, idx, room - 3, sampling, seed, tokens.stop, cache, decode):
            ids.append(token.item())
            if ids[-1] not in tokenizer.special.values():
                print(text(ids[-1]), end="", flush=True)
    except KeyboardInterrupt:
        cache.reset()  # it may hold half a token
    print(flush=True)
    return ids


turns: list[list[int]] = []  # of both sides, each with the token that ends it
count = 0  # of replies
while True:
    try:
        line = input("> " if is_terminal else "").strip()
    except (EOFError, KeyboardInterrupt):
        break
    if line == "/quit":
        break
    if line in ("/reset", "/undo"):
        del turns[0 if line == "/reset" else -2 :]
        cache.reset()
        continue
    if line.startswith("/temp"):
        set_temperature(line.removeprefix("/temp"))
        continue
    if not line:
        continue
    try:
        ids = tokenizer.encode(line).tolist()
    except UserError as error:  # characters outside the vocabulary
        print(error, file=sys.stderr)
        continue
    turns.append([*tokens.user, *ids[-(block_size - room - 2) :], tokens.end])
    while sum(map(len, turns)) + room > block_size:
        del turns[0]  # whole turns are forgotten, and the others read again
        cache.reset()
    count += 1
    turns.append([*tokens.assistant, *reply(fold_in(seed, count)), tokens.end])
