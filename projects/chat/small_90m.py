# torchrun --standalone --nproc_per_node=8 train.py projects/chat/small_90m.py
# on the data of python -m projects.chat.prepare; then
# python -m projects.chat.talk --out_dir=out/dialogue_90m
# small-gpt's 90M model of Chinese small talk, by layers, channels and context. One process on one
# GPU trains the same. Not run here: its time and loss are unknown.
dataset = "dialogue"
prepare = "projects.chat.prepare"
out_dir = "out/dialogue_90m"

n_layer, n_head, n_embd, block_size = 12, 12, 768, 256
rotary = rms_norm = qk_norm = zero_init = True
activation = "relu2"
bias = False
dropout = 0.1

batch_size, gradient_accumulation_steps = 16, 8
max_iters = 8000
optimizer = "muon"
muon_lr, learning_rate, min_lr = 0.02, 3e-3, 0.0
lr_schedule, warmup_iters, warmdown = "linear", 100, 0.7
weight_decay = 0.1

eval_interval = 500
eval_iters = 50
log_interval = 20
