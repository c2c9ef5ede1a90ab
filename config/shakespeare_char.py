# python train.py config/shakespeare_char.py
dataset = "shakespeare_char"
prepare = "prepare_shakespeare.py"
out_dir = "out/shakespeare_char"

n_layer, n_head, n_embd, block_size = 4, 2, 256, 256
rotary = rms_norm = qk_norm = zero_init = True
bias = False
activation = "relu2"
dropout = 0.1

batch_size, gradient_accumulation_steps = 16, 1
max_iters = 1600
optimizer = "muon"
muon_lr, learning_rate = 0.02, 0.01
min_lr = 0.0
lr_schedule = "linear"
warmup_iters = 20
weight_decay = 0.0

eval_interval = 200
log_interval = 20
