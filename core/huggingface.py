"""GPT-2 as Hugging Face's transformers keeps it, read and written, and fetched from the hub.

    FOLDER/config.json          {"model_type": "gpt2", "n_layer": 12, "n_head": 12, ...}
    FOLDER/model.safetensors    {"transformer.h.0.attn.c_attn.weight": (768, 2304), ...}
    FOLDER/tokenizer.json       AutoTokenizer's

Its matrices stand transposed, since its GPT-2 kept TensorFlow's layout.
"""

import itertools
import json
import os
from glob import escape, glob

import torch
from torch.nn import functional as F

from core import UserError
from core.tokenizer import END, from_dict

RELEASED = ("gpt2", "gpt2-medium", "gpt2-large", "gpt2-xl")
TRANSPOSED = ("c_attn.weight", "c_proj.weight", "c_fc.weight")
ACTIVATIONS = {"gelu_new": "gelu_tanh", "gelu": "gelu", "relu2": "relu2"}
# fields of our models that GPT-2's format can't express unless they are off
BEYOND = ("rotary", "smear", "window", "rms_norm", "qk_norm", "logit_softcap", "untied_head")
# settings of theirs that our model has no field for, with the values that it implements
FIXED = {
    **{"layer_norm_epsilon": 1e-5, "scale_attn_weights": True, "tie_word_embeddings": True},
    **{"scale_attn_by_inverse_layer_idx": False, "add_cross_attention": False},
}


def hub() -> tuple[str, str]:
    """The hub's address and the token for it, as its own tools read them."""
    return os.environ.get("HF_ENDPOINT", "https://huggingface.co"), os.environ.get("HF_TOKEN", "")


def released(name: str, progress=None) -> str:
    """The folder with the weights of that name that OpenAI released, downloaded at first use."""
    from core.download import NoNetwork, fetch  # its requests takes a moment to import

    cache = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    folder = os.path.join(cache, "folioGPT", name)
    endpoint, token = hub()
    for file in ("config.json", "model.safetensors"):
        path = os.path.join(folder, file)
        if os.path.exists(path):
            continue
        url = f"{endpoint}/openai-community/{name}/resolve/main/{file}"
        try:
            fetch(url, path, progress=progress, token=token)
        except NoNetwork as error:
            raise UserError(
                f"{error} Without a network, copy its config.json and model.safetensors into a "
                "folder and name that instead."
            ) from None
    return folder


def is_folder(path: str) -> bool:
    """Whether that is a Hugging Face folder, as opposed to one of a run of ours."""
    return os.path.isdir(path) and os.path.exists(os.path.join(path, "config.json"))


def read(folder: str) -> dict:
    """A GPT-2 folder as a checkpoint of ours, see checkpoint.py; its weights mapped from the file.

    Its tokenizer is GPT-2's, or that of an export of ours, or unknown: None.
    """
    try:
        with open(os.path.join(folder, "config.json"), encoding="utf-8") as file:
            config = json.load(file)
        args = {name: config[name] for name in ("vocab_size", "n_layer", "n_head", "n_embd")}
        args["block_size"] = config["n_positions"]
    except (OSError, ValueError, KeyError) as error:
        raise UserError(f"{folder}/config.json is not a GPT-2's: {error!r}.") from None
    activation = config.get("activation_function", "gelu_new")
    differing = [f"{k}={config[k]}" for k, v in FIXED.items() if config.get(k, v) != v]
    if config.get("n_inner") not in (None, 4 * args["n_embd"]):
        differing.append(f"n_inner={config['n_inner']}")
    if activation not in ACTIVATIONS:
        differing.append(f"activation_function={activation}")
    if differing or config.get("model_type", "gpt2") != "gpt2":
        kind = config.get("model_type")
        raise UserError(f"{folder} holds a {kind} that is not GPT-2: {', '.join(differing)}.")
    args |= {"bias": True, "activation": ACTIVATIONS[activation]}
    return {
        "model": to_ours(read_tensors(folder)),
        "model_args": args,
        "tokenizer": read_tokenizer(folder, args["vocab_size"]),
        "optimizers": [],
        "scaler": {},
        "step": 0,
        "best_val_loss": float("inf"),
        "config": {},
    }


def read_tensors(folder: str) -> dict[str, torch.Tensor]:
    try:
        from safetensors import SafetensorError, safe_open
    except ImportError:
        raise UserError(f"reading {folder} needs `pip install safetensors`.") from None
    tensors = {}
    paths = sorted(glob(os.path.join(escape(folder), "*.safetensors")))
    if not paths:
        raise UserError(f"{folder} has no .safetensors file with the weights.")
    for path in paths:
        try:
            with safe_open(path, framework="pt") as file:
                tensors |= {name: file.get_tensor(name) for name in file.keys()}
        except (SafetensorError, OSError) as error:
            raise UserError(f"{path} is damaged: {error}.") from None
    return tensors


def to_ours(theirs: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Their tensors under our names, matrices turned, rows of the vocabulary padded."""
    ours = {}
    for name, tensor in theirs.items():
        if name.endswith((".attn.bias", ".attn.masked_bias")):  # causal masks, in old files
            continue
        name = name if name.startswith(("transformer.", "lm_head.")) else f"transformer.{name}"
        tensor = tensor.t().contiguous() if name.endswith(TRANSPOSED) else tensor
        ours[name] = tensor.float()
    if (wte := ours.get("transformer.wte.weight")) is not None:
        wte = F.pad(wte, (0, 0, 0, -len(wte) % 64))
        ours |= {"transformer.wte.weight": wte, "lm_head.weight": wte}
    return ours


def to_theirs(ours: dict[str, torch.Tensor], args: dict) -> dict[str, torch.Tensor]:
    """The reverse. Biases that our model does without are zeros in theirs."""
    theirs = {}
    for name, tensor in ours.items():
        if name == "lm_head.weight":
            continue
        tensor = tensor.t() if name.endswith(TRANSPOSED) else tensor
        theirs[name] = tensor.contiguous()
        biased = name.endswith(TRANSPOSED) or ".ln_" in name
        if biased and not args["bias"]:
            size = tensor.size(-1)
            theirs[name.removesuffix("weight") + "bias"] = torch.zeros(size)
    theirs["transformer.wte.weight"] = ours["transformer.wte.weight"][: args["vocab_size"]].clone()
    return theirs


def write(loaded: dict, folder: str) -> None:
    """A checkpoint of ours as a folder for transformers' AutoModelForCausalLM and AutoTokenizer.

    Raises UserError for a model that is not GPT-2's architecture, naming the field.
    """
    try:
        from safetensors.torch import save_file
    except ImportError:
        raise UserError(f"writing {folder} needs `pip install safetensors`.") from None
    args = loaded["model_args"]
    for field in BEYOND:
        if args.get(field):
            raise UserError(f"{field}={args[field]}: GPT-2's format has no such thing.")
    tokenizer = loaded["tokenizer"] and from_dict(loaded["tokenizer"])
    end = tokenizer.special.get(END) if tokenizer else None
    files = {"config.json": config_json(args, end)}
    if tokenizer:
        files["tokenizer.json"] = tokenizer_json(tokenizer)
        files["tokenizer_config.json"] = {
            **{"tokenizer_class": "PreTrainedTokenizerFast", "clean_up_tokenization_spaces": False},
            **{"model_max_length": args["block_size"]},
            **({} if end is None else {"bos_token": END, "eos_token": END}),
        }
    os.makedirs(folder, exist_ok=True)
    tensors = to_theirs(loaded["model"], {"bias": True, **args})
    save_file(tensors, os.path.join(folder, "model.safetensors"), metadata={"format": "pt"})
    for name, content in files.items():
        with open(os.path.join(folder, name), "w", encoding="utf-8") as file:
            json.dump(content, file, ensure_ascii=False, indent=1)


def config_json(args: dict, end: int | None) -> dict:
    """Their configuration of a model of ours; end: the id of the end-of-text token."""
    theirs = {ours: name for name, ours in ACTIVATIONS.items()}
    return {
        **{"model_type": "gpt2", "architectures": ["GPT2LMHeadModel"], "dtype": "float32"},
        **{name: args[name] for name in ("vocab_size", "n_layer", "n_head", "n_embd")},
        **{"n_positions": args["block_size"], "bos_token_id": end, "eos_token_id": end},
        **{"activation_function": theirs[args.get("activation", "gelu_tanh")]},
        **{f"{part}_pdrop": args.get("dropout", 0.0) for part in ("attn", "embd", "resid")},
        **FIXED,
    }


def tokenizer_json(tokenizer) -> dict:
    """A tokenizer of ours in the format of Hugging Face's `tokenizers`."""
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True}
    if tokenizer.kind == "char":
        vocab = {piece: i for i, piece in enumerate(tokenizer.pieces)}
        model = {"type": "WordLevel", "vocab": vocab, "unk_token": "<unk>"}
        each = {"type": "Split", "pattern": {"Regex": "[\\s\\S]"}, "behavior": "Isolated"}
        splitting, joining = {**each, "invert": False}, {"type": "Fuse"}
    else:
        ranks, letters = tokenizer.ranks(), byte_letters()
        spelled = {piece: "".join(letters[b] for b in piece) for piece in ranks}
        model = {"type": "BPE", "dropout": None, "unk_token": None, "byte_fallback": False}
        model |= {"vocab": {spelled[piece]: rank for piece, rank in ranks.items()}}
        model["vocab"] |= tokenizer.special
        model["merges"] = [[spelled[a], spelled[b]] for a, b in merges(ranks)]
        joining = {**byte_level, "use_regex": True}
        splitting = {**byte_level, "use_regex": tokenizer.kind == "gpt2"}
    flags = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
    added = [
        {"id": i, "content": t, **flags, "special": True} for t, i in tokenizer.special.items()
    ]
    return {
        **{"version": "1.0", "truncation": None, "padding": None, "added_tokens": added},
        **{"normalizer": None, "pre_tokenizer": splitting, "post_processor": None},
        **{"decoder": joining, "model": model},
    }


def byte_letters() -> list[str]:
    """A printable character for each byte, as GPT-2's encoder.json spells its tokens."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [b for b in range(256) if b not in printable]
    return [chr(b) if b in printable else chr(256 + others.index(b)) for b in range(256)]


def merges(ranks: dict[bytes, int]) -> list[tuple[bytes, bytes]]:
    """The two pieces that make each token, in the order of their rank: those to which it comes
    down when only the merges that rank before it are applied."""
    found = []
    for token, rank in sorted(ranks.items(), key=lambda item: item[1]):
        pieces = [bytes([b]) for b in token]
        while len(pieces) > 2:
            pairs = [ranks.get(a + b, rank) for a, b in itertools.pairwise(pieces)]
            i = min(range(len(pairs)), key=pairs.__getitem__)
            pieces[i : i + 2] = [pieces[i] + pieces[i + 1]]
        if len(pieces) == 2:
            found.append((pieces[0], pieces[1]))
    return found


def read_tokenizer(folder: str, vocab_size: int) -> dict | None:
    path = os.path.join(folder, "tokenizer.json")
    if vocab_size == 50257:
        return {"kind": "gpt2"}
    if not os.path.exists(path):
        return None
    with open(path, encoding="utf-8") as file:
        saved = json.load(file)
    model, added = saved["model"], [token["content"] for token in saved["added_tokens"]]
    if model["type"] == "BPE" and len(model["vocab"]) == vocab_size > 50257:
        return {"kind": "gpt2", "special": added[1:]}
    if model["type"] == "BPE" and len(model["vocab"]) == vocab_size == 256:
        return {"kind": "byte"}
    if model["type"] != "WordLevel":
        return None
    pieces = sorted(model["vocab"], key=model["vocab"].get)
    chars = [piece for piece in pieces if piece not in added]
    return {"kind": "char", "chars": chars, "special": [p for p in pieces if p in added]}
