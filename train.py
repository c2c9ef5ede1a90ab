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
from dataclasses import fields
from datetime import timedelta
from typing import Literal

import torch
from tqdm import tqdm

from configurator import configure
from core import UserError, checkpoint, log, runtime
from core.batches import Batches, share_rows
from core.dataset import ensure_prepared
from core.optimizer import build_optimizers, lr_factor, set_lr, update
from model import GPT, SIZES, GPTConfig, cross_entropy

# ---- settings: a config file and --key=value override them; the model's stand in GPTConfig -------
# data
dataset = "openwebtext"  # the folder under data/ to train on
prepare = ""  # the command that makes it when it is missing, such as prepare_shakespeare.py
# the model, besides the fields of GPTConfig
model = ""  # its size by name: n_layer, n_head and n_embd of gpt2-medium, gpt-nano, gpt3-xl, ...
# run
out_dir = "out/gpt2"  # where ckpt.pt (latest), best.pt (lowest validation loss) and log.jsonl go
init_from = "scratch"  # scratch, resume, auto (resume, if it can), gpt2, gpt2-xl, ... or a path
max_iters = 600000  # updates in all
eval_interval = 2000  # updates between evaluations, 0 = only after the last
eval_iters = 200  # an evaluation takes the whole split or this many batches, whichever is less
freeze = False  # train only the last block, the last norm and the rows of a dataset's labels
eval_only = False  # evaluate once, over the whole validation split, and stop
always_save_checkpoint = True  # save at every evaluation, or only where it is the best so far
log_interval = 10  # updates between training lines
seed = 1337  # of the weights, the order of the data, and dropout
# batch
gradient_accumulation_steps = 5 * 8  # the global batch is this many times batch_size rows, ...
batch_size = 12  # ... which the processes share, computing at most batch_size at once each
ramp_iters = 0  # updates over which the global batch grows from a sixteenth to its full size
# optimizer
optimizer: Literal["adamw", "muon"] = "adamw"  # muon: for the blocks' matrices, adamw for the rest
learning_rate = 6e-4  # AdamW's at its peak
muon_lr = 0.02  # Muon's at its peak; both follow one schedule
muon_momentum = 0.95  # share of the past in Muon's average of gradients; less for a short run
weight_decay = 0.1  # of matrices and embeddings
beta1 = 0.9  # AdamW's memory of the gradient
beta2 = 0.95  # AdamW's memory of its square; nearer 1 where a batch has few tokens
grad_clip = 1.0  # largest norm of the gradient, 0 = no limit
# learning-rate schedule
decay_lr = True  # False is lr_schedule=constant without warm-up
lr_schedule: Literal["cosine", "linear", "constant"] = "cosine"  # shape after the warm-up
warmup_iters = 2000  # updates of linear warm-up
warmup_tokens = 0  # the same in tokens; 0 = warmup_iters says it
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
tensorboard_log = False  # to TensorBoard's files in out_dir
config = configure(__file__, GPTConfig, presets={"model": SIZES})
globals().update(config)

# ---- set-up --------------------------------------------------------------------------------------
run = runtime.start(device, backend)
say = run.print
torch.manual_seed(seed)

batch_rows, micro_rows = share_rows(gradient_accumulation_steps, batch_size, run.world_size)

# where to start: a checkpoint brings the model's shape; dropout and the like are free
latest, best = (os.path.join(out_dir, name) for name in (checkpoint.LATEST, checkpoint.BEST))
log_path = os.path.join(out_dir, "log.jsonl")
if init_from == "auto":
    init_from = "resume" if os.path.exists(latest) else "scratch"
resuming = init_from == "resume"
loaded = None
model_args = {f.name: config[f.name] for f in fields(GPTConfig) if f.name in config}
if init_from != "scratch":
    if run.local_rank == 0 and not resuming:
        checkpoint.find(init_from, tqdm)  # which may download it
    run.any(False)  # the others wait
    loaded = checkpoint.load(latest if resuming else checkpoint.find(init_from))
    rows = min(config["block_size"], loaded["model_args"]["block_size"])
    free = {name: config[name] for name in ("dropout", "loss_chunk")}
    saved = {**loaded["model_args"], **free, "block_size": rows}
    for name in model_args:
        if saved.get(name, model_args[name]) != model_args[name]:
            say(f"model    {name}={saved[name]} as in the checkpoint, not {model_args[name]}")
    model_args |= saved

folder = os.path.join("data", dataset)
if run.local_rank == 0:
    ensure_prepared(folder, prepare, retry_fallback=not resuming)
run.any(False)  # the others wait
data = Batches(folder, model_args["block_size"], batch_rows, seed, run, ramp_iters)
tokenizer = data.tokenizer.to_dict()
if loaded and loaded["tokenizer"] not in (tokenizer, None):
    if resuming or loaded["tokenizer"]["kind"] != tokenizer["kind"]:
        raise UserError(f"{folder} has another vocabulary than the checkpoint: choose its dataset.")
    loaded, common = checkpoint.with_vocabulary(loaded, data.tokenizer)
    model_args["vocab_size"] = data.tokenizer.vocab_size
    say(f"vocab    {common:,} of {data.tokenizer.vocab_size:,} tokens are the checkpoint's")
labels = [i for name, i in data.tokenizer.special.items() if name.startswith("<label ")]
if freeze:
    if not labels:
        raise UserError(f"freeze=True: {folder} has no labels, as prepare_reviews.py gives them.")
    model_args["untied_head"] = True

model_args = {"vocab_size": data.tokenizer.vocab_size, **model_args}
model = GPT.from_weights(model_args, loaded["model"]) if loaded else GPT(GPTConfig(**model_args))
model.to(run.device)
model.few_graded = data.answers
if freeze:
    model.freeze(labels)
matmul_dtype = runtime.choose_dtype(dtype, run.device)
autocast = runtime.autocast(run.device, matmul_dtype)
betas = beta1, beta2
muon = muon_lr, muon_momentum
decay = 0.0 if freeze else weight_decay  # which would reach frozen rows of the head
optimizers = build_optimizers(model, optimizer, learning_rate, betas, *muon, decay, matmul_dtype)
scaler = torch.amp.GradScaler(run.device.type, enabled=matmul_dtype == torch.float16)
start_step, best_val_loss = 0, math.inf
if resuming:
    start_step, best_val_loss = loaded["step"], loaded["best_val_loss"]
    if len(loaded["optimizers"]) != len(optimizers):
        raise UserError(f"{latest} was not trained with --optimizer={optimizer}: use the other.")
    for o, saved in zip(optimizers, loaded["optimizers"], strict=True):
        # moments are the checkpoint's, learning rates and the like those of the settings
        o.load_state_dict({**saved, "param_groups": o.state_dict()["param_groups"]})
    scaler.load_state_dict(loaded["scaler"] or scaler.state_dict())
loaded = None

step_tokens, token_flops = batch_rows * data.T, model.flops_per_token()
peak = runtime.peak_flops(run.device, peak_tflops)
rows_to_do = max(0, data.rows_before(max_iters) - data.rows_before(start_step))
to_do = token_flops * rows_to_do * data.T / run.world_size
compiled = runtime.compile_pays(run.device, to_do) if compile == "auto" else compile
facts = {
    "device": runtime.device_name(run.device),
    "world_size": run.world_size,
    "parameters": sum(p.numel() for p in model.parameters()),
    "source": data.meta["source"],
    "versions": {"python": platform.python_version(), "torch": torch.__version__},
    "start_step": start_step,
}
shape = model.config
sizes = " + ".join(f"{split.length:,} {name}" for name, split in data.splits.items())
dtype_name, way = str(matmul_dtype).removeprefix("torch."), "compiled" if compiled else "eager"
say(f"device   {run.world_size} x {facts['device']}, products in {dtype_name}, {way}")
say(f"data     {folder}: {sizes} tokens of {data.meta['source']['name']}")
say(
    f"model    {facts['parameters']:,} parameters: {shape.n_layer} layers, {shape.n_head} heads, "
    f"{shape.n_embd} wide, context {shape.block_size}, vocabulary {shape.vocab_size}"
)
say(
    f"batch    {step_tokens:,} tokens an update = {run.world_size} (processes) x "
    f"{batch_rows // run.world_size // micro_rows} (micro-batches) x {micro_rows} (rows) x "
    f"{data.T} (tokens)"
)
say(f"run      {out_dir}: updates {start_step} to {max_iters}, {optimizer}, {lr_schedule}")

whole = micro_rows if compiled else 1  # a compiler likes micro-batches of one shape
x, y = data.batch("train", start_step, whole)
runtime.set_deterministic(deterministic, run.device, compiled)
if compiled:
    say("compile  a minute or so ...")
    say(f"compile  {runtime.compile_model(model, x[:micro_rows], y[:micro_rows], autocast)}")
net = run.parallel(model)

writes = run.rank == 0 and not eval_only
if writes:
    if resuming:
        log.rewind(log_path, start_step)
    elif aside := checkpoint.set_aside(out_dir):
        say(f"run      the earlier run in {out_dir} is kept as {aside}")
    log.append(log_path, {"config": config, "model_args": model_args, **facts})
trackers = log.trackers(config, model_args) if writes else []


# ---- work ----------------------------------------------------------------------------------------
def write(record: dict) -> None:
    if writes:
        log.append(log_path, record)
    for track in trackers:
        track(record)


@torch.inference_mode()
def evaluate(split: str) -> tuple[float, float | None] | None:
    """Mean loss of a split; where its rows ask for answers also the share of those that are right,
    all graded tokens being the argmax. None when a signal came meanwhile: whoever sent it won't
    wait for long."""
    sums, rows = [], eval_iters * batch_size
    if split == "train":  # it only shows how far the two lie apart: a quarter of the rows will do
        rows = -(-rows // 4)
    elif eval_only:
        rows = data.splits[split].length
    model.eval()
    for xs, ys in data.evaluation(split, rows, micro_rows):
        graded, right = ys >= 0, torch.zeros(())
        with autocast:
            if data.answers:  # one pass gives both
                logits, wanted = model.head(model.hidden(xs)[graded]), ys[graded]
                loss, wrong = cross_entropy(logits, wanted), torch.zeros_like(graded)
                wrong[graded] = logits.argmax(-1) != wanted
                right = (graded.any(1) & ~wrong.any(1)).sum()
            else:
                loss = model(xs, ys, "sum")
        sums.append([loss, graded.sum(), right, graded.any(1).sum()])
        if run.any(bool(caught)):
            return None
    model.train()
    columns = zip(*sums, strict=True)
    loss, tokens, right, rows = run.sum(*(torch.stack(column).sum() for column in columns))
    return loss / tokens, right / rows if data.answers else None


def save(path: str, step: int) -> None:
    """What resuming needs and what sampling needs, after `step` updates."""
    state = {
        "model": model.state_dict(),
        "model_args": model_args,
        "tokenizer": tokenizer,
        "task": data.meta.get("task"),
        "optimizers": [o.state_dict() for o in optimizers],
        "scaler": scaler.state_dict(),
        "step": step,
        "best_val_loss": best_val_loss,
        "config": config,
    }
    checkpoint.save(state, path)


def demand_finite(what: str, *values: float) -> None:
    if not all(map(math.isfinite, values)):
        raise UserError(
            f"{what} is {values}: training has diverged; lower --learning_rate or --muon_lr, or "
            f"raise --warmup_iters. The last good checkpoint, if any, stays in {out_dir}."
        )


caught = runtime.catch_signals()


def in_full_batches(step: int) -> float:
    """The schedule goes by tokens: it counts `step` updates as so many of the full batch."""
    return data.rows_before(step) / batch_rows


lr_warmup = warmup_tokens / step_tokens if warmup_tokens else in_full_batches(warmup_iters)
lr_end, lr_floor = in_full_batches(lr_decay_iters or max_iters), min_lr / learning_rate
clock, clocked = time.perf_counter(), start_step
for step in range(start_step, max_iters + 1):
    at_interval = eval_interval and step % eval_interval == 0
    if at_interval or step == max_iters or eval_only:
        paused = time.perf_counter()
        train, val = evaluate("train"), evaluate("val")
        if train and val:
            (train_loss, _), (val_loss, val_accuracy) = train, val
            demand_finite(f"the validation loss after {step} updates", val_loss)
            figures = {"train_loss": train_loss, "val_loss": val_loss}
            figures |= {"val_accuracy": val_accuracy} if data.answers else {}
            if eval_only:
                figures |= {"perplexity": math.exp(val_loss)}
            if eval_only and not data.masked:
                figures |= {"bits_per_byte": val_loss / math.log(2) / data.bytes_per_token("val")}
            say(f"step {step}: " + ", ".join(f"{k} {v:.4f}" for k, v in figures.items()))
            write({"step": step, **figures})
            is_best, best_val_loss = val_loss < best_val_loss, min(val_loss, best_val_loss)
            due = step > start_step and (is_best or always_save_checkpoint)
            if writes and (due or step == max_iters):
                save(latest, step)
            if writes and due and is_best:
                save(best, step)
        clock += time.perf_counter() - paused
    if step == max_iters or eval_only or run.any(bool(caught)):
        break

    at = in_full_batches(step)
    factor = lr_factor(lr_schedule, at, lr_warmup, lr_end, lr_floor, warmdown)
    factor = factor if decay_lr else 1.0
    set_lr(optimizers, factor)
    torch.manual_seed(runtime.seed_at(seed, step, run.rank))  # of dropout
    micro_batches = list(zip(x.split(micro_rows), y.split(micro_rows), strict=True))
    graded = data.graded(y, step)
    loss, grad_norm = update(net, optimizers, scaler, autocast, micro_batches, graded, grad_clip)
    x, y = data.batch("train", step + 1, whole)  # copied to a GPU while it computes

    done = step + 1
    if done % log_interval == 0 or done in (1, max_iters):
        batch_loss = run.sum(loss)[0]
        demand_finite(f"the loss of update {done}", batch_loss)
        now = time.perf_counter()
        seconds, tokens = (now - clock) / (done - clocked), data.rows_before(done) * data.T
        speed = (tokens - data.rows_before(clocked) * data.T) / (now - clock)
        mfu = token_flops * speed / (peak * run.world_size) if peak else None
        clock, clocked, lr = now, done, learning_rate * factor
        left = timedelta(seconds=round(seconds * (max_iters - done)))
        say(
            f"step {done}/{max_iters}  loss {batch_loss:.4f}  lr {lr:.2e}  {seconds * 1e3:.1f} ms  "
            f"{speed:,.0f} tokens/s  mfu {f'{mfu:.1%}' if mfu else 'unknown'}  {left} left"
        )
        record = {"step": done, "loss": batch_loss, "lr": lr, "grad_norm": grad_norm.item()}
        speeds = {"ms": seconds * 1e3, "tokens_per_s": speed, "mfu": mfu}
        write({**record, **speeds, "tokens": tokens})

if start_step > max_iters:
    say(f"nothing to do: {start_step} updates are done, more than --max_iters={max_iters}")
elif run.any(bool(caught)):
    if writes and step > start_step:
        norm = 0.0 if scaler.is_enabled() else grad_norm.item()  # fp16 overflows now and then
        demand_finite("the last loss or gradient", loss.item(), norm)
        save(latest, step)
    say(f"stopped after {step} updates; the same command with --init_from=resume goes on")
elif writes:
    say(f"done; python sample.py --out_dir={out_dir} shows what it has learned")
run.leave(status=128 + caught[0] if caught else 0)
