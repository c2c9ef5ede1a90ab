"""LoRA adapters in the format of Hugging Face's peft: https://github.com/huggingface/peft

FOLDER/adapter_config.json          {"base_model_name_or_path": "gpt2", "r": 8, "lora_alpha": 16}
FOLDER/adapter_model.safetensors    {"base_model.model.transformer.h.0.attn.c_attn.lora_A.weight":
                                     (8, 768), ...}, of the same shapes as ours
"""

import os
import re

import torch

from core import UserError
from core.extras.hf_folder import read_json, read_tensors
from core.extras.lora import MODULES

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
NAME = re.compile(
    rf"base_model\.model\.(transformer\.h\..+\.({'|'.join(MODULES)})\.lora_[AB])\.weight"
)
# their settings of variants of LoRA, which change what A and B mean, begin or end so
VARIANTS = ("use_", "alora_", "layer_replication"), ("_config", "rank_pattern", "alpha_pattern")
INITS = (True, False, "gaussian")  # others change the base's weights


def read(folder: str) -> dict:
    """The folder as a checkpoint whose base is not loaded, see core/extras/lora.py."""
    config, ours = read_json(os.path.join(folder, CONFIG)), {}
    known = {"peft_type": ("LORA",), "init_lora_weights": INITS}
    for name, value in config.items():
        is_variant = name.startswith(VARIANTS[0]) or name.endswith(VARIANTS[1])
        if (is_variant and value) or value not in known.get(name, (value,)):
            raise UserError(f"{folder}/{CONFIG}: {name}={value} is not implemented.")
    base, rank, alpha = map(config.get, ("base_model_name_or_path", "r", "lora_alpha"))
    if type(base) is not str or type(rank) is not int or type(alpha) not in (int, float):
        raise UserError(f"{folder}/{CONFIG}: base_model_name_or_path, r or lora_alpha is missing.")
    for name, tensor in read_tensors(folder).items():
        match = NAME.fullmatch(name)
        if not match:
            raise UserError(f"{folder} has {name}: only A and B of {', '.join(MODULES)} are known.")
        ours[match[1]] = tensor.float()
    about = {"base": [base], "weights": "", "rank": rank, "alpha": float(alpha), "trained": []}
    return {"model": ours, "lora": about}


def to_peft(loaded: dict, base: dict, base_name: str) -> tuple[dict, dict[str, torch.Tensor]]:
    """Configuration and tensors of a checkpoint that is not merged, beside an exported base.

    UserError if it has no adapters, or others trained, or the base has other weights.
    """
    about, ours = loaded["lora"], loaded["model"]
    if not about or about["trained"]:
        more = f"trained {', '.join(about['trained'])} too" if about else "has no adapters"
        raise UserError(f"{loaded['path']} {more}: export it whole, without --peft_base.")
    adapters = {name: tensor for name, tensor in ours.items() if ".lora_" in name}
    matrices = {f"{name[:-7]}.weight" for name in adapters}
    same = all(k in base["model"] and torch.equal(ours[k], base["model"][k]) for k in matrices)
    if not os.path.isfile(os.path.join(base["path"], "config.json")) or not same:
        raise UserError(
            f"--peft_base={base_name} is not what {loaded['path']} adapts, in Hugging Face's "
            f"format: export {about['base'][-1]}, and name that folder."
        )
    modules = sorted({name.split(".")[-2] for name in adapters})
    config = {"peft_type": "LORA", "task_type": "CAUSAL_LM", "base_model_name_or_path": base_name}
    config |= {"r": about["rank"], "lora_alpha": about["alpha"], "target_modules": modules}
    config |= {"fan_in_fan_out": True}  # GPT-2's matrices are transposed
    tensors = {f"base_model.model.{k}.weight": v.contiguous() for k, v in adapters.items()}
    return config, tensors
