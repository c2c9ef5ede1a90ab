"""AdamW and Muon, which parameter goes to which, and the learning rate of a step."""

import math
from collections import defaultdict

import torch
from torch import Tensor, nn

from core.distributed import WORLD_SIZE, local


def build_optimizers(model: nn.Module, s: dict, dtype: torch.dtype) -> dict:
    """AdamW for everything, or Muon for the blocks' matrices and AdamW for the rest, by kind.

    s: train.py's settings; what they do not train is frozen. dtype: of matrix products. Weight
    decay reaches matrices and embeddings, never gains and biases, as in GPT-2. The adapters of
    core/extras/lora.py have AdamW, and decay as in their paper. Each group has its parameters'
    names, and its peak learning rate as `initial_lr`.
    """
    if s["train_only"] or s["lora_rank"]:
        from core.extras import frozen

        frozen.select_trainable(model, s["train_only"], dtype)
    params = {name: p for name, p in model.named_parameters() if p.requires_grad}

    def group(names: list[str], lr: float, **options) -> dict:
        options |= {"lr": lr, "initial_lr": lr}
        return {"params": [params[name] for name in names], "names": names, **options}

    matrices = [name for name, p in params.items() if p.ndim >= 2]
    vectors = [name for name, p in params.items() if p.ndim < 2]
    hidden = [name for name in matrices if name.startswith("transformer.h.")]
    hidden = [name for name in hidden if ".lora_" not in name]
    lr, muon_lr, decay = s["learning_rate"], s["muon_lr"], s["weight_decay"]
    optimizers: dict = {}
    if s["optimizer"] == "muon" and hidden:
        matrices = [name for name in matrices if name not in hidden]
        qkv = [name for name in hidden if "c_attn" in name]
        single = [name for name in hidden if "c_attn" not in name]
        groups = [group(qkv, muon_lr, stacked=3), group(single, muon_lr, stacked=1)]
        optimizers["muon"] = Muon(groups, muon_lr, s["muon_momentum"], decay, dtype)
    groups = [group(matrices, lr, weight_decay=decay), group(vectors, lr, weight_decay=0.0)]
    optimizers["adamw"] = AdamW(groups, betas=(s["beta1"], s["beta2"]), fused=True)
    return optimizers


def lr_factor(s: dict, data, step: int) -> float:
    """The learning rate of `step` (from 0) as a fraction of its peak, by train.py's settings.

    First a linear warm-up, from above 0. Then `cosine` falls to min_lr (nanoGPT's); `linear` stays,
    then falls to it over the last fraction `warmdown` of the steps
    (https://arxiv.org/abs/2405.18392); `constant` stays. Steps are counted in full batches, so that
    a batch that grows warms up over as many tokens.
    """
    if not s["decay_lr"]:
        return 1.0
    now, warmup = data.full_batches(step), data.full_batches(s["warmup_iters"])
    if s["warmup_tokens"]:
        warmup = s["warmup_tokens"] / (data.batch_size * data.T)
    if now < warmup:
        return (now + 1) / (warmup + 1)
    if s["lr_schedule"] == "constant":
        return 1.0
    end = data.full_batches(s["lr_decay_iters"] or s["max_iters"])
    floor = s["min_lr"] / s["learning_rate"]
    if now >= end:
        return floor
    if s["lr_schedule"] == "cosine":
        fraction = 0.5 * (1 + math.cos(math.pi * (now - warmup) / (end - warmup)))
    else:
        fraction = min(1.0, (end - now) / (s["warmdown"] * end))
    return floor + (1 - floor) * fraction


def bare(method):
    """A method of torch.optim without its wrapper, which imports torch's compiler: two seconds."""
    return torch.no_grad()(getattr(method, "__wrapped__", method))


class Optimizer(torch.optim.Optimizer):
    add_param_group = bare(torch.optim.Optimizer.add_param_group)
    state_dict = bare(torch.optim.Optimizer.state_dict)
    load_state_dict = bare(torch.optim.Optimizer.load_state_dict)


class AdamW(Optimizer, torch.optim.AdamW):
    step = bare(torch.optim.AdamW.step)


class Muon(Optimizer):
    """Orthogonalized momentum, for hidden matrices: https://kellerjordan.github.io/posts/muon/

    Matrices of one shape are orthogonalized in one batched product, which torch.optim.Muon does
    not do, and which makes it slow for small models.

    params: groups with `stacked`, how many matrices a parameter stacks along its rows (c_attn: 3).
    A parameter of three or more dimensions is a stack of the matrices in its last two.
    dtype: of the Newton-Schulz products.
    """

    def __init__(self, params, lr: float, momentum=0.95, weight_decay=0.0, dtype=torch.float32):
        super().__init__(params, dict(lr=lr, momentum=momentum, weight_decay=weight_decay))
        self.dtype = dtype

    @torch.no_grad()
    def step(self, closure=None):
        assert closure is None, "Muon does not evaluate the loss again"
        params, directions = [], []
        for group in self.param_groups:
            trained = [p for p in group["params"] if p.grad is not None]
            if trained:
                params += [(p, group) for p in trained]
                directions += self.nesterov(trained, group)
        updates = self.orthogonalized(params, directions)
        for (p, group), update in zip(params, updates, strict=True):
            rows, cols = p.size(-2) // group["stacked"], p.size(-1)
            scale = max(1.0, rows / cols) ** 0.5  # equal change of the output for every shape
            local(p).add_(update, alpha=-group["lr"] * scale)

    def nesterov(self, params: list, group: dict) -> tuple[Tensor, ...]:
        """Nesterov's momentum of each gradient; the weights decay on the way."""
        for p in params:
            if "momentum_buffer" not in self.state[p]:
                self.state[p]["momentum_buffer"] = torch.zeros_like(p)
        grads = [local(p.grad) for p in params]
        moments = [local(self.state[p]["momentum_buffer"]) for p in params]
        torch._foreach_lerp_(moments, grads, 1 - group["momentum"])
        if group["weight_decay"]:
            decay = group["lr"] * group["weight_decay"]
            torch._foreach_mul_([local(p) for p in params], 1 - decay)
        return torch._foreach_lerp(grads, moments, group["momentum"])

    def orthogonalized(self, params: list, directions: list) -> list[Tensor]:
        """orthogonalize of each direction, in one product for all matrices of one shape.

        Of several ranks each does its part. params: (parameter, its group) of each.
        """
        mine = dict(enumerate(directions))
        if WORLD_SIZE > 1:
            from core.extras.shared_work import SharedWork

            shared = SharedWork([p for p, _ in params])
            mine = shared.collect(directions)
        by_shape, results = defaultdict(dict), {}
        for i, G in mine.items():
            stack = G.view(-1, G.size(-2) // params[i][1]["stacked"], G.size(-1))
            by_shape[stack.shape[1:]][i] = stack
        for stacks in by_shape.values():
            together = orthogonalize(torch.cat(list(stacks.values())), self.dtype)
            parts = together.split([len(stack) for stack in stacks.values()])
            results.update(zip(stacks, parts, strict=True))
        if WORLD_SIZE > 1:
            return shared.hand_out(results, self.dtype, directions[0].device)
        return [results[i].view_as(G) for i, G in mine.items()]


def orthogonalize(G: Tensor, dtype=torch.float32) -> Tensor:
    """The nearest semi-orthogonal matrices to G (N, rows, cols), roughly, by Newton-Schulz.

    Five steps of a quintic with the steepest slope at zero. Singular values above some hundredths
    of the norm end between 0.65 and 1.25 instead of at 1, which serves as well.
    dtype: of the products, and of the result.
    """
    a, b, c = 3.4445, -4.7750, 2.0315
    X = G.mT.contiguous() if G.size(-2) > G.size(-1) else G
    X = (X / (X.norm(dim=(-2, -1), keepdim=True) + 1e-7)).to(dtype)  # small ones are 0 in fp16
    for _ in range(5):
        A = X @ X.mT
        B = torch.baddbmm(A, A, A, beta=b, alpha=c)  # b A + c A A
        X = torch.baddbmm(X, B, X, beta=a)  # a X + B X
    return X.mT if G.size(-2) > G.size(-1) else X
