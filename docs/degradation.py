"""The degradation experiment of He et al. 2015, figure 6, small: plain and residual nets of 20 and 56 layers.

    python docs/degradation.py FOLDER

FOLDER holds Fashion-MNIST's four files. Each net adds its row to docs/results/degradation.jsonl, from which
`python docs/figures.py` draws the curves.

Protocol: Fashion-MNIST, averaged down to 14x14 pixels, no augmentation. SGD as in the paper: learning rate 0.1, divided
by 10 after half and after three quarters of the steps, momentum 0.9, weight decay 1e-4, batches of 128. A plain net is
the residual net with every shortcut replaced by zero: same layers, same initial weights, same batches.
"""

import argparse
import itertools
import json
import time
from pathlib import Path

import torch
from torch import nn
from torch.nn import functional as F

from resnet_core.data import load_fashion_mnist
from resnet_core.data.sampler import epoch_order
from resnet_core.models.cifar import CifarResNet
from resnet_core.models.resnet import BasicBlock

BATCH, STEPS, PEAK_LR = 128, 1500, 0.1
EVERY, TEST_EVERY = 50, 250  # steps between two points of the curves
NETS = [(kind, depth) for depth in (20, 56) for kind in ("plain", "residual")]
RESULTS = Path(__file__).with_name("results") / "degradation.jsonl"


class NoShortcut(nn.Module):
    def forward(self, x):
        return 0.0


def network(kind, depth, seed=0):
    """He et al. 2015, section 4.2, for grey images; a plain one adds nothing to the output of each block's layers."""
    torch.manual_seed(seed)
    model = CifarResNet((depth - 2) // 6, in_channels=1)
    if kind == "plain":
        for block in model.modules():
            if isinstance(block, BasicBlock):
                block.downsample = NoShortcut()
    return model


def learning_rate(step, steps):
    return PEAK_LR * 0.1 ** ((step >= steps / 2) + (step >= 3 * steps / 4))


def batches(images, labels, seed):
    """Shuffled full batches, without end."""
    for epoch in itertools.count():
        order = epoch_order(len(images), seed=seed, epoch=epoch)
        for start in range(0, len(order) - BATCH + 1, BATCH):
            samples = order[start : start + BATCH]
            yield images[samples], labels[samples]


@torch.no_grad()
def error(model, images, labels):
    """The share of images, in evaluation mode, whose likeliest class is wrong."""
    model.eval()
    wrong = sum(
        (model(x).argmax(1) != y).sum().item() for x, y in zip(images.split(500), labels.split(500), strict=True)
    )
    model.train()
    return wrong / len(images)


def train(kind, depth, data, steps=STEPS, seed=0):
    """Trains one net; returns its row: the training loss and error of every EVERY steps, the test error after them."""
    (train_images, train_labels), test = data
    model = network(kind, depth, seed)
    optimizer = torch.optim.SGD(model.parameters(), PEAK_LR, momentum=0.9, weight_decay=1e-4)
    row = {"kind": kind, "depth": depth, "seed": seed, "steps": steps, "every": EVERY, "test_every": TEST_EVERY}
    row |= {"train_loss": [], "train_error": [], "test_error": []}
    losses, wrong = [], []
    began = time.process_time()
    for step, (x, y) in zip(range(steps), batches(train_images, train_labels, seed), strict=False):
        optimizer.param_groups[0]["lr"] = learning_rate(step, steps)
        logits = model(x)
        loss = F.cross_entropy(logits, y)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

        losses.append(loss.detach())
        wrong.append((logits.argmax(1) != y).float().mean())
        if (step + 1) % EVERY == 0:
            row["train_loss"].append(round(torch.stack(losses).mean().item(), 4))
            row["train_error"].append(round(torch.stack(wrong).mean().item(), 4))
            losses, wrong = [], []
        if (step + 1) % TEST_EVERY == 0:
            row["test_error"].append(error(model, *test))
            print(
                f"{kind} {depth}, step {step + 1}: error {row['train_error'][-1]:.1%} in training, "
                f"{row['test_error'][-1]:.1%} on test images",
                flush=True,
            )
    row["cpu_minutes"] = round((time.process_time() - began) / 60, 1)
    return row


def load(folder):
    """Training and test images [N, 1, 14, 14], normalised, with their labels."""
    dataset = load_fashion_mnist(folder)
    mean, std = dataset.transform.mean[0], dataset.transform.std[0]
    return [
        (F.avg_pool2d((split.images.float() / 255 - mean) / std, 2), split.labels.long())
        for split in (dataset.train, dataset.test)
    ]


def main(words=None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--seed", type=int, default=0)
    words = parser.parse_args(words)
    data = load(words.folder)
    for kind, depth in NETS:
        row = train(kind, depth, data, seed=words.seed)
        with RESULTS.open("a") as results:
            results.write(json.dumps(row) + "\n")


if __name__ == "__main__":
    main()
