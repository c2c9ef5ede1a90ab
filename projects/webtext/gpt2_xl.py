# torchrun --standalone --nproc_per_node=8 train.py projects/webtext/gpt2_xl.py
# on the data of python -m projects.webtext.prepare
# GPT-2 1558M on OpenWebText, for GPUs of 80 GB. Not run here. The released weights, trained on
# other text, have a validation loss of 2.54 there (nanoGPT's README). It has about 12 times the
# operations per token of config/gpt2.py: an estimate.
model_type = "gpt2-xl"
dataset = "openwebtext"
out_dir = "out/gpt2_xl"

# 2 sequences * 1024 tokens * 256 = 524,288 tokens per step
batch_size = 2
gradient_accumulation_steps = 32 * 8
max_iters = lr_decay_iters = 600000
learning_rate, min_lr = 2e-4, 2e-5  # GPT-3's for this size

eval_interval = 1000
eval_iters = 200
weight_decay = 0.1
