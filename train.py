"""Train a GPT: pretrain, fine-tune or resume, on one device or under torchrun.

    python train.py config/shakespeare_char.py
    python train.py config/shakespeare_char.py --max_iters=500 --dropout=0.2
    python train.py config/shakespeare_char.py --init_from=resume
    torchrun --standalone --nproc_per_node=8 train.py config/gpt2.py

Several machines, here the first of two at 10.0.0.1 (the other says --node_rank=1):

    torchrun --nnodes=2 --node_rank=0 --nproc_per_node=8 --master_addr=10.0.0.1 \\
        --master_port=1234 train.py config/gpt2.py
"""

import math
import os
import platform
import time
from contextlib import nullcontext
from dataclasses import asdict, fields
from datetime import timedelta
from typing import Literal

import torch
from torch.nn.parallel import DistributedDataParallel as DDP

from configurator import configure
from core import UserError, checkpoint, log, runtime
from core.dataset import Dataset, ensure_prepared
from core.optimizer import build_optimizers, lr_factor, set_lr
from model import GPT, GPTConfig

# ---- settings: a config file and --key=value override them; the model's stand in GPTConfig -------
# data
dataset = "openwebtext"  # the folder under data/ to train on
prepare = ""  # the command that makes it when it is missing, such as prepare_shakespeare.py
# run
out_dir = "out/gpt2"  # where ckpt.pt (latest), best.pt (lowest validation loss) and log.jsonl go
init_from = "scratch"  # scratch, resume, auto (resume if there is a checkpoint), or one's path
max_iters = 600000  # updates in all
eval_interval = 2000  # updates between evaluations
eval_iters = 200  # an evaluation takes the whole split or this many batches, whichever is less
eval_only = False  # evaluate once and stop
always_save_checkpoint = True  # save at every evaluation, or only where it is the best so far
log_interval = 10  # updates between training lines
seed = 1337  # of the weights, the order of the data, and dropout
# batch
gradient_accumulation_steps = 5 * 8  # the global batch is this many times batch_size rows, ...
batch_size = 12  # ... which the processes share, computing at most batch_size at once each
# optimizer
optimizer: Literal["adamw", "muon"] = "adamw"  # muon: for the blocks' matrices, adamw for the rest
learning_rate = 6e-4  # AdamW's at its peak
muon_lr = 0.02  # Muon's at its peak; both follow one schedule
weight_decay = 0.1  # of matrices and embeddings
beta1 = 0.9  # AdamW's memory of the gradient
beta2 = 0.95  # AdamW's memory of its square; nearer 1 where a batch has few tokens
grad_clip = 1.0  # largest norm of the gradient, 0 = no limit
# learning-rate schedule
decay_lr = True  # False is lr_schedule=constant without warm-up
lr_schedule: Literal["cosine", "linear", "constant"] = "cosine"  # shape after the warm-up
warmup_iters = 2000  # updates of linear warm-up
lr_decay_iters = 0  # the update at which min_lr is reached, 0 = max_iters
min_lr = 6e-5  # learning_rate at the end; muon_lr falls by the same factor
warmdown = 0.4  # share of the run over which lr_schedule=linear falls
# machine
device = "auto"  # auto (cuda, else mps, else cpu), cpu, cuda, cuda:N, mps
dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"  # of matrix products
compile: Literal["auto", True, False] = "auto"  # torch.compile; auto = if the run is long enough
deterministic: Literal["auto", True, False] = "auto"  # resume bit for bit; auto = on the CPU
backend = "auto"  # of torch.distributed: auto, nccl, gloo
peak_tflops = 0.0  # the device's peak, for MFU; 0 = look it up by its name
# logging elsewhere
wandb_log = False  # to Weights & Biases, besides log.jsonl
wandb_project = "folioGPT"  # its project
wandb_run_name = "gpt2"  # its run
config = configure(globals(), GPTConfig)
globals().update(config)
# ---- set-up --------------------------------------------------------------------------------------
run = runtime.start(device, backend)
say = run.print
matmul_dtype = runtime.choose_dtype(dtype, run.device)
autocast = runtime.autocast(run.device, matmul_dtype)
runtime.set_deterministic(deterministic, run.device)
torch.manual_seed(seed)

# the batch: the same rows whatever the number of processes, each of which takes an equal share
batch_rows = gradient_accumulation_steps * batch_size
if batch_rows % run.world_size:
    fitting = [b for b in range(1, 2 * batch_size + run.world_size) if not b % run.world_size]
    raise UserError(
        f"gradient_accumulation_steps={gradient_accumulation_steps} times batch_size={batch_size} "
        f"rows can't be shared equally by {run.world_size} processes: a batch_size of "
        f"{', '.join(map(str, fitting))} works."
    )
micro_rows = max(n for n in range(1, batch_size + 1) if batch_rows // run.world_size % n == 0)
micro_steps = batch_rows // run.world_size // micro_rows

# where to start from: a checkpoint brings the model's shape; dropout and shorter rows are free
latest, best = (os.path.join(out_dir, name) for name in (checkpoint.LATEST, checkpoint.BEST))
log_path = os.path.join(out_dir, "log.jsonl")
if init_from == "auto":
    init_from = "resume" if os.path.exists(latest) else "scratch"
resuming = init_from == "resume"
loaded = None if init_from == "scratch" else checkpoint.load(latest if resuming else init_from)
model_args = {f.name: config[f.name] for f in fields(GPTConfig) if f.name in config}
if loaded:
    for name, value in loaded["model_args"].items():
        if name != "dropout" and model_args.get(name, value) != value:
            say(f"{name}={value} comes with the checkpoint, in place of {model_args[name]}")
    model_args |= {**loaded["model_args"], "dropout": config["dropout"]}
row_tokens = min(model_args["block_size"], config["block_size"])

folder = os.path.join("data", dataset)
if run.local_rank == 0:
    ensure_prepared(folder, prepare, retry_fallback=not resuming)
run.barrier()
data = Dataset(folder, row_tokens, batch_rows, seed, run)
tokenizer = data.tokenizer.to_dict()
if loaded and loaded["tokenizer"] not in (tokenizer, None):
    raise UserError(f"{folder} was tokenized otherwise than the checkpoint: prepare it again.")

if loaded:
    model = GPT.from_weights(model_args, loaded["model"])
else:
    model = GPT(GPTConfig(data.tokenizer.vocab_size, **model_args))
if row_tokens < model.config.block_size:
    model.crop_block_size(row_tokens)
model.to(run.device)
optimizers = build_optimizers(
    model, optimizer, learning_rate, muon_lr, (beta1, beta2), weight_decay, matmul_dtype
)
scaler = torch.amp.GradScaler(run.device.type, enabled=matmul_dtype == torch.float16)
start_step, best_val_loss = 0, math.inf
if resuming:
    start_step, best_val_loss = loaded["step"], loaded["best_val_loss"]
    if len(loaded["optimizers"]) != len(optimizers):
        raise UserError(f"{latest} was not trained with --optimizer={optimizer}: use the other.")
    for o, state in zip(optimizers, loaded["optimizers"], strict=True):
        o.load_state_dict(state)
    scaler.load_state_dict(loaded["scaler"])
loaded = None  # the memory is wanted for other things

step_tokens = batch_rows * data.T
step_flops = model.flops_per_token() * step_tokens
peak = runtime.peak_flops(run.device, peak_tflops)
parameters = sum(p.numel() for p in model.parameters())
source, shape = data.meta["source"]["name"], model.config
counts = " + ".join(f"{split.length:,} {name}" for name, split in data.splits.items())
say(f"device   {runtime.device_name(run.device)}, {matmul_dtype} products")
say(f"data     {folder}: {counts} tokens of {source}")
say(
    f"model    {parameters:,} parameters: {shape.n_layer} layers, {shape.n_head} heads, "
    f"{shape.n_embd} wide, context {shape.block_size}, vocabulary {shape.vocab_size}"
)
say(
    f"batch    {step_tokens:,} tokens an update: {run.world_size} processes x {micro_steps} "
    f"micro-steps x {micro_rows} rows x {data.T} tokens"
)
say(f"run      {out_dir}: update {start_step} to {max_iters}, {optimizer}, {lr_schedule} schedule")

x, y = data.batch("train", start_step)
to_do = step_flops * (max_iters - start_step) / run.world_size
if runtime.compile_pays(run.device, to_do) if compile == "auto" else compile:
    say("compile  torch.compile, about a minute ...")
    say(f"compile  {runtime.compile_model(model, x[:micro_rows], y[:micro_rows], autocast)}")
net = DDP(model, gradient_as_bucket_view=True) if run.world_size > 1 else model

writes = run.rank == 0 and not eval_only
if writes:
    aside = checkpoint.set_aside(out_dir) if not resuming else log.rewind(log_path, start_step)
    if aside:
        say(f"run      the run that stood in {out_dir} is now {aside}")
    log.append(
        log_path,
        {
            "config": config,
            "model_args": asdict(model.config),
            "versions": {"python": platform.python_version(), "torch": torch.__version__},
            "device": runtime.device_name(run.device),
            "world_size": run.world_size,
            "parameters": parameters,
            "source": data.meta["source"],
            "start_step": start_step,
        },
    )
if wandb_log and writes:
    try:
        import wandb
    except ImportError:
        raise UserError(
            "wandb_log=True needs the package wandb (pip install wandb); without it "
            f"{log_path} holds the same figures."
        ) from None
    wandb.init(project=wandb_project, name=wandb_run_name, config=config)


# ---- work ----------------------------------------------------------------------------------------
def write(record: dict) -> None:
    if writes:
        log.append(log_path, record)
        if wandb_log:
            wandb.log(record, step=record["step"])


@torch.no_grad()
def evaluate(split: str) -> tuple[float, float] | None:
    """Mean loss of a split, and the share of its rows whose every graded token is the argmax.

    None when a signal came meanwhile: whoever sent it won't wait for long.
    """
    losses, tokens, right, examples = [], [], [], []
    model.eval()
    for xs, ys in data.evaluation(split, eval_iters * batch_size, micro_rows):
        graded = ys >= 0
        with autocast:
            losses.append(model(xs, ys, "sum"))
            if data.masked:
                right.append(
                    (((model(xs).argmax(-1) == ys) | ~graded).all(1) & graded.any(1)).sum()
                )
        tokens.append(graded.sum())
        examples.append(graded.any(1).sum())
        if run.any(bool(caught)):
            return None
    model.train()
    sums = [torch.stack(values).sum() for values in (losses, tokens, right or tokens, examples)]
    loss, n_tokens, n_right, n_examples = run.sum(*sums)
    return loss / n_tokens, n_right / n_examples


def save(step: int) -> None:
    """The state after `step` updates: all that resuming needs, and all that sampling needs."""
    if run.rank == 0:
        os.makedirs(out_dir, exist_ok=True)
        state = {
            "model": model.state_dict(),
            "model_args": asdict(model.config),
            "tokenizer": tokenizer,
            "optimizers": [o.state_dict() for o in optimizers],
            "scaler": scaler.state_dict(),
            "step": step,
            "best_val_loss": best_val_loss,
            "config": config,
        }
        checkpoint.save(state, latest)


def demand_finite(what: str, *values: float) -> None:
    if not all(map(math.isfinite, values)):
        raise UserError(
            f"{what} is {values}: training has diverged; lower --learning_rate and --muon_lr, or "
            f"lengthen --warmup_iters. {latest} still holds the last good checkpoint, if any."
        )


caught = runtime.catch_signals()
lr_end = lr_decay_iters or max_iters
lr_floor = min_lr / learning_rate
clock, clocked = time.perf_counter(), start_step
for step in range(start_step, max_iters + 1):
    if step % eval_interval == 0 or step == max_iters or eval_only:
        evaluated = time.perf_counter()
        results = evaluate("train"), evaluate("val")
        if None not in results:
            (train_loss, _), (val_loss, val_accuracy) = results
            demand_finite(f"the validation loss after {step} updates", val_loss)
            accuracy = {"val_accuracy": val_accuracy} if data.masked else {}
            shown = f", val accuracy {val_accuracy:.2%}" if data.masked else ""
            say(f"step {step}: train loss {train_loss:.4f}, val loss {val_loss:.4f}{shown}")
            write({"step": step, "train_loss": train_loss, "val_loss": val_loss, **accuracy})
            is_best = val_loss < best_val_loss
            best_val_loss = min(val_loss, best_val_loss)
            wanted = step > start_step and (is_best or always_save_checkpoint)
            if writes and (wanted or step == max_iters):
                save(step)
                if is_best:
                    checkpoint.link(latest, best)
        clock += time.perf_counter() - evaluated
    if step == max_iters or eval_only or run.any(bool(caught)):
        break

    factor = lr_factor(lr_schedule, step, warmup_iters, lr_end, lr_floor, warmdown)
    factor = factor if decay_lr else 1.0
    set_lr(optimizers, factor)
    torch.manual_seed(runtime.seed_at(seed, step, run.rank))  # of dropout
    graded = run.sum((y >= 0).sum())[0] if data.masked else batch_rows * data.T
    loss = torch.zeros((), device=run.device)
    for first in range(0, len(x), micro_rows):
        rows = slice(first, first + micro_rows)
        last = first + micro_rows == len(x)
        with nullcontext() if last or net is model else net.no_sync():  # gradients meet once
            with autocast:
                share = net(x[rows], y[rows], "sum") / graded
            scaler.scale(share * run.world_size).backward()  # DDP takes the mean over processes
        loss += share.detach()
    x, y = data.batch("train", step + 1)  # copied to a GPU while it computes
    for o in optimizers:
        scaler.unscale_(o)
    grad_norm = torch.nn.utils.clip_grad_norm_(model.parameters(), grad_clip or math.inf)
    for o in optimizers:
        scaler.step(o)
    scaler.update()
    model.zero_grad(set_to_none=True)

    done = step + 1
    if done % log_interval == 0 or done in (1, max_iters):
        total_loss, norm = run.sum(loss)[0], grad_norm.item()
        demand_finite(f"the loss of update {done}", total_loss)
        now = time.perf_counter()
        seconds, clock, clocked = (now - clock) / (done - clocked), now, done
        speed = step_tokens / seconds
        mfu = step_flops / seconds / (peak * run.world_size) if peak else None
        lr = learning_rate * factor
        left = timedelta(seconds=round(seconds * (max_iters - done)))
        say(
            f"step {done}/{max_iters}  loss {total_loss:.4f}  lr {lr:.2e}  {seconds * 1e3:.1f} ms"
            f"  {speed:,.0f} tokens/s  mfu {f'{mfu:.1%}' if peak else '?'}  {left} left"
        )
        record = {"step": done, "loss": total_loss, "lr": lr, "grad_norm": norm}
        speeds = {"ms": seconds * 1e3, "tokens_per_s": speed, "mfu": mfu}
        write({**record, **speeds, "tokens": done * step_tokens})

if start_step > max_iters:
    say(f"nothing to do: {start_step} updates are done, --max_iters={max_iters} asks for fewer")
elif run.any(bool(caught)) and step > start_step:
    demand_finite(f"the last loss and gradient before update {step}", loss.item(), grad_norm.item())
    save(step)
    say(f"stopped after {step} updates; the same command with --init_from=resume goes on")
elif not eval_only:
    say(f"done: {latest}; python sample.py --out_dir={out_dir} shows what it has learned")
run.close()
if caught:
    raise SystemExit(128 + caught[0])
