"""GPT-2 in the format of Hugging Face's transformers, as read; tools/export.py writes it.

FOLDER/config.json           {"model_type": "gpt2", "n_layer": 12, "n_head": 12, ...}
FOLDER/model.safetensors     {"transformer.h.0.attn.c_attn.weight": (768, 2304), ...}, one file or
                             several, or pytorch_model*.bin
FOLDER/tokenizer.json        or other files, see core/hub.py
FOLDER/README.md             how an export of ours was trained
"""

import os
from glob import escape, glob

import torch

from core import UserError
from core.files import load_torch
from core.hub import read_json, read_tokenizer
from core.kernels import pad_vocab
from core.tokenizer import from_dict

SIZES = {  # n_layer, n_head, n_embd by name: GPT-2's, which OpenAI released, and minGPT's
    "gpt2": (12, 12, 768),
    "gpt2-medium": (24, 16, 1024),
    "gpt2-large": (36, 20, 1280),
    "gpt2-xl": (48, 25, 1600),
    "gpt-mini": (6, 6, 192),
    "gpt-micro": (4, 4, 128),
    "gpt-nano": (3, 3, 48),
}
TRANSPOSED = ("c_attn.weight", "c_proj.weight", "c_fc.weight")  # (in, out), as in TensorFlow
# theirs -> ours; an export takes the first of several names
ACTIVATIONS = {"gelu_new": "gelu_tanh", "gelu": "gelu", "relu2": "relu2"}
ACTIVATIONS |= {"gelu_pytorch_tanh": "gelu_tanh", "gelu_fast": "gelu_tanh"}
# their settings that our model has no field for, with the only value that it implements
FIXED = {"layer_norm_epsilon": 1e-5, "scale_attn_weights": True, "add_cross_attention": False}
FIXED |= {"scale_attn_by_inverse_layer_idx": False}


def set_size(settings: dict) -> None:
    """Replace n_layer, n_head and n_embd by those that the setting model_type names, if any."""
    name = settings["model_type"]
    if name and name not in SIZES:
        raise UserError(f"model_type={name} is not accepted: one of {', '.join(SIZES)}.")
    if name:
        settings["n_layer"], settings["n_head"], settings["n_embd"] = SIZES[name]


def is_hf_folder(path: str) -> bool:
    return os.path.isfile(os.path.join(path, "config.json"))


def read(folder: str) -> dict:
    """The folder as a checkpoint of ours, see core/checkpoint.py. An unknown tokenizer is None."""
    config = read_json(os.path.join(folder, "config.json"))
    if config.get("model_type") != "gpt2" or "n_positions" not in config:
        raise UserError(f"{folder}/config.json is not a GPT-2's: {config.get('model_type')}.")
    args = {name: config[name] for name in ("vocab_size", "n_layer", "n_head", "n_embd")}
    activation, n_inner = config.get("activation_function", "gelu_new"), config.get("n_inner")
    different = {k: config[k] for k, v in FIXED.items() if config.get(k, v) != v}
    if activation not in ACTIVATIONS:
        different["activation_function"] = activation
    if n_inner not in (None, 4 * args["n_embd"]):
        different["n_inner"] = n_inner
    for name, value in different.items():
        raise UserError(f"{folder}/config.json: {name}={value} is not implemented.")
    args |= {"block_size": config["n_positions"], "activation": ACTIVATIONS[activation]}
    args["untied_head"] = not config.get("tie_word_embeddings", True)
    tokenizer, rows = read_tokenizer(folder), args["vocab_size"]
    if tokenizer is None and rows in (50257, 50304):  # of GPT-2, the latter padded
        tokenizer = {"kind": "gpt2"}
    if tokenizer is not None:
        coder = from_dict(tokenizer)
        tokenizer, args["vocab_size"] = coder.to_dict(), coder.vocab_size  # more rows are padding
    if args["vocab_size"] > rows:
        raise UserError(
            f"{folder}: its tokenizer has {args['vocab_size']} tokens, its model only {rows}."
        )
    weights = from_hf(read_tensors(folder), args["vocab_size"], args["untied_head"])
    return {"model": weights, "model_args": args, "tokenizer": tokenizer}


def read_tensors(folder: str) -> dict[str, torch.Tensor]:
    from safetensors import SafetensorError, safe_open

    tensors = {}
    paths = sorted(glob(os.path.join(escape(folder), "*.safetensors")))
    pickles = [] if paths else sorted(glob(os.path.join(escape(folder), "pytorch_model*.bin")))
    for path in paths:
        try:
            with safe_open(path, framework="pt") as file:
                tensors |= {name: file.get_tensor(name) for name in file.keys()}
        except SafetensorError as error:
            raise UserError(f"{path} is damaged: {error}.") from None
    for path in pickles:
        loaded = load_torch(path)
        if not isinstance(loaded, dict) or not all(map(torch.is_tensor, loaded.values())):
            raise UserError(f"{path} has no weights.")
        tensors |= loaded
    if not tensors:
        raise UserError(f"{folder} has no weights: a .safetensors file or pytorch_model.bin.")
    return tensors


def from_hf(
    theirs: dict[str, torch.Tensor], vocab_size: int, untied_head: bool = False
) -> dict[str, torch.Tensor]:
    """Their tensors by our names: matrices transposed, the vocabulary of its padded size."""
    ours = {}
    for name, tensor in theirs.items():
        if name.endswith((".attn.bias", ".attn.masked_bias")):  # causal masks, in old files
            continue
        name = name if name.startswith(("transformer.", "lm_head.")) else f"transformer.{name}"
        ours[name] = (tensor.t().contiguous() if name.endswith(TRANSPOSED) else tensor).float()
    for name in {"transformer.wte.weight", "lm_head.weight"} & set(ours):
        ours[name] = pad_vocab(ours[name][:vocab_size])
    if "transformer.wte.weight" in ours and not untied_head:
        ours["lm_head.weight"] = ours["transformer.wte.weight"]
    return ours
