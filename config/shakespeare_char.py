# python train.py config/shakespeare_char.py
# 2 cores of an AMD EPYC, torch 2.13: validation loss 1.4609 (seeds 1 and 2: 1.4605, 1.4622) in
# 4 min 20 s, half a minute of them for compilation. Not measured on a GPU yet.
dataset = "shakespeare_char"
prepare = "prepare_shakespeare.py"
out_dir = "out/shakespeare_char"

n_layer, n_head, n_embd, block_size = 4, 2, 256, 256
rotary = rms_norm = qk_norm = zero_init = True
rotary_base = 1000.0  # the context is short
smear = 2
activation = "relu2"
bias = False

batch_size, gradient_accumulation_steps = 16, 1
max_iters = 480  # two epochs: dropout does not pay yet
optimizer = "muon"
muon_lr, muon_momentum = 0.02, 0.85
learning_rate, min_lr = 0.01, 0.0
lr_schedule, warmup_iters, warmdown = "linear", 20, 0.7
weight_decay = 0.1

eval_interval = 240
eval_iters = 28  # the whole validation split
log_interval = 20
