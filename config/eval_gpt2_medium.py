# python prepare_openwebtext.py
# python train.py config/eval_gpt2_medium.py
# The released gpt2-medium on OpenWebText: a validation loss of 2.84 (nanoGPT's README; not
# measured here).
init_from = "gpt2-medium"
dataset = "openwebtext"
eval_only = True
batch_size = 8
eval_iters = 500  # of the training split; of validation it is all
