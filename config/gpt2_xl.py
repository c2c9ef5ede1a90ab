# python prepare_openwebtext.py
# torchrun --standalone --nproc_per_node=8 train.py config/gpt2_xl.py
# GPT-2 1558M on OpenWebText. The released weights have a validation loss of 2.54 there (nanoGPT's
# README); about 12 times gpt2.py's operations a token, for GPUs of 80 GB (an estimate, not
# measured).
model = "gpt2-xl"
dataset = "openwebtext"
out_dir = "out/gpt2_xl"

batch_size = 2
gradient_accumulation_steps = 32 * 8
max_iters = lr_decay_iters = 600000
learning_rate, min_lr = 2e-4, 2e-5  # GPT-3's for this size
loss_chunk = 1024

eval_interval = 1000
eval_iters = 200
weight_decay = 0.1
