"""Measure train.py, by running it for a few steps, and generation, for any config.

    python -m tools.bench config/shakespeare_char.py
    python -m tools.bench config/gpt2.py \\
        --batch_size=4 --gradient_accumulation_steps=1
    python -m tools.bench config/gpt2.py --processes=8 --new_tokens=0
    python -m tools.bench config/shakespeare_char.py \\
        --profile=trace.json --json_file=bench.jsonl

It takes all settings of train.py. A dataset that is not there is replaced by random tokens.
Generation is that of sample.py, with random weights unless --init_from names a checkpoint.
"""

import sys

if not __package__:  # started by its path
    command = "python -m tools.bench"
    print(f"start it as a module from the repository's root: {command}", file=sys.stderr)
    sys.exit(2)

import contextlib
import os
import re
import runpy
import statistics
import subprocess
import tempfile
import time
from typing import Literal

from configurator import ROOT, configure, pick

import numpy as np
import torch

from core import UserError, checkpoint, log
from core.batches import Batches, split_batch
from core.dataset import Writer, ensure_prepared, read_meta
from core.device import SkipInit, choose_device, device_name, should_compile
from core.extras.gpt2_tokenizer import GPT2Tokenizer
from core.generate import KVCache, Sampling, compile_decoding, generate, prepare_for_inference
from core.tokenizer import Tokenizer, from_dict
from model import GPT, GPTConfig

# ---- settings: these, and all of train.py's ------------------------------------------------------
updates = 10  # steps of train.py to time, after two that are not; 0 = none
processes = 1  # of train.py; more than one run under torchrun
new_tokens = 100  # to generate after the prompt, 0 = none
prompt_tokens = 16  # of the prompt
num_samples = 1  # sequences generated at once
generation_dtype: Literal["auto", "float32", "bfloat16", "float16", "int8"] = "auto"  # of weights
generation_compile = False  # faster tokens, as by sample.py --compile
profile = ""  # a file for the trace of five steps, to be read on https://ui.perfetto.dev
json_file = ""  # a file to which the figures are added as a line of JSON
settings = configure(__file__, "train.py", GPTConfig)
globals().update(settings)

TRAIN = os.path.join(ROOT, "train.py")
defaults = configure(TRAIN, GPTConfig, argv=[])
arguments = sys.argv[1:]
figures: dict[str, float] = {}


def show(name: str, value: float, unit: str) -> None:
    figures[name] = value
    print(f"{name:<22} {value:>12,.{0 if value >= 1000 else 2}f} {unit}", flush=True)


# ---- the data and the model ----------------------------------------------------------------------
def find_tokenizer(temporary: str) -> Tokenizer:
    """The dataset's; without a dataset GPT-2's, and for training random tokens in `temporary`."""
    folder = os.path.join("data", settings["dataset"])
    if updates or profile:
        with contextlib.suppress(UserError):  # random tokens will do
            return ensure_prepared(folder, settings["prepare"])
    if os.path.exists(os.path.join(folder, "train.bin")):
        return from_dict(read_meta(folder)["tokenizer"])
    tokenizer = GPT2Tokenizer()
    if updates or profile:
        print(f"data     random tokens: there is no {folder}", flush=True)
        settings["dataset"], settings["prepare"] = temporary, ""
        ids = np.random.default_rng(0).integers(0, tokenizer.vocab_size, 2**22)
        with Writer(temporary, tokenizer, {"name": "random tokens"}) as writer:
            writer.append("train", ids)
            writer.append("val", ids)
    return tokenizer


def build_model(vocab_size: int) -> GPT:
    """The model that train.py would train."""
    if settings["init_from"] == "scratch":
        return GPT(GPTConfig(vocab_size, **pick(GPTConfig, settings)))
    loaded = checkpoint.load(settings["init_from"])
    block_size = min(loaded["model_args"]["block_size"], settings["block_size"])
    return GPT.from_state_dict(loaded["model_args"] | {"block_size": block_size}, loaded["model"])


# ---- training: train.py itself, and its log ------------------------------------------------------
def compiles(model: GPT) -> bool:
    """Whether train.py would compile the model, which depends on the length of the whole run."""
    accumulation, batch_size = settings["gradient_accumulation_steps"], settings["batch_size"]
    world_size = max(1, processes)
    batch, _ = split_batch(accumulation, batch_size, world_size)
    folder, block_size = os.path.join("data", settings["dataset"]), model.config.block_size
    data = Batches(folder, block_size, batch, settings["seed"], device, settings["ramp_iters"])
    data.world_size = world_size
    return should_compile(settings["compile"], model, data, 0, settings["max_iters"])


def train_options(steps: int, out_dir: str) -> list[str]:
    """The command line of a train.py with the same settings that makes only these steps."""
    values = {name: settings[name] for name in defaults}
    values |= {"max_iters": steps, "out_dir": out_dir, "ramp_iters": 0, "log_interval": 1}
    values |= {"eval_interval": 0, "eval_iters": 1, "eval_only": False, "wandb_log": False}
    return [f"--{name}={value}" for name, value in values.items() if value != defaults[name]]


def run_train(out_dir: str) -> str:
    """Run train.py and show what it prints, which is returned; if it fails, so does this."""
    torchrun = ["-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={processes}"]
    launcher = torchrun if processes > 1 else []
    command = [sys.executable, *launcher, TRAIN, *train_options(updates + 2, out_dir)]
    printed = ""
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as child:
        try:
            for line in child.stdout:
                print(line, end="", flush=True)
                printed += line
        except BaseException:
            child.terminate()
            raise
    if child.returncode:
        raise SystemExit(child.returncode)
    return printed


def measure_training(out_dir: str, flops_per_token: float) -> None:
    printed = run_train(out_dir)
    records = [r for r in log.read(os.path.join(out_dir, "log.jsonl")) if "loss" in r][2:]
    if compilation := re.search(r"^compile  done in (\d+) s", printed, re.MULTILINE):
        show("compilation", float(compilation[1]), "s")
    ms = [r["ms"] for r in records]
    tokens_per_s = statistics.median(r["tokens_per_s"] for r in records)
    show("update", statistics.median(ms), f"ms, median of {updates}")
    show("update, fastest", min(ms), "ms")
    show("training", tokens_per_s, "tokens/s")
    show("training, arithmetic", tokens_per_s * flops_per_token / 1e12, "TFLOP/s")
    if records[0]["mfu"]:
        show("MFU", 100 * statistics.median(r["mfu"] for r in records), "% of the device's peak")
    if device.type == "cpu" and sys.platform != "win32":
        import resource

        unit = 1 if sys.platform == "darwin" else 1024
        peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * unit
        show("peak memory", peak / 2**20, "MiB, of the largest process")


def write_profile(out_dir: str) -> None:
    """The trace of train.py, which runs in this process."""
    sys.argv = [TRAIN, *train_options(5, out_dir)]
    with torch.profiler.profile() as trace:
        try:
            runpy.run_path(TRAIN, run_name="__main__")
        except SystemExit as end:
            if end.code:
                raise
    trace.export_chrome_trace(profile)
    print(f"trace    {profile}")


# ---- generation, as sample.py does it ------------------------------------------------------------
def clock() -> float:
    """Seconds, once the device has done all that it was given."""
    getattr(torch, device.type).synchronize()
    return time.perf_counter()


def memory_bandwidth() -> float:
    """Bytes per second that the sum of a large tensor reads, the best of four."""
    tensor, seconds = torch.ones(2**28 if device.type == "cuda" else 2**26, device=device), []
    for _ in range(4):
        start = clock()
        tensor.sum()
        seconds.append(clock() - start)
    return tensor.nbytes / min(seconds)


def measure_generation(model: GPT) -> None:
    # each token reads all weights but the embeddings, of which it takes a row
    read = [*model.transformer.h.parameters(), *model.lm_head.parameters()]
    weights = sum(p.numel() for p in read)
    model = prepare_for_inference(model, generation_dtype, device)
    width = 1 if generation_dtype == "int8" else model.transformer.wte.weight.itemsize
    config = model.config
    T = min(prompt_tokens, config.block_size)
    prompt = torch.randint(config.vocab_size, (num_samples, T), device=device)
    cache = KVCache(model, num_samples, min(config.block_size, T + new_tokens))
    decode = compile_decoding(model, cache, generation_compile)
    list(generate(model, prompt, min(4, new_tokens), Sampling(), cache=cache, decode=decode))
    cache.reset()
    start = clock()
    tokens = generate(model, prompt, new_tokens, Sampling(), cache=cache, decode=decode)
    times = [clock() for _ in tokens]
    show("prefill", prompt.numel() / (times[0] - start), f"tokens/s, {T} per sequence")
    if new_tokens > 1:
        rate = (new_tokens - 1) / (times[-1] - times[0])
        show("generation", rate * num_samples, "tokens/s")
        show("weights read", rate * weights * width / 1e9, "GB/s")
        show("memory reads", memory_bandwidth() / 1e9, "GB/s, a plain sum")


# ---- the work ------------------------------------------------------------------------------------
device = choose_device(settings["device"])
torch.manual_seed(settings["seed"])
if settings["init_from"] in ("resume", "auto"):
    settings["init_from"] = "scratch"
with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as temporary:
    vocab_size = find_tokenizer(temporary).vocab_size
    with SkipInit():  # only its shape is needed
        shape = build_model(vocab_size)
    parameters = sum(p.numel() for p in shape.parameters())
    if updates or profile:
        settings["compile"] = compiles(shape)
    if updates:
        measure_training(os.path.join(temporary, "run"), shape.flops_per_token())
    if new_tokens:
        measure_generation(build_model(vocab_size))
    if profile:
        write_profile(os.path.join(temporary, "profile"))

if json_file:
    commit = ["git", "-C", ROOT, "rev-parse", "--short", "HEAD"]
    facts = {
        "command": ["python", "-m", "tools.bench", *arguments],
        "commit": subprocess.run(commit, capture_output=True, text=True).stdout.strip(),
        "device": device_name(device),
        "torch": torch.__version__,
        "parameters": parameters,
    }
    log.append(json_file, facts | figures)
