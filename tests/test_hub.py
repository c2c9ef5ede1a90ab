"""Models and tokenizers of the hub: each family's own format gives transformers' logits and text."""

import json

import pytest
import torch
from test_gpt2 import GREEDY, load, save_theirs

from core import UserError, checkpoint, hub as ours
from core.tokenizer import from_dict

transformers = pytest.importorskip("transformers")
tokenizers = pytest.importorskip("tokenizers")
pytest.importorskip("safetensors")

CHINESE = "这是很久之前的事情了，我曾经把这个当做一种思想的传承。Hello world"
