"""Parameter groups, AdamW and Muon, learning-rate schedules."""

import math
from collections import defaultdict

import torch
from torch import nn

# Quintic Newton-Schulz coefficients with the steepest slope at zero, and steps that bring every
# singular value near 1. Source: https://kellerjordan.github.io/posts/muon/
NEWTON_SCHULZ, NEWTON_SCHULZ_STEPS = (3.4445, -4.7750, 2.0315), 5


def orthogonalize(G: torch.Tensor) -> torch.Tensor:
    """Nearest semi-orthogonal matrices to a stack of them, (N, rows, cols), by Newton-Schulz.

    Singular values above some hundredths of the norm end between 0.65 and 1.25 instead of at 1,
    which serves as well; smaller ones fall short.
    """
    a, b, c = NEWTON_SCHULZ
    X = G.mT if G.size(-2) > G.size(-1) else G
    X = X / (X.norm(dim=(-2, -1), keepdim=True) + 1e-7)
    for _ in range(NEWTON_SCHULZ_STEPS):
        A = X @ X.mT
        X = a * X + (b * A + c * A @ A) @ X
    return X.mT if G.size(-2) > G.size(-1) else X


class Muon(torch.optim.Optimizer):
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
        stacks = defaultdict(list)  # shape of a matrix -> [(it, its update, -lr), ...]
        for group in self.param_groups:
            params = [p for p in group["params"] if p.grad is not None]
            grads, moments = [p.grad for p in params], [self.momentum_of(p) for p in params]
            if params:
                torch._foreach_lerp_(moments, grads, 1 - group["momentum"])
                updates = torch._foreach_lerp(grads, moments, group["momentum"])  # Nesterov
                torch._foreach_mul_(params, 1 - group["lr"] * group["weight_decay"])
                whole = [t.chunk(group["pieces"]) for t in params], updates
                for pieces, update in zip(*whole, strict=True):
                    for piece, part in zip(pieces, update.chunk(group["pieces"]), strict=True):
                        stacks[tuple(part.shape)].append((piece, part, -group["lr"]))
        for (rows, cols), stack in stacks.items():
            pieces, parts, lrs = zip(*stack, strict=True)
            updates = orthogonalize(torch.stack(parts).to(self.dtype)).to(pieces[0].dtype)
            scale = max(1.0, rows / cols) ** 0.5  # equal change of the output, whatever the shape
            steps = torch._foreach_mul(list(updates.unbind()), [lr * scale for lr in lrs])
            torch._foreach_add_(list(pieces), steps)

    def momentum_of(self, p: torch.Tensor) -> torch.Tensor:
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
    optimizers: list = [torch.optim.AdamW(groups, lr=lr, betas=betas, fused=True)]
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


def set_lr(optimizers: list[torch.optim.Optimizer], factor: float) -> None:
    """Every group's learning rate becomes `factor` times its initial one."""
    for group in (group for o in optimizers for group in o.param_groups):
        group["lr"] = group["initial_lr"] * factor


def lr_factor(
    schedule: str, step: int, warmup: int, end: int, floor: float, warmdown: float
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
