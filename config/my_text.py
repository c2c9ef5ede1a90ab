# python prepare_text.py --input=FILE_OR_FOLDER --name=mine && python train.py config/my_text.py
# On tiny Shakespeare with --tokenizer=char: validation loss 1.71 in 1 min 51 s on two cores of an
# Intel Xeon with AMX, torch 2.13. A step with GPT-2's tokens takes about 6 times as long. A text
# of fewer than 1,300 tokens needs a lower --block_size.
dataset = "mine"
out_dir = "out/mine"

n_layer, n_head, n_embd, block_size = 4, 3, 192, 128
rotary = rms_norm = qk_norm = zero_init = True
rotary_base = 1000.0  # the context is short
smear = 2
activation = "relu2"
bias = False
dropout = 0.1

batch_size, gradient_accumulation_steps = 16, 1
max_iters = 300
optimizer = "muon"
muon_lr, muon_momentum = 0.02, 0.9
learning_rate, min_lr = 0.01, 0.0
lr_schedule, warmup_iters, warmdown = "linear", 20, 0.7
weight_decay = 0.1

eval_interval = 100
eval_iters = 50
log_interval = 20
compile = False  # it would take about as long as the run
