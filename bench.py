"""Measure what train.py and sample.py do: an update's time and memory, generation, data loading.

    python bench.py config/shakespeare_char.py
    python bench.py config/gpt2.py --batch_size=4 --gradient_accumulation_steps=1 --compile=False
    python bench.py config/shakespeare_char.py --profile=trace.json --json_file=bench.jsonl
    torchrun --standalone --nproc_per_node=8 bench.py config/gpt2.py

It takes all settings of train.py; what they leave out is measured on random tokens and weights.
"""

import os
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import fields
from types import SimpleNamespace
from typing import Literal

import numpy as np
import torch
from tqdm import tqdm

from configurator import configure
from core import checkpoint, log, runtime
from core.batches import Batches, share_rows
from core.dataset import Writer
from core.optimizer import build_optimizers, update
from core.tokenizer import GPT2Tokenizer
from model import GPT, SIZES, GPTConfig

# ---- settings: these, and all of train.py's ------------------------------------------------------
updates = 10  # timed, after two that are not; 0 = none
new_tokens = 100  # generated after the prompt, 0 = none
prompt_tokens = 16  # of the prompt
num_samples = 1  # rows generated at once
generation_dtype: Literal["auto", "float32", "bfloat16", "float16", "int8"] = "auto"  # of weights
generation_compile = False  # torch.compile for it, as sample.py --compile
profile = ""  # a file for the trace of three updates, to be read on https://ui.perfetto.dev
json_file = ""  # a file to which the figures are added as a line of JSON
config = configure(__file__, "train.py", GPTConfig, presets={"model": SIZES})
s = SimpleNamespace(**config)

# ---- set-up, as in train.py ----------------------------------------------------------------------
run = runtime.start(s.device, s.backend)
torch.manual_seed(s.seed)
figures: dict[str, float] = {}


def show(name: str, value: float, unit: str) -> None:
    figures[name] = value
    run.print(f"{name:<22} {value:>12,.{0 if value >= 1000 else 2}f} {unit}")


def clock() -> float:
    """Seconds, once the device has done all that it was given."""
    if run.device.type != "cpu":
        getattr(torch, run.device.type).synchronize()
    return time.perf_counter()


batch_rows, micro_rows = share_rows(s.gradient_accumulation_steps, s.batch_size, run.world_size)
folder = os.path.join("data", s.dataset)
with tempfile.TemporaryDirectory() as made_up:
    if not os.path.exists(os.path.join(folder, "train.bin")):
        run.print(f"data     random tokens: there is no {folder}")
        folder = made_up
        with Writer(folder, GPT2Tokenizer(), {"name": "random tokens"}) as writer:
            for split in ("train", "val"):
                writer.append(split, np.random.default_rng(s.seed).integers(0, 50257, 2**22))
    data = Batches(folder, s.block_size, batch_rows, s.seed, run)
    model_args = {f.name: config[f.name] for f in fields(GPTConfig) if f.name in config}
    model_args["vocab_size"] = data.tokenizer.vocab_size
    if s.init_from in ("scratch", "resume", "auto"):
        model = GPT(GPTConfig(**model_args))
    else:
        loaded = checkpoint.load(checkpoint.find(s.init_from, tqdm))
        model = GPT.from_weights(loaded["model_args"], loaded["model"])
    model.to(run.device)
    model.few_graded = data.answers
    dtype = runtime.choose_dtype(s.dtype, run.device)
    autocast = runtime.autocast(run.device, dtype)
    scaler = torch.amp.GradScaler(run.device.type, enabled=dtype == torch.float16)
    optimizers = build_optimizers(
        model,
        s.optimizer,
        s.learning_rate,
        (s.beta1, s.beta2),
        s.muon_lr,
        s.muon_momentum,
        s.weight_decay,
        dtype,
    )
    parameters = sum(p.numel() for p in model.parameters())
    run.print(f"device   {run.world_size} x {runtime.device_name(run.device)}, {dtype}")
    run.print(f"model    {parameters:,} parameters, {batch_rows} rows of {data.T} tokens")

    # ---- data: rows of the training order, as the loop asks for them -----------------------------
    began = clock()
    for step in range(20):
        x, y = data.batch("train", step)
    show("data", 20 * batch_rows * data.T / (clock() - began), "tokens/s")

# ---- updates, as train.py makes them -------------------------------------------------------------
step_tokens = batch_rows * data.T
step_flops = model.flops_per_token() * step_tokens
flops = step_flops * s.max_iters / run.world_size  # of the whole run
compiled = runtime.compile_pays(run.device, flops) if s.compile == "auto" else s.compile
runtime.set_deterministic(s.deterministic, run.device, compiled)
if compiled:
    began = clock()
    run.print(f"compile  {runtime.compile_model(model, x[:micro_rows], y[:micro_rows], autocast)}")
    show("compilation", clock() - began, "s")
net = run.parallel(model)


def timed_update() -> float:
    began = clock()
    micro_batches = list(zip(x.split(micro_rows), y.split(micro_rows), strict=True))
    update(net, optimizers, scaler, autocast, micro_batches, data.graded(y, 0), s.grad_clip)
    return clock() - began


if s.updates:
    seconds = [timed_update() for _ in range(2 + s.updates)][2:]
    median, peak = statistics.median(seconds), runtime.peak_flops(run.device, s.peak_tflops)
    show("update", 1e3 * median, f"ms, median of {s.updates}")
    show("update, fastest", 1e3 * min(seconds), "ms")
    show("training", step_tokens / median, "tokens/s")
    show("training, arithmetic", step_flops / median / 1e12, "TFLOP/s")
    if peak:
        show("MFU", 100 * step_flops / median / (peak * run.world_size), "% of the device's peak")
    show("peak memory", runtime.peak_memory(run.device) / 2**20, "MiB")
if s.profile:
    with torch.profiler.profile() as trace:
        for _ in range(3):
            timed_update()
    trace.export_chrome_trace(s.profile)
    run.print(f"trace    {s.profile}")

# ---- generation, as sample.py does it ------------------------------------------------------------
if s.new_tokens and run.rank == 0:
    prompt = x[:1, : s.prompt_tokens].repeat(s.num_samples, 1)
    generator = GPT(model.config, init=False)  # the compiled one is for whole batches
    generator.load_state_dict(model.state_dict())
    generator = runtime.for_generation(generator, s.generation_dtype, run.device)
    # each token reads them all but the table of embeddings, of which it takes a row
    stored = [
        *generator.transformer.h.state_dict().values(),
        *generator.lm_head.state_dict().values(),
    ]
    weight_bytes = sum(t.nbytes for t in stored)
    cache = generator.new_cache(prompt.size(1) + s.new_tokens)
    if s.generation_compile:
        run.print(f"compile  {runtime.compile_generation(generator, prompt, cache)}")
    options = dict(temperature=0.8, top_k=200, use_cache=cache)
    began = clock()
    times = [clock() for _ in generator.generate(prompt, s.new_tokens, **options)]
    show("prefill", prompt.numel() / (times[0] - began), f"tokens/s, {s.prompt_tokens} a row")
    if s.new_tokens > 1:
        rate = (s.new_tokens - 1) / (times[-1] - times[0])
        show("generation", rate * s.num_samples, "tokens/s")
        show("weights read", rate * weight_bytes / 1e9, "GB/s")
        show("memory reads", runtime.memory_bandwidth(run.device) / 1e9, "GB/s, a plain sum")

if s.json_file and run.rank == 0:
    here = os.path.dirname(os.path.abspath(__file__))
    commit = ["git", "-C", here, "rev-parse", "--short", "HEAD"]
    facts = {
        "command": [os.path.basename(sys.argv[0]), *sys.argv[1:]],
        "commit": subprocess.run(commit, capture_output=True, text=True).stdout.strip(),
        "device": runtime.device_name(run.device),
        "torch": torch.__version__,
        "parameters": parameters,
    }
    log.append(s.json_file, facts | figures)
run.leave(0)
