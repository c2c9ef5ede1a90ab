# torchrun --standalone --nproc_per_node=8 train.py projects/images/igpt_xl.py
# on the data of python -m projects.images.prepare --input=imagenet/train --size=32 \
#     --palette=512 --val_fraction=0.04 --name=imagenet32
# iGPT-XL of Chen et al. 2020, https://github.com/openai/image-gpt, 6.8 billion parameters, but at
# 32 x 32 instead of 64 x 64, sharded over GPUs of 80 GB. Only its parameters and bytes were
# counted (about 62 GiB per GPU of 8); it was not run. Heads, batch and learning rate are iGPT-L's
# or smaller, not the paper's.
n_layer, n_head, n_embd, block_size = 60, 16, 3072, 1024
rms_norm = untied_head = zero_init = True
activation = "gelu"
bias = False
dropout = 0.0
dataset = "imagenet32"
prepare = "projects.images.prepare"
out_dir = "out/igpt_xl"
strategy = "fsdp"

# 128 images per step
batch_size = 8
gradient_accumulation_steps = 16
max_iters = 1_000_000
warmup_iters = 9609  # one epoch
learning_rate, min_lr = 3e-4, 0.0
beta1, beta2 = 0.9, 0.95
weight_decay = 0.0

eval_interval = 5000
eval_iters = 200
