# torchrun --standalone --nproc_per_node=8 train.py projects/webtext/gpt3_350m.py
# on the data of python -m projects.webtext.prepare --hub_dataset=HuggingFaceFW/fineweb-edu \
#     --hub_folder=sample/350BT --name=fineweb
# GPT-3 Medium of table 2.1 of https://arxiv.org/abs/2005.14165, on web text instead of its own
# data, for GPUs of 80 GB. Not run here: neither time nor loss is known.
n_layer = 24
n_head = 16
n_embd = 1024
block_size = 2048
window = 256  # of every second layer; the paper does not say how wide its bands are
dataset = "fineweb"
out_dir = "out/gpt3_350m"

# 4 sequences * 2048 tokens * 64 = 524,288 tokens per step
batch_size = 4
gradient_accumulation_steps = 8 * 8
ramp_iters = 14000  # 3.9 billion tokens
warmup_tokens = 375_000_000
lr_decay_iters = 502400  # a cosine to a tenth at 260 billion tokens
max_iters = 578700  # 300 billion tokens
learning_rate, min_lr = 3e-4, 3e-5
weight_decay = 0.1

eval_interval = 1000
eval_iters = 200
