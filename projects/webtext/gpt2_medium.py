# torchrun --standalone --nproc_per_node=8 train.py projects/webtext/gpt2_medium.py
# on the data of python -m projects.webtext.prepare
# GPT-2 350M on OpenWebText. Not run here. The released weights, trained on other text, have a
# validation loss of 2.84 there (nanoGPT's README). At 3 times the operations per token of
# config/gpt2.py, which takes nanoGPT 4 days on 8 A100 40GB, it is about 12 days: an estimate.
model_type = "gpt2-medium"
dataset = "openwebtext"
out_dir = "out/gpt2_medium"

# 8 sequences * 1024 tokens * 64 = 524,288 tokens per step
batch_size = 8
gradient_accumulation_steps = 8 * 8
max_iters = lr_decay_iters = 600000
learning_rate, min_lr = 3e-4, 3e-5  # GPT-3's for this size

eval_interval = 1000
eval_iters = 200
weight_decay = 0.1
