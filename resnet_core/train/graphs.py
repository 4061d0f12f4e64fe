"""A step's forward and backward as one CUDA graph: one call starts its hundreds of kernels, instead of Python.

Small networks gain most, because a GPU does their kernels faster than Python can ask for them.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

WARM_UP_STEPS = 3  # torch's advice: libraries set themselves up in their first calls, which cannot be recorded

ComputeGradients = Callable[[Tensor, Tensor], Tensor]


@dataclass(frozen=True, kw_only=True)
class Recording:
    """A graph and the memory that it reads and writes at each replay."""

    graph: torch.cuda.CUDAGraph
    inputs: Tensor
    targets: Tensor
    loss: Tensor
    gradients: list[Tensor | None]


class RecordedGradients:
    """`compute_gradients(inputs, targets)`, recorded for each shape of batch that comes and replayed from then on.

    `compute_gradients` computes the loss, which it returns, and the gradients of `model`; it must not wait for the GPU.
    A replay computes what a call would, with new random numbers for dropout.
    """

    def __init__(
        self, compute_gradients: ComputeGradients, model: nn.Module, *, memory_format: torch.memory_format
    ) -> None:
        self.compute_gradients = compute_gradients
        self.model = model
        self.memory_format = memory_format
        self.parameters = list(model.parameters())
        self.recordings: dict[tuple[object, ...], Recording] = {}

    def __call__(self, inputs: Tensor, targets: Tensor) -> Tensor:
        kind = (inputs.shape, inputs.dtype, targets.shape, targets.dtype)
        if kind not in self.recordings:
            self.recordings[kind] = self._record(inputs, targets)
        recording = self.recordings[kind]

        recording.inputs.copy_(inputs, non_blocking=True)
        recording.targets.copy_(targets, non_blocking=True)
        recording.graph.replay()
        for parameter, gradient in zip(self.parameters, recording.gradients, strict=True):
            parameter.grad = gradient  # each recording has its own
        return recording.loss

    def _record(self, inputs: Tensor, targets: Tensor) -> Recording:
        device = self.parameters[0].device
        inputs = inputs.to(device, memory_format=self.memory_format, copy=True)
        targets = targets.to(device, copy=True)
        self._warm_up(inputs, targets)

        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            loss = self.compute_gradients(inputs, targets)
        gradients = [parameter.grad for parameter in self.parameters]
        return Recording(graph=graph, inputs=inputs, targets=targets, loss=loss, gradients=gradients)

    def _warm_up(self, inputs: Tensor, targets: Tensor) -> None:
        """A few calls that leave no trace in BatchNorm's statistics and in the random numbers."""
        buffers = [buffer.clone() for buffer in self.model.buffers()]
        random_state = torch.cuda.get_rng_state(inputs.device)

        stream = torch.cuda.Stream(inputs.device)
        stream.wait_stream(torch.cuda.current_stream(inputs.device))
        with torch.cuda.stream(stream):
            for _ in range(WARM_UP_STEPS):
                self.compute_gradients(inputs, targets)
        torch.cuda.current_stream(inputs.device).wait_stream(stream)

        with torch.no_grad():
            for buffer, value in zip(self.model.buffers(), buffers, strict=True):
                buffer.copy_(value)
        torch.cuda.set_rng_state(random_state, inputs.device)
