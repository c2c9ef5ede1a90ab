"""Parameter groups, AdamW and Muon, learning-rate schedules, and one update."""

import math
from collections import defaultdict
from contextlib import nullcontext

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel as DDP

# Quintic Newton-Schulz coefficients with the steepest slope at zero, and steps that bring every
# singular value near 1. Source: https://kellerjordan.github.io/posts/muon/
NEWTON_SCHULZ, NEWTON_SCHULZ_STEPS = (3.4445, -4.7750, 2.0315), 5


def orthogonalize(G: Tensor) -> Tensor:
    """Nearest semi-orthogonal matrices to a stack of them, (N, rows, cols), by Newton-Schulz.

    Singular values above some hundredths of the norm end between 0.65 and 1.25 instead of at 1,
    which serves as well; smaller ones fall short.
    """
    a, b, c = NEWTON_SCHULZ
    X = G.mT.contiguous() if G.size(-2) > G.size(-1) else G
    X = X / (X.norm(dim=(-2, -1), keepdim=True) + 1e-7)
    for _ in range(NEWTON_SCHULZ_STEPS):
        A = X @ X.mT
        B = torch.baddbmm(A, A, A, beta=b, alpha=c)  # b A + c A A
        X = torch.baddbmm(X, B, X, beta=a)  # a X + B X
    return X.mT if G.size(-2) > G.size(-1) else X


def bare(method):
    """A method of torch.optim without its wrapper, which would import torch's compiler: that takes
    as long as importing torch, and uncompiled runs never need it."""
    return torch.no_grad()(getattr(method, "__wrapped__", method))


class Optimizer(torch.optim.Optimizer):
    add_param_group = bare(torch.optim.Optimizer.add_param_group)
    state_dict = bare(torch.optim.Optimizer.state_dict)
    load_state_dict = bare(torch.optim.Optimizer.load_state_dict)


class AdamW(Optimizer, torch.optim.AdamW):
    step = bare(torch.optim.AdamW.step)


class Muon(Optimizer):
    """Momentum, orthogonalized, for hidden matrices: https://kellerjordan.github.io/posts/muon/

    Matrices of one shape are orthogonalized in one batched product, and the query, key and value
    matrices of c_attn as the three that they are. torch.optim.Muon does neither, and the step of a
    small model would pass between kernels.

    params: groups with `pieces`, how many matrices a parameter stacks along its rows.
    dtype: of the Newton-Schulz products.
    """

    def __init__(self, params, lr: float, momentum=0.95, weight_decay=0.0, dtype=torch.float32):
        super().__init__(params, dict(lr=lr, momentum=momentum, weight_decay=weight_decay))
        self.dtype = dtype

    @torch.no_grad()
    def step(self, closure=None):
        assert closure is None, "Muon does not re-evaluate the loss"
        stacks = defaultdict(list)  # (shape of a matrix, lr) -> [(it, its update), ...]
        for group in self.param_groups:
            params = [p for p in group["params"] if p.grad is not None]
            grads, moments = [p.grad for p in params], [self.momentum_of(p) for p in params]
            if params:
                torch._foreach_lerp_(moments, grads, 1 - group["momentum"])
                updates = torch._foreach_lerp(grads, moments, group["momentum"])  # Nesterov
                if group["weight_decay"]:
                    torch._foreach_mul_(params, 1 - group["lr"] * group["weight_decay"])
                for p, update in zip(params, updates, strict=True):
                    pieces = p.chunk(group["pieces"]), update.chunk(group["pieces"])
                    for piece, part in zip(*pieces, strict=True):
                        stacks[piece.shape, group["lr"]].append((piece, part.to(self.dtype)))
        for ((rows, cols), lr), stack in stacks.items():
            pieces, parts = zip(*stack, strict=True)
            updates = orthogonalize(torch.stack(parts)).to(pieces[0].dtype).unbind()
            scale = max(1.0, rows / cols) ** 0.5  # equal change of the output, whatever the shape
            torch._foreach_add_(list(pieces), list(updates), alpha=-lr * scale)

    def momentum_of(self, p: Tensor) -> Tensor:
        if "momentum_buffer" not in self.state[p]:
            self.state[p]["momentum_buffer"] = torch.zeros_like(p)
        return self.state[p]["momentum_buffer"]


def build_optimizers(
    model: nn.Module,
    kind: str,
    lr: float,
    betas: tuple[float, float],
    muon_lr: float,
    muon_momentum: float,
    weight_decay: float,
    dtype: torch.dtype,
) -> list[torch.optim.Optimizer]:
    """`adamw`: AdamW for everything. `muon`: Muon for the blocks' matrices, AdamW for the rest.

    Weight decay reaches matrices and embeddings, never gains and biases, as in GPT-2. Each group
    remembers its `initial_lr`, which a schedule scales. dtype: of Muon's products.
    """
    params = {name: p for name, p in model.named_parameters() if p.requires_grad}
    hidden = {n: p for n, p in params.items() if p.ndim == 2 and ".h." in n and kind == "muon"}
    rest = [p for name, p in params.items() if name not in hidden]
    groups = [
        {"params": [p for p in rest if p.ndim >= 2], "weight_decay": weight_decay},
        {"params": [p for p in rest if p.ndim < 2], "weight_decay": 0.0},
    ]
    optimizers: list = [AdamW(groups, lr=lr, betas=betas, fused=True)]
    if hidden:
        qkv = [p for name, p in hidden.items() if "c_attn" in name]
        single = [p for name, p in hidden.items() if "c_attn" not in name]
        groups = [{"params": qkv, "pieces": 3}, {"params": single, "pieces": 1}]
        optimizers.append(Muon(groups, muon_lr, muon_momentum, weight_decay, dtype))
    grouped = [p for o in optimizers for group in o.param_groups for p in group["params"]]
    assert len(grouped) == len(params), "a parameter is in two groups, or in none"
    assert set(grouped) == set(params.values()), "a parameter is in two groups, or in none"
    for group in (group for o in optimizers for group in o.param_groups):
        group["initial_lr"] = group["lr"]
    return optimizers


def update(
    net: nn.Module,
    optimizers: list[torch.optim.Optimizer],
    scaler: torch.amp.GradScaler,
    autocast,
    micro_batches: list[tuple[Tensor, Tensor]],
    graded: float,
    grad_clip: float,
) -> tuple[Tensor, Tensor]:
    """One update, by the gradient of the mean loss over the graded tokens of a global batch.

    net: the model, or DDP around it, whose processes each bring their own micro-batches (x, y).
    graded: how many tokens are graded in the micro-batches of all processes.
    Returns this process's part of that loss and the gradient's norm before it was clipped, both
    on the device: reading them waits for it.
    """
    parallel, total = isinstance(net, DDP), torch.zeros((), device=micro_batches[0][0].device)
    processes = torch.distributed.get_world_size() if parallel else 1
    for i, (x, y) in enumerate(micro_batches, start=1):
        alone = parallel and i < len(micro_batches)  # gradients meet once
        with net.no_sync() if alone else nullcontext():
            with autocast:
                loss = net(x, y, "sum") / graded
            scaler.scale(loss * processes).backward()  # DDP takes the mean over processes
        total += loss.detach()
    for optimizer in optimizers:
        scaler.unscale_(optimizer)
    norm = nn.utils.clip_grad_norm_(net.parameters(), grad_clip or math.inf)
    for optimizer in optimizers:
        scaler.step(optimizer)
    scaler.update()
    net.zero_grad(set_to_none=True)
    return total, norm


def set_lr(optimizers: list[torch.optim.Optimizer], factor: float) -> None:
    """Every group's learning rate becomes `factor` times its initial one."""
    for group in (group for o in optimizers for group in o.param_groups):
        group["lr"] = group["initial_lr"] * factor


def lr_factor(
    schedule: str, step: float, warmup: float, end: float, floor: float, warmdown: float
) -> float:
    """Learning rate of update `step` (from 0) as a share of its peak.

    All warm up in a line over `warmup` updates, from above 0. Then `cosine` falls to `floor` at
    `end` (nanoGPT's), `linear` stays and then falls in a line to `floor` over the last `warmdown`
    share of the updates (warm-up, stable, decay: https://arxiv.org/abs/2405.18392), `constant`
    stays. From `end` on it is `floor`.
    """
    if step < warmup:
        return (step + 1) / (warmup + 1)
    if schedule == "constant":
        return 1.0
    if step >= end:
        return floor
    if schedule == "cosine":
        share = 0.5 * (1 + math.cos(math.pi * (step - warmup) / (end - warmup)))
    else:
        share = min(1.0, (end - step) / (warmdown * end))
    return floor + (1 - floor) * share
