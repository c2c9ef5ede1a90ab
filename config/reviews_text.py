# python train.py config/reviews_text.py
# A model of dialogues and reviews goes on with the reviews' text alone, so that less is left to
# learn from their labels: Howard and Ruder 2018, https://arxiv.org/abs/1801.06146. Before it come
# python prepare_reviews.py --input=reviews.csv
# python prepare_dialogue.py --input=dialogues.txt,data/reviews/train.txt --name=dialogue_reviews
# python train.py config/dialogue_tiny.py --dataset=dialogue_reviews \
#     --out_dir=out/dialogue_reviews --max_iters=4000
# python prepare_dialogue.py --input=data/reviews/train.txt --name=reviews_text
dataset = "reviews_text"
init_from = "out/dialogue_reviews"
out_dir = "out/reviews_text"

block_size = 256  # as the checkpoint's
batch_size, gradient_accumulation_steps = 16, 1
max_iters = 500
optimizer = "muon"
muon_lr, muon_momentum = 0.01, 0.95
learning_rate, min_lr = 5e-3, 0.0
lr_schedule, warmup_iters, warmdown = "linear", 20, 0.9
weight_decay = 0.1
dropout = 0.2

eval_interval = 250
eval_iters = 20
log_interval = 20
