# python train.py projects/images/mnist_tiny.py
# on MNIST's 10,000 test images, prepared by the first command of projects/images/README.md; then
# python -m projects.images.complete --out_dir=out/mnist_tiny --rows=14
# 2 cores of an Intel Xeon that others used as well, torch 2.13: 10 min 39 s, 4.6 minutes of CPU
# time; validation loss 0.3136, 0.4525 bits per pixel.
dataset = "mnist"
prepare = "projects.images.prepare"
out_dir = "out/mnist_tiny"

n_layer, n_head, n_embd, block_size = 4, 2, 128, 784
rotary = rms_norm = qk_norm = zero_init = True
smear = 2
activation = "relu2"
bias = False

batch_size, gradient_accumulation_steps = 4, 1
max_iters = 600
optimizer = "muon"
muon_lr, muon_momentum = 0.02, 0.9
learning_rate, min_lr = 0.01, 0.0
lr_schedule, warmup_iters, warmdown = "linear", 20, 0.7
weight_decay = 0.1

eval_interval = 0  # only after the last step
eval_iters = 258  # the whole validation split
log_interval = 20
dtype = "float32"  # at this length twice as fast on a CPU as bfloat16
compile = False
