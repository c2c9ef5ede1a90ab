"""A checkpoint of shards: gathered into one file, or, where that would be too large, in parts.

In parts, each process writes its shards, all at once, and nothing is gathered:

    out/NAME/ckpt.pt                 as in core/checkpoint.py, with an empty tensor for each shard,
                                     and "parts": ["2000-5b1e07c4/0.pt", "2000-5b1e07c4/1.pt", ...]
    out/NAME/parts/2000-5b1e07c4/0.pt
                                     the first process's shards, a list in the order of the state

ckpt.pt is replaced when its parts are on the disk, and becomes ckpt.prev.pt and best.pt as a whole
checkpoint does. torch.distributed.checkpoint keeps such parts too, but its index is a pickle, which
can run code when it is read.
"""

import itertools
import os
import secrets
import shutil
from collections.abc import Callable
from glob import escape, glob

import torch
import torch.distributed as dist

from core import UserError, checkpoint
from core.distributed import RANK, WORLD_SIZE, local, signals_wait
from core.files import load_torch, sync_folder

ONE_FILE = 64e9  # bytes: a larger checkpoint, of more than 5 billion parameters, is in parts


def save(state: dict, path: str, also: str = "") -> None:
    """checkpoint.save, by all ranks together, of a state with shards.

    UserError, at least on rank 0, if a rank cannot write.
    """
    in_parts = state["config"]["checkpoint_parts"]
    if in_parts == "auto":
        parameters = sum(p.numel() for p in set(state["model"].values()))  # tied ones count once
        in_parts = 12 * parameters > ONE_FILE  # with AdamW's moments
    if in_parts:
        return save_parts(state, path, also)
    gathered = map_tensors(state, whole)
    if RANK == 0:
        checkpoint.save(gathered, path, also)


def save_parts(state: dict, path: str, also: str) -> None:
    """Each rank writes its shards, then rank 0 what they belong to; UserError if one cannot."""
    shards: list[torch.Tensor] = []
    coordinates: list[int] = []

    def placeholder(tensor: torch.Tensor) -> torch.Tensor:
        if tensor is local(tensor):
            return tensor.detach()
        shards.append(local(tensor.detach()))
        coordinates[:] = tensor.device_mesh.get_coordinate()
        return torch.empty(tensor.shape, dtype=tensor.dtype, device="meta")

    rest = map_tensors(state, placeholder)
    *replica, number = coordinates
    names = [f"{state['step']}-{secrets.token_hex(4)}"]  # no other's, whose parts may be in use
    dist.broadcast_object_list(names)
    with signals_wait():
        part = f"{names[0]}/{number}.pt"
        problem = "" if any(replica) else write_part(shards, part_path(path, part))
        everyone = [(part, problem)] * WORLD_SIZE
        dist.all_gather_object(everyone, (part, problem))
        problems = [problem for _, problem in everyone if problem]
        if RANK == 0 and not problems:
            rest["parts"] = list(dict.fromkeys(part for part, _ in everyone))  # replicas have one
            write_rest(rest, path, also)
    if problems:
        raise UserError(problems[0])


def part_path(path: str, part: str = "") -> str:
    """Where a part of the checkpoint `path` is; without one, where all are."""
    return os.path.join(os.path.dirname(path), checkpoint.PARTS, part)


def write_part(shards: list[torch.Tensor], path: str) -> str:
    """Write one part; what prevented it, or nothing."""
    folder = os.path.dirname(path)
    try:
        os.makedirs(folder, exist_ok=True)
        checkpoint.save(shards, path)
        sync_folder(os.path.dirname(folder))
    except (OSError, UserError) as error:
        return str(error)
    return ""


def write_rest(rest: dict, path: str, also: str) -> None:
    """Write what the parts belong to, then remove the parts that no checkpoint has any more."""
    for part in rest["parts"]:
        if not os.path.exists(part_path(path, part)):
            raise UserError(f"{part_path(path, part)} is not there: machines must share out_dir.")
    checkpoint.save(rest, path, also)
    used = set()
    for other in glob(os.path.join(escape(os.path.dirname(path)), "*.pt*")):
        try:
            used |= {os.path.dirname(part) for part in load_torch(other).get("parts", [])}
        except UserError:  # it is damaged, and its parts may be all that is left of it
            return
    for found in os.listdir(part_path(path)):
        if found not in used:
            shutil.rmtree(part_path(path, found), ignore_errors=True)


def joined(loaded: dict, path: str) -> dict:
    """The checkpoint with whole weights. A moment of an optimizer is left a list of shards.

    UserError if a part is missing or damaged.
    """
    try:
        return join(loaded, [read_part(path, part) for part in loaded["parts"]])
    except (KeyError, TypeError, AttributeError, IndexError, ValueError, RuntimeError) as error:
        raise UserError(f"{path} or a part of it is damaged: {error!r}.") from None


def read_part(path: str, part: str) -> list[torch.Tensor]:
    found = part_path(path, part)
    if not os.path.exists(found):
        raise UserError(
            f"{path} lacks its part {found}: copy the folder {checkpoint.PARTS} with it, or "
            "make one file of them by python -m tools.join where they are."
        )
    return load_torch(found)


def join(loaded: dict, parts: list[list[torch.Tensor]]) -> dict:
    numbers = itertools.count()
    weights = {id(tensor) for tensor in loaded["model"].values()}

    def join_shards(tensor: torch.Tensor):
        if not tensor.is_meta:
            return tensor
        number = next(numbers)
        shards = [part[number] for part in parts]
        if (sum(map(len, shards)), *shards[0].shape[1:]) != tensor.shape:
            raise ValueError("its parts are not those of one checkpoint")
        return torch.cat(shards) if id(tensor) in weights else shards

    return map_tensors(loaded, join_shards)


def whole(tensor: torch.Tensor) -> torch.Tensor | None:
    """A tensor of a state, without its graph; of a shard, which all ranks must have, rank 0 gets
    the whole, on the CPU, the others get None."""
    tensor = tensor.detach()
    if not hasattr(tensor, "full_tensor"):
        return tensor
    tensor = tensor.full_tensor()
    return tensor.cpu() if RANK == 0 else None


def map_tensors(tree, change: Callable):
    """The dicts and lists of a state with change(tensor) in place of each tensor.

    A tensor that occurs twice, such as tied weights, is changed once.
    """
    done = {}

    def walk(tree):
        if isinstance(tree, dict):
            return {key: walk(value) for key, value in tree.items()}
        if isinstance(tree, list):
            return [walk(value) for value in tree]
        if torch.is_tensor(tree) and id(tree) not in done:
            done[id(tree)] = change(tree)
        return done.get(id(tree), tree)

    return walk(tree)
