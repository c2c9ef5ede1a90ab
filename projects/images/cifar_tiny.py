# python train.py projects/images/cifar_tiny.py
# on python -m projects.images.prepare --input=cifar10_test_jpg.tar --name=cifar10; then
# python -m projects.images.complete --out_dir=out/cifar_tiny --rows=16
# 2 cores of an Intel Xeon that others used as well, torch 2.13: 19 min 12 s, 4.3 minutes of CPU
# time; validation loss 2.4615, 3.5512 bits per pixel. It has seen 1,600 images once, too few.
# python -m projects.images.probe --out_dir=out/cifar_tiny: 40.5%, the pixels themselves 38.5%.
dataset = "cifar10"
prepare = "projects.images.prepare"
out_dir = "out/cifar_tiny"

n_layer, n_head, n_embd, block_size = 4, 2, 128, 1024
rotary = rms_norm = qk_norm = zero_init = True
smear = 2
activation = "relu2"
bias = False

batch_size, gradient_accumulation_steps = 4, 1
max_iters = 400
optimizer = "muon"
muon_lr, muon_momentum = 0.02, 0.9
learning_rate, min_lr = 0.01, 0.0
lr_schedule, warmup_iters, warmdown = "linear", 20, 0.7
weight_decay = 0.1

eval_interval = 0  # only after the last step
eval_iters = 64  # a quarter of the validation split
log_interval = 20
dtype = "float32"  # at this length twice as fast on a CPU as bfloat16
compile = False
