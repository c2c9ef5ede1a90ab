# python train.py config/addition.py
# Two numbers of 2 digits, as minGPT's adder, all 500 held-out sums right (BENCHMARKS.md). 3 digits:
# python train.py config/addition.py --prepare="prepare_addition.py --digits=3" --max_iters=300
dataset = "addition"
prepare = "prepare_addition.py"
out_dir = "out/addition"

n_layer, n_head, n_embd, block_size = 2, 4, 128, 16
qk_norm = zero_init = True
activation = "relu2"
bias = False

batch_size, gradient_accumulation_steps = 256, 1
max_iters = 100
optimizer = "muon"
muon_lr, muon_momentum = 0.04, 0.8
learning_rate, min_lr = 0.02, 0.0
lr_schedule, warmup_iters, warmdown = "linear", 10, 0.6
weight_decay = 0.1

eval_interval = 25
eval_iters = 2  # all 500 held-out problems
log_interval = 20
compile = False
