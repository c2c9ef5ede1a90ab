# python train.py projects/arithmetic/addition.py
# Two numbers of 2 digits, as in minGPT's adder: all 500 held-out sums correct (three seeds) after 4
# to 5 s on 2 cores of an AMD EPYC (Zen 5). Two numbers of 3 digits:
# python -m projects.arithmetic.prepare_addition --digits=3
# python train.py projects/arithmetic/addition.py --max_iters=300
dataset = "addition"
prepare = "projects.arithmetic.prepare_addition"
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
