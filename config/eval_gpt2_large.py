# python prepare_openwebtext.py
# python train.py config/eval_gpt2_large.py
# The released gpt2-large on OpenWebText: a validation loss of 2.67 (nanoGPT's README; not
# measured here).
init_from = "gpt2-large"
dataset = "openwebtext"
eval_only = True
batch_size = 8
eval_iters = 500  # of the training split; of validation it is all
