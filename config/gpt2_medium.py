# python prepare_openwebtext.py
# torchrun --standalone --nproc_per_node=8 train.py config/gpt2_medium.py
# GPT-2 350M on OpenWebText. The released weights, trained on other text, have a validation loss
# of 2.84 there (nanoGPT's README); at gpt2.py's 4 days on 8 A100 40GB, its 3 times as many
# operations a token make it about 12 days (an estimate, not measured here).
model = "gpt2-medium"
dataset = "openwebtext"
out_dir = "out/gpt2_medium"

batch_size = 8
gradient_accumulation_steps = 8 * 8
max_iters = lr_decay_iters = 600000
learning_rate, min_lr = 3e-4, 3e-5  # GPT-3's for this size

eval_interval = 1000
eval_iters = 200
weight_decay = 0.1
