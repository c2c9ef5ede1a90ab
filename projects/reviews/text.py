# python train.py projects/reviews/text.py
# A model of dialogues and reviews continues with the text of the reviews alone, so that less is
# left to learn from their labels: Howard and Ruder 2018, https://arxiv.org/abs/1801.06146. Before:
# python -m projects.reviews.prepare --input=reviews.csv
# python -m projects.chat.prepare --input=dialogues.txt,data/reviews/train.txt \
#     --name=dialogue_reviews
# python train.py projects/chat/tiny.py --dataset=dialogue_reviews \
#     --out_dir=out/dialogue_reviews --max_iters=4000
# python -m projects.chat.prepare --input=data/reviews/train.txt --name=reviews_text
# 2 cores of an AMD EPYC (Zen 5): 3 min 7 s, after 26 min for the 4,000 steps before it.
dataset = "reviews_text"
init_from = "out/dialogue_reviews"
out_dir = "out/reviews_text"

n_layer, n_head, n_embd, block_size = 4, 2, 256, 256  # the checkpoint's model
rotary = rms_norm = qk_norm = zero_init = True
smear = 2
activation = "relu2"
bias = False
dropout = 0.2

batch_size, gradient_accumulation_steps = 16, 1
max_iters = 500
optimizer = "muon"
muon_lr, muon_momentum = 0.01, 0.95
learning_rate, min_lr = 5e-3, 0.0
lr_schedule, warmup_iters, warmdown = "linear", 20, 0.9
weight_decay = 0.1

eval_interval = 250
eval_iters = 20
log_interval = 20
