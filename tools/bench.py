"""Measure what train.py and generation do: time and memory of a step, tokens per second.

    python -m tools.bench config/shakespeare_char.py
    python -m tools.bench config/gpt2.py --batch_size=4 --gradient_accumulation_steps=1
    python -m tools.bench --updates=0 --new_tokens=200 --generation_dtype=int8

It takes all settings of train.py, runs train.py for a few steps and reads its log. Where there is
no dataset it trains on random tokens.
"""

import sys

if not __package__:  # started by its path
    print("start it from the repository's root: python -m tools.bench CONFIG", file=sys.stderr)
    sys.exit(2)

import os
import re
import runpy
import statistics
import subprocess
import tempfile
import time
from typing import Literal

import numpy as np
import torch

from configurator import ROOT, configure, pick, read_settings
from core import log
from core.batches import split_batch
from core.dataset import Writer, read_meta
from core.device import choose_device, device_name, should_compile
from core.generate import KVCache, Sampling, compile_decoding, generate, prepare_for_inference
from core.gpt2 import SIZES
from core.tokenizer import GPT2Tokenizer, from_dict
from model import GPT, GPTConfig

# ---- settings: these, and all of train.py's ------------------------------------------------------
updates = 10  # steps that are timed, after two that are not; 0 = nothing of training
processes = 1  # run train.py by torchrun on so many processes
new_tokens = 100  # generated after the prompt, 0 = none
prompt_tokens = 16  # of the prompt
num_samples = 1  # sequences generated at once
generation_dtype: Literal["auto", "float32", "bfloat16", "float16", "int8"] = "auto"  # of weights
generation_compile = False  # torch.compile for generation, as sample.py --compile
profile = ""  # a file for the trace of the steps, for https://ui.perfetto.dev
json_file = ""  # a file that gets the figures as one line of JSON
own = set(read_settings(__file__))
settings = configure(__file__, "train.py", GPTConfig)
globals().update({name: settings[name] for name in own})
figures: dict[str, float] = {}


def show(name: str, value: float, unit: str) -> None:
    figures[name] = value
    print(f"{name:<22} {value:>12,.{0 if value >= 1000 else 2}f} {unit}", flush=True)


def build_config() -> GPTConfig:
    """The model that is asked for, with the vocabulary of the dataset, or GPT-2's without one."""
    folder, tokenizer = os.path.join("data", settings["dataset"]), GPT2Tokenizer()
    if os.path.exists(os.path.join(folder, "train.bin")):
        tokenizer = from_dict(read_meta(folder)["tokenizer"])
    if settings["model_type"]:
        sizes = SIZES[settings["model_type"]]
        settings["n_layer"], settings["n_head"], settings["n_embd"] = sizes
    return GPTConfig(tokenizer.vocab_size, **pick(GPTConfig, settings))


# ---- training: train.py itself -------------------------------------------------------------------
def write_random_tokens(folder: str) -> None:
    print(f"data     random tokens: there is no data/{settings['dataset']}")
    ids = np.random.default_rng(0).integers(0, 50257, 2**21)
    with Writer(folder, GPT2Tokenizer(), {"name": "random tokens"}) as writer:
        for split in ("train", "val"):
            writer.append(split, ids)


def train_arguments(folder: str) -> list[str]:
    """The options that differ from train.py's own, for a few steps in that folder."""
    changes = {"max_iters": updates + 2, "log_interval": 1, "eval_interval": 0, "eval_iters": 1}
    changes |= {"out_dir": os.path.join(folder, "run"), "eval_only": False, "ramp_iters": 0}
    if settings["init_from"] in ("resume", "auto"):
        changes["init_from"] = "scratch"
    changes["lr_decay_iters"] = settings["lr_decay_iters"] or settings["max_iters"]
    if not os.path.exists(os.path.join("data", settings["dataset"], "train.bin")):
        if not settings["prepare"]:
            write_random_tokens(os.path.join(folder, "random"))
            changes["dataset"] = os.path.join(folder, "random")
    if settings["compile"] == "auto":  # as it would be for the whole run
        batch, _ = split_batch(settings["gradient_accumulation_steps"], settings["batch_size"], 1)
        flops = GPT(build_config()).flops_per_token() * batch * settings["block_size"]
        device = choose_device(settings["device"])
        changes["compile"] = should_compile("auto", device, flops * settings["max_iters"])
    defaults = read_settings(os.path.join(ROOT, "train.py")) | read_settings(GPTConfig)
    wanted = {name: value for name, value in (settings | changes).items() if name in defaults}
    return [f"--{k}={v}" for k, v in wanted.items() if v != defaults[k].default]


def run_train(arguments: list[str]) -> str:
    """What train.py prints, in a process of its own."""
    command = [sys.executable, os.path.join(ROOT, "train.py")]
    if processes > 1:
        launcher = ["-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={processes}"]
        command[1:1] = launcher
    result = subprocess.run([*command, *arguments], stdout=subprocess.PIPE, text=True)
    print("\n".join(line for line in result.stdout.splitlines() if not line.startswith("step")))
    if result.returncode:
        sys.exit(result.returncode)
    return result.stdout


def bench_training(folder: str) -> None:
    arguments = train_arguments(folder)
    out = run_train(arguments)
    records = log.read(os.path.join(folder, "run", "log.jsonl"))
    steps = [record for record in records if "loss" in record][2:]
    ms = [record["ms"] for record in steps]
    figures["parameters"] = records[0]["parameters"]
    if compiled := re.search(r"compile  done in (\d+) s", out):
        show("compilation", float(compiled[1]), "s")
    show("update", statistics.median(ms), f"ms per step, median of {len(ms)}")
    show("update, fastest", min(ms), "ms per step")
    show("training", statistics.median(r["tokens_per_s"] for r in steps), "tokens/s")
    if steps[-1]["mfu"]:
        show("MFU", 100 * statistics.median(r["mfu"] for r in steps), "% of the device's peak")
    if sys.platform == "linux" and choose_device(settings["device"]).type == "cpu":
        import resource

        peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss
        show("peak memory", peak / 2**10, "MiB")
    if profile:
        sys.argv = [os.path.join(ROOT, "train.py"), *arguments]
        with torch.profiler.profile() as trace:
            try:
                runpy.run_path(sys.argv[0], run_name="__main__")
            except SystemExit:
                pass
        trace.export_chrome_trace(profile)
        print(f"trace    {profile}")


# ---- generation, as sample.py does it ------------------------------------------------------------
def memory_bandwidth(device: torch.device) -> float:
    """Bytes per second that summing a large tensor reads, the best of four."""
    tensor, seconds = torch.ones(2**28 if device.type == "cuda" else 2**26, device=device), []
    for _ in range(4):
        start = time.perf_counter()
        tensor.sum().item()
        seconds.append(time.perf_counter() - start)
    return tensor.nbytes / min(seconds)


def bench_generation() -> None:
    torch.manual_seed(settings["seed"])
    device, source = choose_device(settings["device"]), settings["init_from"]
    is_random = source in ("scratch", "resume", "auto")
    model = GPT(build_config()) if is_random else GPT.from_pretrained(source)
    model = prepare_for_inference(model, generation_dtype, device)
    idx = torch.randint(model.config.vocab_size, (num_samples, prompt_tokens), device=device)
    cache = KVCache(model, num_samples, min(model.config.block_size, prompt_tokens + new_tokens))
    decode = None
    if generation_compile:
        decode, outcome = compile_decoding(model, cache)
        print(f"compile  {outcome}")
    list(generate(model, idx, min(4, new_tokens), Sampling(), cache=cache, decode=decode))
    cache.reset()
    times, start = [], time.perf_counter()
    for token in generate(model, idx, new_tokens, Sampling(), cache=cache, decode=decode):
        token.tolist()  # waits for the device
        times.append(time.perf_counter())
    show("prefill", idx.numel() / (times[0] - start), "tokens/s")
    if new_tokens > 1:
        # a token reads all weights but the table of embeddings
        parts = (model.transformer.h, model.lm_head)
        weights = sum(t.nbytes for part in parts for t in part.state_dict().values())
        rate = (new_tokens - 1) / (times[-1] - times[0])
        show("generation", rate * num_samples, "tokens/s")
        show("weights read", rate * weights / 1e9, "GB/s")
        show("memory reads", memory_bandwidth(device) / 1e9, "GB/s, a plain sum")


if updates:
    with tempfile.TemporaryDirectory() as temporary:
        bench_training(temporary)
if new_tokens:
    bench_generation()
if json_file:
    commit = ["git", "-C", ROOT, "rev-parse", "--short", "HEAD"]
    facts = {
        "command": sys.argv,
        "commit": subprocess.run(commit, capture_output=True, text=True).stdout.strip(),
        "device": device_name(choose_device(settings["device"])),
        "torch": torch.__version__,
    }
    log.append(json_file, facts | figures)
