# python train.py config/reviews_frozen.py
# As reviews.py, but only the last block, the last norm and the label rows learn.
dataset = "reviews"
init_from = "out/reviews_text"
out_dir = "out/reviews_frozen"

block_size = 256  # as the checkpoint's
batch_size, gradient_accumulation_steps = 24, 1
max_iters = 500
optimizer = "muon"
muon_lr, muon_momentum = 0.002, 0.95
learning_rate, min_lr = 1e-3, 0.0
lr_schedule, warmup_iters, warmdown = "linear", 20, 0.9
weight_decay = 0.1
dropout = 0.2
freeze = True

eval_interval = 0  # after the last update only
eval_iters = 80  # the whole validation split
log_interval = 20
