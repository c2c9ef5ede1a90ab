"""GPT-2's names: the sizes of models, and which names are those of weights on the hub.

hf_folder.py reads its weights in Hugging Face's format, hub.py downloads them.
"""

import os
import re

from core import UserError

SIZES = {  # n_layer, n_head, n_embd by name: GPT-2's, which OpenAI released, and minGPT's
    "gpt2": (12, 12, 768),
    "gpt2-medium": (24, 16, 1024),
    "gpt2-large": (36, 20, 1280),
    "gpt2-xl": (48, 25, 1600),
    "gpt-mini": (6, 6, 192),
    "gpt-micro": (4, 4, 128),
    "gpt-nano": (3, 3, 48),
}
RELEASED = ("gpt2", "gpt2-medium", "gpt2-large", "gpt2-xl")  # by OpenAI
REPOSITORIES = {name: f"openai-community/{name}" for name in RELEASED}
REPOSITORIES |= {"distilgpt2": "distilbert/distilgpt2"}


def set_size(settings: dict) -> None:
    """Replace n_layer, n_head and n_embd by those that the setting model_type names."""
    name = settings["model_type"]
    if name not in SIZES:
        raise UserError(f"model_type={name} is not accepted: one of {', '.join(SIZES)}.")
    settings["n_layer"], settings["n_head"], settings["n_embd"] = SIZES[name]


def is_hub_id(source: str) -> bool:
    """Whether it is GPT-2's name or ORG/NAME, and not a path: no such file or folder is there."""
    if os.path.exists(source):
        return False
    owner = re.fullmatch(r"([A-Za-z0-9][\w.-]*)/[\w.-]+", source)
    is_path = source.endswith(".pt") or (owner and (owner[1] == "out" or os.path.isdir(owner[1])))
    return source in REPOSITORIES or bool(owner and not is_path)
