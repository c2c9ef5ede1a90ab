"""Checkpoints: saved atomically, loaded without running code; the model that a run starts from.

    {"model": {name: tensor}, "model_args": {field of GPTConfig: value}, "tokenizer": {plain dict},
     "task": None or the dataset's own description of its examples, "step": 2000,
     "optimizers": {"adamw": state dict, ...}, "scaler": {...}, "best_val_loss": 1.47,
     "config": {setting: value}, "data": {file name: fingerprint}, "lora": see core/extras/lora.py,
     "parts": see core/extras/parts.py}

nanoGPT's ckpt.pt files, Hugging Face's GPT-2 folders and PEFT's are read into the same form.
"""

import copy
import os
from collections.abc import Callable
from dataclasses import asdict
from glob import glob

import torch
from torch import nn

from core import UserError
from core.distributed import RANK, is_sharded, local_rank_first, print0, signals_wait
from core.files import load_torch, replacing
from core.settings import read_settings
from core.tokenizer import Tokenizer, from_dict

LONGEST_CONTEXT = 2**24  # rotary positions have no tensor that would tell
LATEST, PREVIOUS, BEST = "ckpt.pt", "ckpt.prev.pt", "best.pt"
PARTS = "parts"  # the folder of their parts, see core/extras/parts.py
DEFAULTS = {"tokenizer": None, "task": None, "step": 0, "best_val_loss": float("inf")}
DEFAULTS |= {"optimizers": {}, "scaler": {}, "config": {}, "data": {}, "lora": {}}


def save(state: dict, path: str, also: str = "") -> None:
    """Replace a checkpoint: a reader sees old or new, whole. The old ckpt.pt stays as ckpt.prev.pt.

    also: a second name for it. Signals wait until it is written. UserError if it cannot be.
    """
    folder, name = os.path.split(path)
    previous = os.path.join(folder, PREVIOUS) if name == LATEST else ""
    try:
        with signals_wait(), replacing(path, also=also, keep_as=previous) as file:
            torch.save(state, file)
    except (OSError, RuntimeError) as error:
        reason = error if isinstance(error, OSError) else error.__context__  # torch wraps it
        if not isinstance(reason, OSError):
            raise
        what = f"{path} cannot be written ({reason.strerror}), the old one is kept"
        raise UserError(what) from error


def load(source: str, merge: bool = True) -> dict:
    """The checkpoint that `source` names, in the form described above, and its "path".

    source: see resolve_checkpoint. merge: add adapters to their base's weights. These are in
    memory, the optimizers' tensors in the file. UserError if it is none, or is damaged.
    """
    path = resolve_checkpoint(source)
    if os.path.isdir(path):
        from core.extras import hf_folder

        loaded = hf_folder.read(path)
    else:
        loaded = load_file(path)
    for name in DEFAULTS.keys() & loaded.keys() - {"task"}:
        kinds = (type(DEFAULTS[name]), dict) if name == "tokenizer" else type(DEFAULTS[name])
        if not isinstance(loaded[name], kinds):
            raise UserError(f"{path} is damaged: {name} is {str(loaded[name])[:40]}.")
    for name, tensor in loaded["model"].items():
        if not tensor.sum(dtype=torch.float32).isfinite():  # fp16 could overflow in the sum
            raise UserError(f"{path} holds NaN or infinite weights, in {name}: it is of no use.")
    # in memory, since a mapped file that is overwritten would end the process
    loaded = {**DEFAULTS, **loaded, "model": copy.deepcopy(loaded["model"]), "path": path}
    if loaded["lora"]:
        from core.extras import lora

        loaded = lora.with_base(loaded, load)
        loaded = lora.merged(loaded) if merge else loaded
    return loaded


def model_state(model: nn.Module) -> dict:
    """A model's part of its checkpoint: all its tensors, or the adapters that are trained."""
    if hasattr(model, "lora"):
        from core.extras import lora

        return lora.model_state(model)
    return {"model": model.state_dict(keep_vars=is_sharded(model))}  # tied: gathered once


def check_model_args(config: type, args: dict, weights: dict) -> dict:
    """`args`, checked for the dataclass `config`; UserError if they are not those of the weights,
    before memory is taken for another model."""
    settings = read_settings(config)
    args = {k: settings[k].check(v, "model_args") if k in settings else v for k, v in args.items()}
    layers = len({name.split(".")[2] for name in weights if name.startswith("transformer.h.")})
    if args.get("n_layer", layers) != layers:
        raise UserError(f"model_args has n_layer={args['n_layer']}, the weights {layers} layers.")
    if args.get("block_size", 0) > LONGEST_CONTEXT:
        raise UserError(f"model_args: block_size={args['block_size']} is too long a context.")
    return args


def saved_in(folder: str) -> list[str]:
    """The checkpoints of a run that are there, the latest first."""
    paths = [os.path.join(folder, name) for name in (LATEST, PREVIOUS, BEST)]
    return [path for path in paths if os.path.exists(path)]


def load_newest(folder: str) -> dict:
    """The newest whole checkpoint of a run: ckpt.pt, or another with a warning if it is damaged.

    UserError if none is whole.
    """
    latest = os.path.join(folder, LATEST)
    whole, damaged = [], []
    for path in saved_in(folder) or [latest]:
        try:
            whole.append(load(path, merge=False))
        except UserError as error:
            damaged.append(error)
        if whole and path == latest:
            break
    if not whole:
        raise damaged[0]
    newest = max(whole, key=lambda loaded: loaded["step"])
    for error in damaged:
        print0(f"warning  {error}")
    if newest["path"] != latest:
        if RANK == 0 and os.path.exists(latest):  # the next save would keep it as ckpt.prev.pt
            os.replace(latest, f"{latest}.damaged")
        print0(f"warning  {newest['path']}, of step {newest['step']}, takes the place of {latest}")
    return newest


def load_file(path: str) -> dict:
    """Our own checkpoint or nanoGPT's, in our form."""
    if not os.path.exists(path):
        raise UserError(f"there is no checkpoint {path}: train one, or name another run's folder.")
    loaded = load_torch(path)
    if not isinstance(loaded, dict):
        loaded = {}
    if "parts" in loaded:
        from core.extras import parts

        loaded = parts.joined(loaded, path)
    weights, args = loaded.get("model"), loaded.get("model_args")
    is_state = isinstance(weights, dict) and all(map(torch.is_tensor, weights.values()))
    if not is_state or not isinstance(args, dict) or type(args.get("vocab_size")) is not int:
        raise UserError(f"{path} is not a checkpoint of folioGPT or nanoGPT.")
    if "tokenizer" in loaded:
        return loaded
    from core.extras import nanogpt

    return nanogpt.read_checkpoint(loaded, path)


def resolve_checkpoint(source: str) -> str:
    """The .pt file or folder of Hugging Face that `source` names.

    "": the newest run; a run's folder: its best checkpoint, else its latest; "gpt2", ORG/NAME: the
    hub's weights, downloaded at first use; else `source` itself.
    """
    if not source:
        runs = glob(os.path.join("out", "**", "ckpt*.pt"), recursive=True)
        if not runs:
            raise UserError("no checkpoint under out/: train one, or name the folder of a run.")
        source = os.path.dirname(max(runs, key=os.path.getmtime))
    if not os.path.exists(source):
        from core.extras import gpt2, hub

        return hub.download(source) if gpt2.is_hub_id(source) else source
    hf_files = ("config.json", "adapter_config.json")  # of a model, of PEFT's adapters
    is_hf = any(os.path.isfile(os.path.join(source, name)) for name in hf_files)
    if is_hf or not os.path.isdir(source):
        return source
    best = os.path.join(source, BEST)
    return best if os.path.exists(best) else os.path.join(source, LATEST)


def load_tokenizer(loaded: dict, dataset: str = "") -> Tokenizer:
    """The tokenizer of a checkpoint; of one that names none, as nanoGPT's, that of a dataset.

    dataset: its name, if it is not in the checkpoint. UserError if there is none.
    """
    if loaded["tokenizer"] is None:
        from core.extras import vocabulary

        return vocabulary.tokenizer_of_dataset(loaded, dataset)
    return from_dict(loaded["tokenizer"])


def start_from(
    init_from: str, gpt: type, config, out_dir: str, tokenizer, lora_rank=0
) -> tuple[Callable[[], nn.Module], dict | None]:
    """A function that makes the model to train, and the checkpoint if it resumes one, else None.

    init_from: scratch, resume (the run in out_dir), or what resolve_checkpoint takes. gpt: the
    class GPT. config: the GPTConfig that is asked for; a checkpoint brings its own, and only
    dropout and, at a new run's start, untied_head and a shorter block_size may differ.
    tokenizer: the dataset's. lora_rank: 0 trains the weights.
    """
    resuming, loaded = init_from == "resume", None
    with local_rank_first():  # it may be downloaded; ranks that start otherwise meet here too
        if init_from != "scratch":
            loaded = load_newest(out_dir) if resuming else load(init_from, merge=not lora_rank)
    if lora_rank:
        from core.extras import lora

        if not resuming:
            loaded = lora.as_base(loaded, init_from, out_dir, tokenizer, lora_rank)
    if loaded is None:
        return lambda: gpt(config), None
    if loaded["tokenizer"] != tokenizer.to_dict():
        from core.extras import vocabulary

        loaded = vocabulary.of_dataset(tokenizer, loaded, resuming)
    if (rank := loaded["lora"].get("rank", 0)) != lora_rank:
        raise UserError(f"{loaded['path']} was trained with --lora_rank={rank}: resume with it.")
    args, weights = agreed_args(config, loaded, resuming), dict(loaded["model"])
    if args["untied_head"] and not loaded["model_args"].get("untied_head"):
        weights["lm_head.weight"] = weights["lm_head.weight"].clone()

    def make() -> nn.Module:
        model = gpt.from_state_dict(args, {k: v for k, v in weights.items() if ".lora_" not in k})
        return lora.add(model, loaded["lora"], weights) if lora_rank else model

    return make, loaded if resuming else None


def agreed_args(config, loaded: dict, resuming: bool) -> dict:
    """The checkpoint's model_args, with what of the GPTConfig that is asked for may differ."""
    defaults = asdict(type(config)(loaded["model_args"]["vocab_size"]))  # what it does not state
    args = {**defaults, **loaded["model_args"], "dropout": config.dropout}
    if not resuming:
        args["block_size"] = min(args["block_size"], config.block_size)
        args["untied_head"] |= config.untied_head and not loaded["lora"]
    for name, value in asdict(config).items():
        if args[name] != value:
            print0(f"model    {name}={args[name]} as in the checkpoint, not {value}")
    return args


def check_same_data(loaded: dict, fingerprints: dict, allow_other: bool) -> None:
    """UserError if the run was trained on other files than those with these fingerprints."""
    saved = loaded["data"]
    if saved and saved != fingerprints and not allow_other:
        raise UserError(
            f"{loaded['path']} was trained on other data than is there now: prepare the same "
            "again, or resume with --allow_other_data=True."
        )
