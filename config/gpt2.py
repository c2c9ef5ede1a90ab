# python -m projects.webtext.prepare
# torchrun --standalone --nproc_per_node=8 train.py config/gpt2.py
# GPT-2 124M on OpenWebText, as nanoGPT reproduces it: about 4 days on 8 A100 40GB to a validation
# loss of about 2.85 (nanoGPT's README; not measured here).
import torch

dataset = "openwebtext"
out_dir = "out/gpt2"

bias = False  # as nanoGPT's, and faster

# 480 sequences * 1024 tokens = 491,520 tokens per step, on any number of GPUs that divides 480
block_size = 1024
_gpu = torch.cuda.is_available() and torch.cuda.get_device_properties(0)
if _gpu and _gpu.total_memory > 70e9:
    batch_size, gradient_accumulation_steps = 48, 10
else:
    batch_size, gradient_accumulation_steps = 12, 40

# 600,000 steps are 300 billion tokens
max_iters = 600000
lr_decay_iters = 600000

eval_interval = 1000
eval_iters = 2400 // batch_size
log_interval = 10
weight_decay = 0.1
