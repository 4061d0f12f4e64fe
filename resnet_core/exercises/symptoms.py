"""What a student sees of a mistake: facts that print as English, and that tests measure."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Parameters:
    """The number of parameters of a ResNet-50."""

    count: int

    def __str__(self) -> str:
        return f"{self.count:,} parameters"


@dataclass(frozen=True)
class LastMap:
    """The side of the last feature map of a ResNet-50, in pixels."""

    side: int

    def __str__(self) -> str:
        return f"the last feature map is {self.side}x{self.side}"


@dataclass(frozen=True)
class Missing:
    """A tensor that the broken ResNet-50 needs and our checkpoint lacks."""

    tensor: str

    def __str__(self) -> str:
        return f"our checkpoint has no {self.tensor}"


@dataclass(frozen=True)
class Unexpected:
    """A tensor of our checkpoint that the broken ResNet-50 lacks."""

    tensor: str

    def __str__(self) -> str:
        return f"there is no place for our {self.tensor}"


@dataclass(frozen=True)
class Misshapen:
    """A tensor that has one shape in our checkpoint and another in the broken ResNet-50."""

    tensor: str

    def __str__(self) -> str:
        return f"our {self.tensor} does not fit"


@dataclass(frozen=True)
class Logits:
    """How far the logits of a small network with our weights are from the right ones, as LEGEND says."""

    percent_off: float

    def __str__(self) -> str:
        return f"our checkpoint loads, but logits are {self.percent_off:.7f}".rstrip("0").rstrip(".") + "% off"


@dataclass(frozen=True)
class OutputsSumToOne:
    def __str__(self) -> str:
        return "our checkpoint loads, but the outputs for each image sum to 1"


@dataclass(frozen=True)
class RandomInTraining:
    def __str__(self) -> str:
        return "correct in evaluation mode; in training mode the same images give different logits each time"


@dataclass(frozen=True)
class RunningMeans:
    times: int

    def __str__(self) -> str:
        return (
            "correct in evaluation mode; "
            f"after one forward pass in training mode, running means are {self.times} times ours"
        )


Symptom = (
    Parameters | LastMap | Missing | Unexpected | Misshapen | Logits | OutputsSumToOne | RandomInTraining | RunningMeans
)
