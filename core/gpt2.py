"""GPT-2 in the format of Hugging Face's transformers, downloaded and read; tools/export.py writes.

FOLDER/config.json           {"model_type": "gpt2", "n_layer": 12, "n_head": 12, ...}
FOLDER/model.safetensors     {"transformer.h.0.attn.c_attn.weight": (768, 2304), ...}
FOLDER/tokenizer.json        for transformers' AutoTokenizer
FOLDER/folio_tokenizer.json  an exported tokenizer of ours, see core/tokenizer.py
FOLDER/README.md             how an export of ours was trained
"""

import hashlib
import json
import os
from glob import escape, glob

import torch

from core import UserError
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
RELEASED = ("gpt2", "gpt2-medium", "gpt2-large", "gpt2-xl")
TRANSPOSED = ("c_attn.weight", "c_proj.weight", "c_fc.weight")  # (in, out), as in TensorFlow
# theirs -> ours; an export takes the first of several names
ACTIVATIONS = {"gelu_new": "gelu_tanh", "gelu": "gelu", "relu2": "relu2"}
ACTIVATIONS |= {"gelu_pytorch_tanh": "gelu_tanh", "gelu_fast": "gelu_tanh"}
# their settings that our model has no field for, with the only value that it implements
FIXED = {"layer_norm_epsilon": 1e-5, "scale_attn_weights": True, "add_cross_attention": False}
FIXED |= {"scale_attn_by_inverse_layer_idx": False}
# sha256 of GPT-2's 50257 tokens, spelled as in its encoder.json, joined by line breaks
GPT2_TOKENS = "e35a33a0b2250c932ffdafc4c3a3552aef0cc7af7a11e9ebfddf1d2a6517371f"


def set_size(settings: dict) -> None:
    """Replace n_layer, n_head and n_embd by those that the setting model_type names, if any."""
    name = settings["model_type"]
    if name and name not in SIZES:
        raise UserError(f"model_type={name} is not accepted: one of {', '.join(SIZES)}.")
    if name:
        settings["n_layer"], settings["n_head"], settings["n_embd"] = SIZES[name]


def download_pretrained(name: str) -> str:
    """The folder, in the hub's own cache, of the weights that OpenAI released under that name.

    What is there is not asked for: it does not change, and a network may be slow to fail.
    """
    import safetensors  # noqa: F401 (so that a missing package is known before the download)
    from huggingface_hub import hf_hub_download, try_to_load_from_cache

    repository = f"openai-community/{name}"
    try:
        for file in ("config.json", "model.safetensors"):
            path = try_to_load_from_cache(repository, file) or hf_hub_download(repository, file)
    except Exception as error:  # it lets through whatever its HTTP client raises
        raise UserError(
            f"{name} cannot be downloaded: {str(error).splitlines()[0]} Without a network, copy "
            "its config.json and model.safetensors into a folder and name that folder instead."
        ) from None
    return os.path.dirname(path)


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
    tokenizer, rows = read_tokenizer(folder, args["vocab_size"]), args["vocab_size"]
    if tokenizer is not None:
        args["vocab_size"] = from_dict(tokenizer).vocab_size  # more rows are padding
    if args["vocab_size"] > rows:
        raise UserError(
            f"{folder}: its tokenizer has {args['vocab_size']} tokens, its model only {rows}."
        )
    weights = from_hf(read_tensors(folder), args["vocab_size"], args["untied_head"])
    return {"model": weights, "model_args": args, "tokenizer": tokenizer}


def read_json(path: str) -> dict:
    with open(path, encoding="utf-8") as file:
        try:
            content = json.load(file)
        except (ValueError, RecursionError) as error:
            raise UserError(f"{path} is damaged: {error}.") from None
    if not isinstance(content, dict):
        raise UserError(f"{path} is damaged: it holds no JSON object.")
    return content


def read_tensors(folder: str) -> dict[str, torch.Tensor]:
    from safetensors import SafetensorError, safe_open

    paths = sorted(glob(os.path.join(escape(folder), "*.safetensors")))
    if not paths:
        raise UserError(f"{folder} has no .safetensors file with the weights.")
    tensors = {}
    for path in paths:
        try:
            with safe_open(path, framework="pt") as file:
                tensors |= {name: file.get_tensor(name) for name in file.keys()}
        except SafetensorError as error:
            raise UserError(f"{path} is damaged: {error}.") from None
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


def read_tokenizer(folder: str, rows: int) -> dict | None:
    """Our own, of an export; GPT-2's, if its files say so or there are none; else None.

    rows: of the model's vocabulary.
    """
    names = ("folio_tokenizer.json", "tokenizer.json", "vocab.json", "merges.txt")
    own, whole, vocab, merges = (os.path.join(folder, name) for name in names)
    if os.path.exists(own):
        return read_json(own)
    if os.path.exists(whole):
        saved = read_json(whole)
        model, added = saved.get("model", {}), saved.get("added_tokens", [])
    elif os.path.exists(vocab) and os.path.exists(merges):
        with open(merges, encoding="utf-8") as file:
            lines = [line for line in file.read().splitlines() if not line.startswith("#version")]
        model, added = {"type": "BPE", "vocab": read_json(vocab), "merges": lines}, []
    else:
        return {"kind": "gpt2"} if rows in (50257, 50304) else None  # 50304: padded
    if not is_gpt2_bpe(model):
        return None
    special = [token["content"] for token in added if token["id"] > 50256]
    return {"kind": "gpt2", "special": special} if special else {"kind": "gpt2"}


def is_gpt2_bpe(model: dict) -> bool:
    """Whether the model of a tokenizer.json has GPT-2's tokens, and merges that make just them."""
    vocab, merges = model.get("vocab"), model.get("merges")
    if model.get("type") != "BPE" or not isinstance(vocab, dict) or not merges:
        return False
    tokens = sorted(vocab, key=vocab.get)[:50257]
    merged = [m.replace(" ", "") if isinstance(m, str) else "".join(m) for m in merges]
    digest = hashlib.sha256("\n".join(tokens).encode()).hexdigest()
    return digest == GPT2_TOKENS and merged == tokens[256:-1]
