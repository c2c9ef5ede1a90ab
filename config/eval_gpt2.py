# python -m projects.webtext.prepare
# python train.py config/eval_gpt2.py
# The released gpt2 on OpenWebText: a validation loss of 3.12; --init_from=gpt2-medium, gpt2-large
# and gpt2-xl measure the others: 2.84, 2.67, 2.54 (nanoGPT's README; not measured here).
init_from = "gpt2"
dataset = "openwebtext"
eval_only = True
batch_size = 8
eval_iters = 500  # of the training split; of validation it is all
