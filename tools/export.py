"""Write a checkpoint of GPT-2's architecture as a folder for Hugging Face's transformers.

    python -m tools.export --out_dir=out/gpt2 --to=my-gpt2

Then AutoModelForCausalLM.from_pretrained("my-gpt2") and AutoTokenizer load it, and so does
--init_from=my-gpt2 here. CTranslate2, lm-eval and, for GPT-2's tokenizer, llama.cpp read it too.
core/extras/hf_folder.py describes the folder's files; README.md says how the model was trained. A
run with --lora_rank is written whole, its adapters added to the weights of its base, or

    python -m tools.export --out_dir=out/tuned --to=my-adapter --peft_base=my-gpt2

writes the adapters alone, for peft's PeftModel.from_pretrained, to be put on my-gpt2.
"""

import sys

if not __package__:  # started by its path
    command = "python -m tools.export"
    print(f"start it as a module from the repository's root: {command}", file=sys.stderr)
    sys.exit(2)

import json
import math
import os
import shutil
from dataclasses import fields

from configurator import configure

import torch

from core import UserError, checkpoint
from core.extras import peft
from core.extras.hf_folder import ACTIVATIONS, FIXED, TRANSPOSED
from core.tokenizer import UNK, Tokenizer
from model import GPTConfig

# ---- settings ------------------------------------------------------------------------------------
out_dir = ""  # a run's folder or a .pt file; by default the newest run under out/
init_from = "resume"  # resume: out_dir; else gpt2, ORG/NAME on the hub, or a GPT-2 folder of it
to = ""  # the folder to write, which must not exist yet
peft_base = ""  # write LoRA's adapters alone, as PEFT's folder: their base, a GPT-2 folder or gpt2
globals().update(configure(__file__))

import tokenizers  # only now, so that a missing package is one sentence
from safetensors import SafetensorError
from safetensors.torch import save_file
from tiktoken.load import read_file_cached
from tokenizers import decoders, models, pre_tokenizers

# the fields of GPTConfig that GPT-2's format has, besides known values of `activation`, ...
EXPRESSED = ("vocab_size", "block_size", "n_layer", "n_head", "n_embd", "bias", "untied_head")
TRAINING = ("dropout", "zero_init")  # ... and those that a trained model does without
MODULES = ("wte", "wpe", "c_attn", "c_proj", "c_fc", "ln_1", "ln_2", "ln_f")
ENCODINGS = "https://openaipublic.blob.core.windows.net/gpt-2/encodings/main"  # as in tiktoken


# ---- the model -----------------------------------------------------------------------------------
def complete(model_args: dict) -> dict:
    """All fields of GPTConfig; UserError for those that GPT-2's format cannot express."""
    defaults = {field.name: field.default for field in fields(GPTConfig)}
    args = defaults | model_args
    others = []
    for name, value in args.items():
        known = name == "activation" and value in ACTIVATIONS.values()
        if name not in (*EXPRESSED, *TRAINING) and value != defaults.get(name) and not known:
            others.append(f"{name}={value}")
    if others:
        raise UserError(
            f"GPT-2's format cannot express {', '.join(others)}: export a model that was trained "
            "without, such as those of config/gpt2.py and config/finetune_shakespeare.py."
        )
    return args


def to_hf(ours: dict[str, torch.Tensor], args: dict) -> dict[str, torch.Tensor]:
    """Our tensors by their names: the reverse of core.extras.hf_folder.from_hf.

    Biases that the model does without become zeros.
    """
    theirs = {}
    for name, tensor in ours.items():
        if name == "lm_head.weight":
            if args["untied_head"]:
                theirs[name] = tensor[: args["vocab_size"]].clone()
            continue
        module = name.rpartition(".")[0].rpartition(".")[2]
        if module not in MODULES:
            raise UserError(f"{name}: GPT-2's format has no such parameter.")
        theirs[name] = (tensor.t() if name.endswith(TRANSPOSED) else tensor).contiguous()
        if not args["bias"] and module not in ("wte", "wpe"):
            theirs[name.removesuffix("weight") + "bias"] = torch.zeros(theirs[name].size(-1))
    theirs["transformer.wte.weight"] = ours["transformer.wte.weight"][: args["vocab_size"]].clone()
    return theirs


def config_json(args: dict, tokenizer: Tokenizer | None) -> dict:
    """Their configuration."""
    config = {name: args[name] for name in ("vocab_size", "n_layer", "n_head", "n_embd")}
    config |= {"model_type": "gpt2", "architectures": ["GPT2LMHeadModel"], "dtype": "float32"}
    config |= {"n_positions": args["block_size"], "n_ctx": args["block_size"]}  # for llama.cpp
    config |= {"bos_token_id": boundary(tokenizer) if tokenizer else None}
    config |= {"eos_token_id": tokenizer.end_token if tokenizer else None}
    config |= {"tie_word_embeddings": not args["untied_head"]}
    config |= dict.fromkeys(("attn_pdrop", "embd_pdrop", "resid_pdrop"), 0.0)
    names = {ours: theirs for theirs, ours in reversed(ACTIVATIONS.items())}  # the first one counts
    return config | {"activation_function": names[args["activation"]]} | FIXED


# ---- the tokenizer -------------------------------------------------------------------------------
def boundary(tokenizer: Tokenizer) -> int:
    """The token that stands between texts, or else the one that an empty prompt starts with."""
    return tokenizer.start_token if tokenizer.end_token is None else tokenizer.end_token


def to_hf_tokenizer(tokenizer: Tokenizer) -> tokenizers.Tokenizer:
    """One of Hugging Face's `tokenizers` that gives the same ids."""
    if tokenizer.kind == "hf":
        return tokenizer.backend
    special = dict(tokenizer.special)
    if tokenizer.kind == "char":
        vocab = {piece: i for i, piece in enumerate(tokenizer.pieces)}
        theirs = tokenizers.Tokenizer(models.WordLevel(vocab, unk_token=UNK))
        every_character = tokenizers.Regex(r"[\s\S]")
        theirs.pre_tokenizer = pre_tokenizers.Split(every_character, "isolated")
        theirs.decoder = decoders.Fuse()
    else:
        vocab, merges = byte_vocab(), []
        if tokenizer.kind == "gpt2":
            tokenizer.encode("")  # tiktoken now has its two files
            vocab = json.loads(read_file_cached(f"{ENCODINGS}/encoder.json"))
            lines = read_file_cached(f"{ENCODINGS}/vocab.bpe").decode().split("\n")
            merges = [tuple(line.split()) for line in lines[1:-1]]  # the first is its version
        else:  # the byte between texts goes by its own name, since any letter may stand in a text
            special["\0"] = tokenizer.end_token
            vocab["\0"] = vocab.pop(next(iter(vocab)))
        theirs = tokenizers.Tokenizer(models.BPE(vocab, merges))
        words = tokenizer.kind == "gpt2"
        theirs.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=words)
        theirs.decoder = decoders.ByteLevel()
    theirs.add_special_tokens(list(special))
    for name, i in special.items():
        assert theirs.token_to_id(name) == i, f"{name} has another id"
    return theirs


def byte_vocab() -> dict[str, int]:
    """The id of each byte by its letter in GPT-2's spelling: itself, or one beyond Latin-1."""
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    others = (letter for letter in letters if ord(letter) > 255)
    return {chr(i) if chr(i) in letters else next(others): i for i in range(256)}


def tokenizer_config_json(tokenizer: Tokenizer, block_size: int) -> dict:
    """All three tokens are always there: CTranslate2 and lm-eval do not go without."""
    names = {i: name for name, i in tokenizer.special.items()}
    edge = names.get(boundary(tokenizer)) or tokenizer.decode([boundary(tokenizer)])
    unknown = names.get(tokenizer.unknown, edge)
    tokens = {"bos_token": edge, "eos_token": edge, "unk_token": unknown}
    about = {"tokenizer_class": "PreTrainedTokenizerFast", "model_max_length": block_size}
    return about | {"clean_up_tokenization_spaces": False} | tokens


# ---- the folder ----------------------------------------------------------------------------------
CARD = """\
---
library_name: transformers
pipeline_tag: text-generation
---
# {name}

A language model of GPT-2's architecture with {parameters:,} parameters, trained by folioGPT.

| | |
|---|---|
| trained on | {dataset} |
| steps | {step} |
| validation loss, nats per token | {loss} |
| tokenizer | {tokenizer} |
| longest sequence, tokens | {block_size} |

    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = AutoModelForCausalLM.from_pretrained("{to}")
    tokenizer = AutoTokenizer.from_pretrained("{to}")
    prompt = tokenizer(tokenizer.bos_token, return_tensors="pt")
    print(tokenizer.decode(model.generate(**prompt, max_length={length}, do_sample=True)[0]))
{warning}
Settings of the run:

```json
{settings}
```
"""
NO_TOKENIZER = "\nThe folder has no tokenizer.\n"
NO_END = """
The vocabulary has no token between texts: bos_token, eos_token and unk_token are its character
{edge!r}. Pipelines and decode(..., skip_special_tokens=True) leave it out, CTranslate2 ends there.
"""


def model_card(loaded: dict, args: dict, tensors: dict, tokenizer: Tokenizer | None) -> str:
    """README.md, as the hub shows it. What nobody has recorded is unknown."""
    kind, warning, loss = "unknown", NO_TOKENIZER, loaded["best_val_loss"]
    if tokenizer:
        kind = f"{tokenizer.kind}, {tokenizer.vocab_size:,} tokens"
        edge = tokenizer.decode([boundary(tokenizer)])
        warning = NO_END.format(edge=edge) if tokenizer.end_token is None else ""
    return CARD.format(
        name=os.path.basename(os.path.normpath(to)),
        parameters=sum(tensor.numel() for tensor in tensors.values()),
        dataset=loaded["config"].get("dataset", "unknown"),
        step=loaded["step"] or "unknown",
        loss=f"{loss:.4f}" if math.isfinite(loss) else "unknown",
        tokenizer=kind,
        block_size=args["block_size"],
        length=min(100, args["block_size"]),
        to=to,
        warning=warning,
        settings=to_json(loaded["config"]),
    )


def to_json(content: dict) -> str:
    return json.dumps(content, ensure_ascii=False, indent=1)


def text_files(loaded: dict, args: dict, tensors: dict) -> dict[str, str]:
    """The content of the folder's files by name, but for the weights."""
    tokenizer = checkpoint.load_tokenizer(loaded) if loaded["tokenizer"] else None
    files = {"config.json": to_json(config_json(args, tokenizer))}
    files["README.md"] = model_card(loaded, args, tensors, tokenizer)
    if tokenizer:
        about = tokenizer_config_json(tokenizer, args["block_size"])
        files["tokenizer_config.json"] = to_json(about)
        files["tokenizer.json"] = to_hf_tokenizer(tokenizer).to_str(pretty=True)
        if tokenizer.kind != "hf":  # whose tokenizer.json is all that there is
            files["folio_tokenizer.json"] = to_json(tokenizer.to_dict())
    return files


if not to:
    raise UserError("--to= names the folder to write.")
if os.path.exists(to):
    raise UserError(f"--to={to} exists already: name a new folder, or remove it first.")
loaded = checkpoint.load(out_dir if init_from == "resume" else init_from, merge=not peft_base)
if peft_base:
    config, tensors = peft.to_peft(loaded, checkpoint.load(peft_base), peft_base)
    files, weights_file = {peft.CONFIG: to_json(config)}, peft.WEIGHTS
else:
    args, weights_file = complete(loaded["model_args"]), "model.safetensors"
    tensors = to_hf(loaded["model"], args)
    files = text_files(loaded, args, tensors)
unfinished = f"{os.path.normpath(to)}.{os.getpid()}.tmp"
os.makedirs(unfinished)
try:
    save_file(tensors, os.path.join(unfinished, weights_file), metadata={"format": "pt"})
    for name, text in files.items():
        with open(os.path.join(unfinished, name), "w", encoding="utf-8") as file:
            file.write(text)
    os.rename(unfinished, to)
except (OSError, SafetensorError) as error:
    raise UserError(f"--to={to} cannot be written: {error}.") from None
finally:
    shutil.rmtree(unfinished, ignore_errors=True)
if loaded["tokenizer"] is None and not peft_base:
    print(f"{loaded['path']} has no tokenizer: {to} has the weights only")
reader = "peft's PeftModel" if peft_base else "transformers' AutoModelForCausalLM"
print(f"{loaded['path']} is now {to}, for {reader}.from_pretrained")
