# python train.py config/reviews.py
# python prepare_reviews.py --input=reviews.csv --vocab_from=out/dialogue_tiny --length=128
# comes before it: the label is asked after the last character.
dataset = "reviews"
init_from = "out/dialogue_tiny"
out_dir = "out/reviews"

block_size = 128  # as the checkpoint's
batch_size, gradient_accumulation_steps = 32, 1
max_iters = 600
optimizer = "muon"
muon_lr, muon_momentum = 0.005, 0.95
learning_rate, min_lr = 2e-3, 0.0
lr_schedule, warmup_iters, warmdown = "linear", 20, 0.9
weight_decay = 0.1
dropout = 0.1

eval_interval = 100
eval_iters = 100
log_interval = 20
