# torchrun --standalone --nproc_per_node=8 train.py projects/images/igpt_l.py
# on the data of python -m projects.images.prepare --input=imagenet/train --size=32 \
#     --palette=512 --val_fraction=0.04 --name=imagenet32
# iGPT-L of Chen et al. 2020, https://github.com/openai/image-gpt, at 32 x 32: 1.4 billion
# parameters, for GPUs of 80 GB. Nobody has run it here: neither time nor loss is known. Different
# from the paper: GPT-2's initialization instead of the Sparse Transformer's, residual projections
# start at zero as the head does, and the exact GELU. The learning rate was not checked against the
# paper.
n_layer, n_head, n_embd, block_size = 48, 16, 1536, 1024
rms_norm = untied_head = zero_init = True
activation = "gelu"
bias = False
dropout = 0.0
dataset = "imagenet32"
prepare = "projects.images.prepare"
out_dir = "out/igpt_l"

# 128 images per step
batch_size = 8
gradient_accumulation_steps = 16
max_iters = 1_000_000
warmup_iters = 9609  # one epoch
learning_rate, min_lr = 1e-3, 0.0
beta1, beta2 = 0.9, 0.95
weight_decay = 0.0

eval_interval = 5000
eval_iters = 200
