# python train.py projects/chat/tiny.py
# on the data of python -m projects.chat.prepare --input=train.txt; then
# python -m projects.chat.talk --out_dir=out/dialogue_tiny
# 45,107 Chinese dialogues, 2 cores of an AMD EPYC (Zen 5), torch 2.13: validation loss 3.3232 in
# 7 min 17 s, half a minute more with an empty compiler cache; 12 min 26 s on a Xeon with AMX.
dataset = "dialogue"
prepare = "projects.chat.prepare"
out_dir = "out/dialogue_tiny"

n_layer, n_head, n_embd, block_size = 4, 2, 256, 256
rotary = rms_norm = qk_norm = zero_init = True
smear = 2
activation = "relu2"
bias = False
dropout = 0.1

batch_size, gradient_accumulation_steps = 16, 1
max_iters = 1400
optimizer = "muon"
muon_lr, muon_momentum = 0.02, 0.95
learning_rate, min_lr = 0.01, 0.0
lr_schedule, warmup_iters, warmdown = "linear", 20, 0.7
weight_decay = 0.1

eval_interval = 400
eval_iters = 20
log_interval = 20
