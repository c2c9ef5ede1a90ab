# torchrun --standalone --nproc_per_node=8 train.py projects/webtext/gpt2_large.py
# on the data of python -m projects.webtext.prepare
# GPT-2 774M on OpenWebText, for GPUs of 80 GB. Not run here. The released weights, trained on other
# text, have a validation loss of 2.67 there (nanoGPT's README). It has about 6 times the operations
# per token of config/gpt2.py: an estimate.
model_type = "gpt2-large"
dataset = "openwebtext"
out_dir = "out/gpt2_large"

# 4 sequences * 1024 tokens * 128 = 524,288 tokens per step
batch_size = 4
gradient_accumulation_steps = 16 * 8
max_iters = lr_decay_iters = 600000
learning_rate, min_lr = 2.5e-4, 2.5e-5  # GPT-3's for this size

eval_interval = 1000
eval_iters = 200
weight_decay = 0.1
