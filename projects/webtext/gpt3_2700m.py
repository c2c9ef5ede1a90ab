# torchrun --standalone --nproc_per_node=8 train.py projects/webtext/gpt3_2700m.py
# on the data of python -m projects.webtext.prepare --hub_dataset=HuggingFaceFW/fineweb-edu \
#     --hub_folder=sample/350BT --name=fineweb
# GPT-3 2.7B of table 2.1 of https://arxiv.org/abs/2005.14165, on web text instead of its own
# data, sharded over GPUs of 80 GB. Only its parameters and bytes were counted; it was not run.
n_layer = 32
n_head = 32
n_embd = 2560
block_size = 2048
window = 256  # of every second layer; the paper does not say how wide its bands are
dataset = "fineweb"
out_dir = "out/gpt3_2700m"
strategy = "fsdp"

# 2 sequences * 2048 tokens * 256 = 1,048,576 tokens per step
batch_size = 2
gradient_accumulation_steps = 32 * 8
ramp_iters = 7000  # 3.9 billion tokens
warmup_tokens = 375_000_000
lr_decay_iters = 251200  # a cosine to a tenth at 260 billion tokens
max_iters = 289400  # 300 billion tokens
learning_rate, min_lr = 1.6e-4, 1.6e-5
weight_decay = 0.1

eval_interval = 1000
eval_iters = 200
