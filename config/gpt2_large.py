# python prepare_openwebtext.py
# torchrun --standalone --nproc_per_node=8 train.py config/gpt2_large.py
# GPT-2 774M on OpenWebText. The released weights have a validation loss of 2.67 there (nanoGPT's
# README); about 6 times gpt2.py's operations a token, for GPUs of 80 GB (an estimate, not
# measured).
model = "gpt2-large"
dataset = "openwebtext"
out_dir = "out/gpt2_large"

batch_size = 4
gradient_accumulation_steps = 16 * 8
max_iters = lr_decay_iters = 600000
learning_rate, min_lr = 2.5e-4, 2.5e-5  # GPT-3's for this size

eval_interval = 1000
eval_iters = 200
weight_decay = 0.1
