# python prepare_openwebtext.py
# python train.py config/eval_gpt2_xl.py
# The released gpt2-xl on OpenWebText: a validation loss of 2.54 (nanoGPT's README; not measured
# here).
init_from = "gpt2-xl"
dataset = "openwebtext"
eval_only = True
batch_size = 8
eval_iters = 500  # of the training split; of validation it is all
