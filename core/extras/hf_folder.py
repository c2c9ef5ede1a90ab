"""A GPT-2 in the format of Hugging Face's transformers, as read; tools/export.py writes it.

FOLDER/config.json           {"model_type": "gpt2", "n_layer": 12, "n_head": 12, ...}
FOLDER/model.safetensors     {"transformer.h.0.attn.c_attn.weight": (768, 2304), ...}, one file or
                             several, or pytorch_model*.bin
FOLDER/README.md             how an export of ours was trained

and its tokenizer, the first of these that is there:

FOLDER/folio_tokenizer.json            one of ours, of an export
FOLDER/tokenizer.json                  for transformers' AutoTokenizer
FOLDER/vocab.json, FOLDER/merges.txt   a byte-level BPE, as GPT-2's
FOLDER/vocab.txt                       BERT's WordPiece, with tokenizer_config.json
FOLDER/added_tokens.json               ids of more tokens of the latter two
"""

import hashlib
import json
import os
from glob import escape, glob

import torch

from core import UserError
from core.files import load_torch
from core.kernels import pad_vocab
from core.tokenizer import from_dict

TRANSPOSED = ("c_attn.weight", "c_proj.weight", "c_fc.weight")  # (in, out), as in TensorFlow
# theirs -> ours; an export takes the first of several names
ACTIVATIONS = {"gelu_new": "gelu_tanh", "gelu": "gelu", "relu2": "relu2"}
ACTIVATIONS |= {"gelu_pytorch_tanh": "gelu_tanh", "gelu_fast": "gelu_tanh"}
# their settings that our model has no field for, with the only value that it implements
FIXED = {"layer_norm_epsilon": 1e-5, "scale_attn_weights": True, "add_cross_attention": False}
FIXED |= {"scale_attn_by_inverse_layer_idx": False}
TOKENIZER = ("tokenizer.json", "tokenizer_config.json", "added_tokens.json")
TOKENIZER += ("vocab.json", "merges.txt", "vocab.txt")
# sha256 of GPT-2's 50257 tokens, spelled as in its encoder.json, joined by line breaks
GPT2_TOKENS = "e35a33a0b2250c932ffdafc4c3a3552aef0cc7af7a11e9ebfddf1d2a6517371f"


def read(folder: str) -> dict:
    """The folder as a checkpoint of ours, see core/checkpoint.py. An unknown tokenizer is None."""
    if os.path.isfile(os.path.join(folder, "adapter_config.json")):
        from core.extras import peft

        return peft.read(folder)
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


def read_tokenizer(folder: str) -> dict | None:
    """The tokenizer that the folder's files say, as a dict for core.tokenizer.from_dict."""
    names = ("folio_tokenizer.json", *TOKENIZER)
    there = {name: os.path.join(folder, name) for name in names}
    there = {name: path for name, path in there.items() if os.path.exists(path)}
    if "folio_tokenizer.json" in there:
        return read_json(there["folio_tokenizer.json"])
    if "tokenizer.json" in there:
        return read_tokenizer_json(there["tokenizer.json"])
    ids = read_json(there["added_tokens.json"]) if "added_tokens.json" in there else {}
    added = sorted(ids, key=lambda name: str(ids[name]).zfill(9))
    if {"vocab.json", "merges.txt"} <= there.keys():
        vocab, lines = read_json(there["vocab.json"]), read_text(there["merges.txt"]).splitlines()
        merges = [line for line in lines if not line.startswith("#version")]
        if is_gpt2_bpe({"type": "BPE", "vocab": vocab, "merges": merges}):
            return gpt2_with(added)
        from core.extras.hf_tokenizer import from_bpe_files

        return from_bpe_files(there["vocab.json"], there["merges.txt"], added).to_dict()
    if "vocab.txt" in there:
        from core.extras.hf_tokenizer import from_wordpiece_file

        about = there.get("tokenizer_config.json")
        config = read_json(about) if about else {}
        return from_wordpiece_file(there["vocab.txt"], config, added).to_dict()
    return None


def read_tokenizer_json(path: str) -> dict:
    saved = read_json(path)
    if not is_gpt2_bpe(saved.get("model")):
        return {"kind": "hf", "json": read_text(path)}
    return gpt2_with([t["content"] for t in saved.get("added_tokens", []) if t["id"] > 50256])


def gpt2_with(special: list[str]) -> dict:
    return {"kind": "gpt2", "special": special} if special else {"kind": "gpt2"}


def is_gpt2_bpe(model) -> bool:
    """Whether the model of a tokenizer.json has GPT-2's tokens, and merges that make just them."""
    if not isinstance(model, dict):
        return False
    vocab, merges = model.get("vocab"), model.get("merges")
    if model.get("type") != "BPE" or not isinstance(vocab, dict) or not merges:
        return False
    tokens = sorted(vocab, key=vocab.get)[:50257]
    merged = [m.replace(" ", "") if isinstance(m, str) else "".join(m) for m in merges]
    digest = hashlib.sha256("\n".join(tokens).encode()).hexdigest()
    return digest == GPT2_TOKENS and merged == tokens[256:-1]


def read_text(path: str) -> str:
    try:
        with open(path, encoding="utf-8") as file:
            return file.read()
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is damaged: {error}.") from None


def read_json(path: str) -> dict:
    try:
        content = json.loads(read_text(path))
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path} is damaged: {error}.") from None
    if not isinstance(content, dict):
        raise UserError(f"{path} is damaged: it holds no JSON object.")
    return content
