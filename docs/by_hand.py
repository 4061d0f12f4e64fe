"""Network, batches and loop on one page: `python docs/by_hand.py` trains the digits recipe without the trainer.

A test compares both to the bit. The trainer adds what a page has no room for: processes, checkpoints, a record. The
accuracy may fall while the learning rate is at its peak, and climbs again as it falls.
"""

import math
from itertools import islice

import torch
from torch import nn
from torch.nn import functional as F

from resnet_core.data import load_digits
from resnet_core.data.sampler import epoch_order, seed_from
from resnet_core.data.transforms import crop_and_flip, normalize
from resnet_core.models.cifar import PadShortcut
from resnet_core.models.resnet import BasicBlock, initialize

SEED, BATCH, EPOCHS, WARMUP_EPOCHS, PEAK_LR = 0, 64, 30, 2, 0.1
DIGITS = load_digits()  # 16x16 pixels: 1,437 images to train on, 360 to test
STEPS_PER_EPOCH = len(DIGITS.train) // BATCH


class ResNet20(nn.Sequential):
    """He et al. 2015, section 4.2: `[N, 1, H, W] -> [N, 10]` logits."""

    def __init__(self):
        stem = [nn.Conv2d(1, 16, 3, padding=1, bias=False), nn.BatchNorm2d(16), nn.ReLU()]
        stage1 = [BasicBlock(16, 16), BasicBlock(16, 16), BasicBlock(16, 16)]
        stage2 = [BasicBlock(16, 32, 2, PadShortcut(16)), BasicBlock(32, 32), BasicBlock(32, 32)]
        stage3 = [BasicBlock(32, 64, 2, PadShortcut(32)), BasicBlock(64, 64), BasicBlock(64, 64)]
        head = [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, 10)]
        super().__init__(*stem, *stage1, *stage2, *stage3, *head)
        initialize(self)


def batches(epoch):
    """Shuffled full batches, in which every image is shifted by at most one pixel in each direction."""
    order = epoch_order(len(DIGITS.train), seed=SEED, epoch=epoch)
    for start in range(0, STEPS_PER_EPOCH * BATCH, BATCH):
        samples = order[start : start + BATCH]
        seeds = [seed_from(SEED, epoch, sample) for sample in samples]
        images = crop_and_flip(DIGITS.train.images[samples], seeds, padding=1, flip=False)
        yield normalize(images, mean=[0.5], std=[0.5]), DIGITS.train.labels[samples]


def learning_rate(step):
    """A line up to the peak for two epochs, then half a cosine down to 0."""
    warmup_steps, steps = WARMUP_EPOCHS * STEPS_PER_EPOCH, EPOCHS * STEPS_PER_EPOCH
    if step < warmup_steps:
        return PEAK_LR * ((step + 1) / warmup_steps)
    down = (step - warmup_steps) / (steps - warmup_steps)
    return PEAK_LR * (1 + math.cos(math.pi * down)) / 2


def train(network, optimizer, every_batch, lr_of):
    """The loop: one step for each batch; yields its loss."""
    network.train()
    for step, (inputs, labels) in enumerate(every_batch):
        for group in optimizer.param_groups:
            group["lr"] = lr_of(step)
        loss = F.cross_entropy(network(inputs), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        yield loss.item()


@torch.no_grad()
def accuracy(network):
    logits = network.eval()(normalize(DIGITS.test.images, mean=[0.5], std=[0.5]))
    return (logits.argmax(dim=1) == DIGITS.test.labels).float().mean().item()


def main(steps=EPOCHS * STEPS_PER_EPOCH):
    """Trains for this many steps. Returns the network and each step's loss."""
    torch.manual_seed(SEED)
    network = ResNet20()
    optimizer = torch.optim.SGD(network.parameters(), PEAK_LR, momentum=0.9, weight_decay=1e-3, nesterov=True)
    every_batch = (batch for epoch in range(EPOCHS) for batch in batches(epoch))
    losses = []
    for loss in islice(train(network, optimizer, every_batch, learning_rate), steps):
        losses.append(loss)
        if len(losses) % STEPS_PER_EPOCH == 0 or len(losses) == steps:
            print(f"step {len(losses):>3}  loss {loss:.4f}  test accuracy {accuracy(network):.2%}")
            network.train()
    return network, losses


if __name__ == "__main__":
    main()
