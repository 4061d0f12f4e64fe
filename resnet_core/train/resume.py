"""How a run continues: which checkpoint it continues from, what that holds, and the step that it stands for."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor, nn
from torch.optim import Optimizer

from resnet_core.distributed.world import World
from resnet_core.foundation.errors import last_line, without_remedy
from resnet_core.train.averaging import WeightAverage
from resnet_core.train.checkpoint import (
    CheckpointError,
    find_newest,
    list_checkpoints,
    load_checkpoint,
    path_of,
    remove_leftovers,
    set_aside,
)
from resnet_core.train.optimizers import load_optimizer_tensors, optimizer_tensors
from resnet_core.train.report import Report


@dataclass(frozen=True)
class Learned:
    """All tensors that training changes: the model's, its optimizer's and, where there is one, the average's."""

    model: nn.Module
    optimizer: Optimizer
    average: WeightAverage | None

    def tensors(self) -> dict[str, Mapping[str, Tensor]]:
        """What a checkpoint holds."""
        groups: dict[str, Mapping[str, Tensor]] = {
            "model": self.model.state_dict(),
            "optimizer": optimizer_tensors(self.model, self.optimizer),
        }
        if self.average:
            groups["average"] = self.average.tensors
        return groups

    def load(self, groups: Mapping[str, Mapping[str, Tensor]]) -> None:
        """Puts back what `tensors()` returned. Raises RuntimeError or KeyError where they do not fit."""
        self.model.load_state_dict(groups["model"])
        load_optimizer_tensors(self.model, self.optimizer, groups["optimizer"])
        if self.average:
            self.average.load(groups.get("average", {}), self.model)


@dataclass(frozen=True, kw_only=True)
class Resumed:
    """Where a run continues."""

    step: int
    scores: dict[str, float] | None
    """The evaluation after that step, where there was one."""
    seconds: float
    """Spent before."""
    was_renumbered: bool
    """Whether the checkpoint has another step number, because its epochs had another length."""


def resume(
    folder: Path, learned: Learned, *, steps_per_epoch: int, num_steps: int, world: World, report: Report
) -> Resumed | None:
    """Loads the newest whole checkpoint of the folder, on every rank; None where there is none.

    Raises CheckpointError where all are damaged, or where the newest belongs to another network or optimizer.
    """
    path = choose_checkpoint(folder, world, report)
    if path is None:
        return None

    checkpoint = world.gather_or_raise(lambda: load_checkpoint(path))
    state = checkpoint.state
    optimizer = type(learned.optimizer).__name__
    if state["optimizer"] != optimizer:
        raise CheckpointError(
            f"{path} was trained with the optimizer {state['optimizer']}, and this run has {optimizer}; continue with "
            f"{state['optimizer']}, or start a new run in another folder"
        )
    try:
        learned.load(checkpoint.tensors)
    except (RuntimeError, KeyError) as error:
        raise CheckpointError(
            f"{path} holds the weights of another network ({last_line(error)}); continue with the network that was "
            "trained, or start a new run in another folder"
        ) from error

    # With epochs of another length the run continues at the same share of its epoch.
    step = round(state["step"] / state["steps_per_epoch"] * steps_per_epoch)
    if step > num_steps:
        raise CheckpointError(
            f"{path} has done {step} steps, and this run ends after {num_steps}; train for more epochs, or start a "
            "new run in another folder"
        )
    return Resumed(
        step=step,
        scores=state["scores"] if state["steps_per_epoch"] == steps_per_epoch else None,
        seconds=state["seconds"],
        was_renumbered=step != state["step"],
    )


def choose_checkpoint(folder: Path, world: World, report: Report) -> Path | None:
    """The newest whole checkpoint; newer ones, which are damaged, are reported and set aside."""

    def choose() -> tuple[Path | None, list[str]]:
        remove_leftovers(folder)
        newest, damaged = find_newest(folder)
        set_aside(damaged, "damaged")
        return newest, [without_remedy(error) for error in damaged.values()]

    newest, damaged = world.run_on_rank_0(choose)
    for reason in damaged:
        report.say(f"{reason}; it was set aside, and the checkpoint before it is used")
    return newest


def renumber(folder: Path, step: int, save: Callable[[], None], world: World) -> None:
    """Saves the state under its new step number, and sets the checkpoints of the old numbering aside.

    Whatever ends the process, the newest checkpoint is the one that was continued from, or the same renumbered.
    """
    here = path_of(folder, step)
    others = [path for path in list_checkpoints(folder) if path != here]
    world.run_on_rank_0(lambda: set_aside([here] if here.exists() else [], "earlier"))
    save()
    world.run_on_rank_0(lambda: set_aside(others, "earlier"))
