"""The trainer's bits are those of the page `docs/by_hand.py`."""

import re
from itertools import islice

import torch

from docs import by_hand
from resnet_core.recipes import RECIPES, make_trainer

STEPS = by_hand.STEPS_PER_EPOCH + 3


def test_the_trainer_does_what_the_page_does_to_the_bit(capsys):
    network, losses = by_hand.main(STEPS)
    trainer = make_trainer(RECIPES["digits"])
    assert losses == [step.loss for step in islice(trainer.steps(), STEPS)]

    ours, pages = trainer.model.state_dict(), network.state_dict()
    assert len(ours) == len(pages)
    for name, value, expected in zip(ours, ours.values(), pages.values(), strict=True):
        assert torch.equal(value, expected), name

    last_line = capsys.readouterr().out.splitlines()[-1]
    printed = re.fullmatch(rf"step  {STEPS}  loss {losses[-1]:.4f}  test accuracy ([\d.]+)%", last_line)
    assert float(printed[1]) == round(100 * trainer.evaluate()["top1"], 2)


def test_the_page_has_the_recipes_length():
    trainer = make_trainer(RECIPES["digits"])
    assert trainer.num_steps == by_hand.EPOCHS * by_hand.STEPS_PER_EPOCH
    assert [by_hand.learning_rate(step) for step in range(trainer.num_steps)] == [
        trainer.lr_fn(step) for step in range(trainer.num_steps)
    ]
