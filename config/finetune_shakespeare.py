# python train.py config/finetune_shakespeare.py
# The released GPT-2 124M on tiny Shakespeare, 20 steps, as nanoGPT's config of this name, which
# takes gpt2-xl and some minutes on one GPU; --init_from=gpt2-xl does so here. Not measured. Then
# python sample.py --out_dir=out/finetune_shakespeare
init_from = "gpt2"
dataset = "shakespeare"
prepare = "prepare_shakespeare.py --tokenizer=gpt2"
out_dir = "out/finetune_shakespeare"

# 1 sequence * 1024 tokens * 32 = 32,768 tokens per step; an epoch is 9.2 steps
batch_size = 1
gradient_accumulation_steps = 32
max_iters = 20
learning_rate = 3e-5
decay_lr = False

eval_interval = 5
eval_iters = 40
log_interval = 1
always_save_checkpoint = False
