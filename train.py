"""Train a GPT: pretrain, fine-tune or resume, on one device or under torchrun.

    python train.py config/shakespeare_char.py
    python train.py config/shakespeare_char.py --max_iters=500 --dropout=0.2
    python train.py config/shakespeare_char.py --init_from=resume
    torchrun --standalone --nproc_per_node=8 train.py config/gpt2.py

Several machines, here the first of two at 10.0.0.1 (the other says --node_rank=1):

    torchrun --nnodes=2 --node_rank=0 --nproc_per_node=8 \\
        --master_addr=10.0.0.1 --master_port=1234 train.py config/gpt2.py
"""

import math
import os
from typing import Literal

from configurator import configure, pick

import torch
from torch.nn import functional as F

from core import checkpoint, distributed
from core.batches import Batches, fold_in, split_batch
from core.dataset import ensure_prepared
from core.device import autocast, choose_device, choose_dtype, compile_model, should_compile
from core.distributed import RANK, WORLD_SIZE, all_reduce_sum, any_rank, clip_grad_norm, print0
from core.log import RunLog, check_finite, opening_report, require_targets
from core.optimizer import build_optimizers, lr_factor
from core.run_folder import check_outputs
from model import GPT, GPTConfig

# ---- settings: a config file and --key=value override them; the model's are in GPTConfig ---------
# data
dataset = "openwebtext"  # the folder under data/ to train on
prepare = ""  # the command that makes it when it is missing, such as prepare_shakespeare.py
# the model, besides the fields of GPTConfig
model_type = ""  # gpt2, gpt2-xl, gpt-mini, ...: replaces n_layer, n_head and n_embd
train_only = ""  # names of the parameters to train, such as "transformer.h.3.*,lm_head.*"; "" = all
lora_rank = 0  # train adapters of this rank beside frozen weights, as in LoRA; 0 = the weights
# run
out_dir = "out/gpt2"  # where ckpt.pt (latest), best.pt (lowest validation loss) and log.jsonl go
init_from = "scratch"  # scratch, resume, auto (resume, if it can), gpt2, ORG/NAME or a path
allow_other_data = False  # resume although the dataset's files have changed
max_iters = 600000  # steps in all
eval_interval = 2000  # steps between evaluations, 0 = only after the last
eval_iters = 200  # an evaluation takes the whole split or this many batches, whichever is less
eval_only = False  # evaluate once, on the whole validation split, and stop
always_save_checkpoint = True  # save at every evaluation, or only at the best so far
log_interval = 10  # steps between training lines
seed = 1337  # of the weights, the order of the data, and dropout
# batch
gradient_accumulation_steps = 40  # the global batch is this many times batch_size sequences, ...
batch_size = 12  # ... which the processes share; each computes at most batch_size at once
ramp_iters = 0  # steps over which the global batch grows from a sixteenth to its full size
# optimizer
optimizer: Literal["adamw", "muon"] = "adamw"  # muon: for the blocks' matrices, adamw for the rest
learning_rate = 6e-4  # AdamW's at its peak
muon_lr = 0.02  # Muon's at its peak; both follow one schedule
muon_momentum = 0.95  # weight of the past in Muon's mean of gradients; lower for a short run
weight_decay = 0.1  # of matrices and embeddings
beta1 = 0.9  # AdamW's for the mean of gradients
beta2 = 0.95  # AdamW's for the mean of their squares; nearer 1 where a batch has few tokens
grad_clip = 1.0  # largest norm of the gradient, 0 = no limit
skip_nonfinite = 20  # steps in a row that are skipped for a gradient with NaN or infinity
# learning-rate schedule
decay_lr = True  # False is lr_schedule=constant without warm-up
lr_schedule: Literal["cosine", "linear", "constant"] = "cosine"  # its shape after the warm-up
warmup_iters = 2000  # steps of linear warm-up
warmup_tokens = 0  # the same in tokens; 0 = warmup_iters says it
lr_decay_iters = 0  # the step at which min_lr is reached, 0 = max_iters
min_lr = 6e-5  # learning_rate at the end; muon_lr falls by the same factor
warmdown = 0.4  # fraction of the run over which lr_schedule=linear falls
# machine
device = "auto"  # auto (cuda, else mps, else cpu), cpu, cuda, cuda:N, mps
dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"  # of matrix products
compile: Literal["auto", True, False] = "auto"  # torch.compile; auto = if the run is long enough
deterministic: Literal["auto", True, False] = "auto"  # resume bit for bit; auto = on a CPU
strategy: Literal["auto", "ddp", "fsdp", "hybrid"] = "auto"  # of processes; auto = ddp if it fits
checkpoint_parts: Literal["auto", True, False] = "auto"  # fsdp: a file per rank; auto = over 64 GB
activation_checkpointing = False  # compute blocks again in the backward pass, to save memory
backend: Literal["auto", "nccl", "gloo"] = "auto"  # of torch.distributed
dist_timeout = 600.0  # seconds that a process waits for the others
peak_tflops = 0.0  # the device's peak, for MFU; 0 = look it up by its name
# trackers
wandb_log = False  # log to Weights & Biases too
wandb_project = "folioGPT"  # its project
wandb_run_name = ""  # its run; "" = the last part of out_dir
tensorboard_log = False  # write TensorBoard's files to out_dir too
settings = configure(__file__, GPTConfig)
check_outputs(settings)
globals().update(settings)

# ---- set-up: device, data, model, optimizers -----------------------------------------------------
device = choose_device(device, deterministic)
distributed.init(device, backend, dist_timeout)
torch.manual_seed(seed)
matmul_dtype = choose_dtype(dtype, device)
amp = autocast(device, matmul_dtype)
scaler = torch.amp.GradScaler(device.type, enabled=matmul_dtype == torch.float16)

latest, best = os.path.join(out_dir, checkpoint.LATEST), os.path.join(out_dir, checkpoint.BEST)
if init_from == "auto":
    init_from = "resume" if checkpoint.saved_in(out_dir) else "scratch"
folder = os.path.join("data", dataset)
tokenizer = ensure_prepared(folder, prepare)
config = GPTConfig(tokenizer.vocab_size, **pick(GPTConfig, settings))
make, resumed = checkpoint.start_from(init_from, GPT, config, out_dir, tokenizer, lora_rank)
model = distributed.build_model(make, settings, device, matmul_dtype)
batch, micro_batch = split_batch(gradient_accumulation_steps, batch_size)
data = Batches(folder, model.config.block_size, batch, seed, device, ramp_iters)
optimizers = build_optimizers(model, settings, matmul_dtype)
start_step, best_val_loss = 0, math.inf
if resumed:
    from core.extras.moments import restore_optimizers

    start_step, best_val_loss = resumed["step"], resumed["best_val_loss"]
    restore_optimizers(resumed, optimizers, scaler)
    checkpoint.check_same_data(resumed, data.fingerprints, allow_other_data)
start = {"init_from": init_from, "step": start_step, "best_val_loss": best_val_loss}
distributed.check_ranks_agree(settings | start | data.fingerprints)

compiled = should_compile(compile, model, data, start_step, max_iters)
facts = opening_report(settings, model, data, optimizers, start_step, matmul_dtype, compiled)
multiple = micro_batch if compiled else 1  # a compiler likes micro-batches of one shape
x, y, num_targets = data.batch("train", start_step, multiple)
net = distributed.parallel(model)  # under torchrun, DDP around the model, unless it is sharded
if compiled:
    compile_model(net, x[:micro_batch], y[:micro_batch], amp, data.has_answers, deterministic)
run_log = RunLog(settings, facts, model, data, start_step, resumed is not None)
make = resumed = None  # their tensors are not needed any more


# ---- evaluation and saving -----------------------------------------------------------------------
@torch.no_grad()  # FSDP cannot train what it has gathered in inference_mode
def split_loss(split: str, limit: int) -> tuple[float, float]:
    """Mean loss over the targets of a split, and the fraction of its examples that are correct:
    every target is the likeliest token. A signal cuts it short."""
    sums = []
    for xs, ys in data.evaluation(split, limit, micro_batch):
        is_target, wrong = ys >= 0, torch.zeros_like(ys, dtype=torch.bool)
        with amp:
            if data.has_answers:
                logits, targets = model(xs, at=is_target), ys[is_target]
                loss = F.cross_entropy(logits, targets, reduction="sum")
                wrong[is_target] = logits.argmax(-1) != targets
            else:
                loss = model(xs, ys, reduction="sum")
        is_example = is_target.any(1)
        correct = (is_example & ~wrong.any(1)).sum()
        sums.append(torch.stack([loss, is_target.sum(), correct, is_example.sum()]))
        if cut_short := any_rank(bool(caught)):
            break
    loss, targets, correct, examples = all_reduce_sum(*torch.stack(sums).cpu().double().sum(0))
    return loss / require_targets(split, targets, cut_short), correct / max(1.0, examples)


def evaluate() -> dict[str, float]:
    limit = eval_iters * batch_size
    model.eval()
    train_loss, _ = split_loss("train", math.ceil(limit / 4))  # only to show the gap
    val_loss, accuracy = split_loss("val", data.splits["val"].length if eval_only else limit)
    model.train()
    figures = {"train_loss": train_loss, "val_loss": val_loss}
    if data.has_answers:
        figures["val_accuracy"] = accuracy
    return figures | data.per_token_and_byte(val_loss) if eval_only else figures


def save(step: int, val_loss: float = math.inf) -> bool:
    """Of all ranks, what resuming and sampling need, after `step` steps; whether it was written.

    val_loss: that of an evaluation; with the lowest so far it is best.pt too.
    """
    state = checkpoint.model_state(model) | {
        "model_args": vars(model.config),
        "tokenizer": tokenizer.to_dict(),
        "task": data.meta["task"],
        "optimizers": {kind: o.state_dict() for kind, o in optimizers.items()},
        "scaler": scaler.state_dict(),
        "step": step,
        "best_val_loss": min(val_loss, best_val_loss),
        "config": settings,
        "data": data.fingerprints,
    }
    return run_log.save(state, latest, also=best if val_loss < best_val_loss else "")


# ---- the loop ------------------------------------------------------------------------------------
caught, is_saved = distributed.catch_signals(), True
for step in range(start_step, (start_step if eval_only else max_iters) + 1):
    is_last = step == max_iters or eval_only
    if is_last or (eval_interval and step % eval_interval == 0):
        with run_log.paused():
            figures = evaluate()
            if not any_rank(bool(caught)):
                check_finite(f"the validation loss after {step} steps", figures["val_loss"])
                run_log.evaluation(step, figures)
                val_loss = figures["val_loss"] if step > 0 else math.inf  # the best has learned
                is_due = is_last or (always_save_checkpoint and step > start_step)
                if not eval_only and (is_due or val_loss < best_val_loss):
                    is_saved = save(step, val_loss)  # a kill before it repeats the evaluation
                    if is_saved:
                        best_val_loss = min(val_loss, best_val_loss)
    if is_last or any_rank(bool(caught)):
        break

    factor = lr_factor(settings, data, step)
    for o in optimizers.values():
        for group in o.param_groups:
            group["lr"] = group["initial_lr"] * factor
    torch.manual_seed(fold_in(seed, step, RANK))  # of dropout
    total_loss = torch.zeros((), device=device)
    micro_batches = list(zip(x.split(micro_batch), y.split(micro_batch), strict=True))
    for i, (xs, ys) in enumerate(micro_batches, start=1):
        net.require_backward_grad_sync = i == len(micro_batches)  # DDP: ranks meet once per step
        with amp:
            at = ys >= 0 if data.has_answers else None  # few positions have a target
            loss = net(xs, ys, reduction="sum", at=at) / num_targets
        scaler.scale(loss * WORLD_SIZE).backward()  # DDP takes the mean over the ranks
        total_loss += loss.detach()
    for o in optimizers.values():
        scaler.unscale_(o)
    grad_norm = clip_grad_norm(model, grad_clip or math.inf)
    x, y, num_targets = data.batch("train", step + 1, multiple)  # copied while a GPU computes
    if grad_norm.isfinite():  # all optimizers step or none; fp16 overflows now and then
        for o in optimizers.values():
            scaler.step(o)
    else:
        run_log.skipped(step + 1, grad_norm)
    scaler.update()
    model.zero_grad(set_to_none=True)

    if (step + 1) % log_interval == 0 or step + 1 in (1, max_iters):
        run_log.training(step + 1, total_loss, learning_rate * factor, grad_norm)

if start_step > max_iters and not eval_only:
    print0(f"nothing to do: {start_step} steps are done, more than --max_iters={max_iters}")
elif any_rank(bool(caught)):
    if not eval_only and step > start_step:
        is_saved = save(step)
    what = "--init_from=resume continues" if os.path.exists(latest) else "nothing is saved yet"
    print0(f"stopped after {step} steps; {what}")
elif run_log.writes and is_saved:
    print0(f"done; to see what it has learned:\n{run_log.next_command(tokenizer)}", wrap=False)
if not is_saved:
    print0(f"the last checkpoint is not on the disk; make room, and resume from {latest}")
distributed.leave(status=128 + caught[0] if caught else int(not is_saved))
