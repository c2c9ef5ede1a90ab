"""The moments of a checkpoint's optimizers, for the run that resumes with them."""

import copy

import torch
from torch import Tensor

from core import UserError
from core.distributed import local


def restore_optimizers(loaded: dict, optimizers: dict, scaler: torch.amp.GradScaler) -> None:
    """The moments of the checkpoint; learning rates, betas and decay stay those of the settings.

    UserError if it has none, those of another kind of optimizer, or of other parameters.
    """
    saved, path = loaded["optimizers"], loaded["path"]
    if not saved:
        raise UserError(
            f"{path} has no optimizer state to resume with: start a run from its weights "
            f"by --init_from={path} --out_dir=ANOTHER."
        )
    if set(saved) != set(optimizers):
        kinds = " and ".join(saved)
        raise UserError(f"{path} was trained with {kinds}: use the same --optimizer.")
    try:
        for kind, optimizer in optimizers.items():
            restore(optimizer, saved[kind], path)
        scaler.load_state_dict(loaded["scaler"] or scaler.state_dict())
    except (KeyError, TypeError, AttributeError, ValueError, RuntimeError) as error:
        raise UserError(f"{path} has a damaged optimizer state: {error!r}.") from None


def restore(optimizer: torch.optim.Optimizer, saved: dict, path: str) -> None:
    groups = optimizer.state_dict()["param_groups"]
    for old, new in zip(saved["param_groups"], groups, strict=True):
        if old.get("names", new["names"]) != new["names"]:  # nanoGPT saves no names
            raise UserError(f"{path} trained other parameters: use its --train_only.")
    params = dict(enumerate(p for group in optimizer.param_groups for p in group["params"]))
    state = {
        i: {name: moment_of(params[i], tensor) for name, tensor in moments.items()}
        for i, moments in saved["state"].items()
    }
    optimizer.load_state_dict({"state": state, "param_groups": groups})


def moment_of(p: Tensor, saved: Tensor | list[Tensor]) -> Tensor:
    """A moment of the parameter, or this process's shard of it, in memory and not in the file."""
    tensor = torch.cat(saved) if isinstance(saved, list) else saved
    if tensor.ndim and tensor.shape != p.shape:
        raise ValueError("its moments are not of their parameters' shapes")
    if p is local(p):
        return copy.deepcopy(tensor)
    from core.extras.fsdp import cut_like

    return cut_like(tensor, p)
