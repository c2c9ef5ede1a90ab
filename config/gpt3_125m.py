# python prepare_openwebtext.py --name=fineweb --hub_dataset=HuggingFaceFW/fineweb-edu \
#     --hub_config=sample-350BT
# torchrun --standalone --nproc_per_node=8 train.py config/gpt3_125m.py
# GPT-3 Small as in table 2.1 of https://arxiv.org/abs/2005.14165, on web text instead of its own:
# context 2048, every second layer banded, half a million tokens an update after a ramp, warm-up
# over 375M tokens, a cosine to a tenth at 260 billion, 300 billion in all. For GPUs of 80 GB;
# neither time nor loss has been measured here. The paper does not say how wide the band is.
model = "gpt3-small"
block_size = 2048
window = 256
dataset = "fineweb"
out_dir = "out/gpt3_125m"

# 8 rows * 2048 tokens * 32 = 524,288 tokens an update
batch_size = 8
gradient_accumulation_steps = 4 * 8
ramp_iters = 14000  # 3.9 billion tokens
warmup_tokens = 375_000_000
lr_decay_iters = 502400  # 260 billion tokens
max_iters = 578700  # 300 billion tokens
learning_rate, min_lr = 0.0006, 6e-05
weight_decay = 0.1

eval_interval = 1000
eval_iters = 200
