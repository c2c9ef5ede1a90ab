# torchrun --standalone --nproc_per_node=8 train.py projects/webtext/gpt3_6700m.py
# on the data of python -m projects.webtext.prepare --hub_dataset=HuggingFaceFW/fineweb-edu \
#     --hub_folder=sample/350BT --name=fineweb
# GPT-3 6.7B of table 2.1 of https://arxiv.org/abs/2005.14165, on web text instead of its own
# data, sharded over GPUs of 80 GB. Only its parameters and bytes were counted; it was not run.
n_layer = 32
n_head = 32
n_embd = 4096
block_size = 2048
window = 256  # of every second layer; the paper does not say how wide its bands are
dataset = "fineweb"
out_dir = "out/gpt3_6700m"
strategy = "fsdp"

# 2 sequences * 2048 tokens * 512 = 2,097,152 tokens per step
batch_size = 2
gradient_accumulation_steps = 64 * 8
ramp_iters = 3500  # 3.9 billion tokens
warmup_tokens = 375_000_000
lr_decay_iters = 125600  # a cosine to a tenth at 260 billion tokens
max_iters = 144700  # 300 billion tokens
learning_rate, min_lr = 1.2e-4, 1.2e-5
weight_decay = 0.1

eval_interval = 1000
eval_iters = 200
