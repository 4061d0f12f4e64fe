"""What only a GPU can show; `make gpu` runs this. On a machine without one, `-m gpu` runs the same on the CPU."""

from dataclasses import replace

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

import resnet_core
from resnet_core.distributed.world import World, join_world
from resnet_core.foundation.precision import same_bits
from resnet_core.recipes import RECIPES, make_trainer
from resnet_core.train import StoppedError, TrainConfig
from resnet_core.train.forward import prepare_model
from resnet_core.train.graphs import RecordedGradients

pytestmark = pytest.mark.gpu
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


def recipe(**train):
    digits = RECIPES["digits"]
    return replace(
        digits,
        schedule=replace(digits.schedule, warmup_epochs=1.0),
        train=replace(digits.train, epochs=2, **train),
        run=replace(digits.run, device=DEVICE),
    )


def trained(folder=None, stop_asked=lambda: False, **train):
    """The trainer after its run, and the scores."""
    with join_world(DEVICE) as world:
        trainer = make_trainer(recipe(**train), world, folder=folder, stop_asked=stop_asked)
        return trainer, trainer.fit()


def test_nccl_with_one_process_gives_the_gradients_of_the_network_alone():
    torch.manual_seed(0)
    model = resnet_core.cifar_resnet20().double().to(DEVICE)  # in float32 no two backwards agree on a GPU
    images = torch.randn(4, 3, 32, 32, device=DEVICE, dtype=torch.float64)
    model(images).sum().backward()
    expected = [parameter.grad.clone() for parameter in model.parameters()]
    model.zero_grad()
    backend, device = ("nccl", torch.device("cuda:0")) if DEVICE == "cuda" else ("gloo", None)
    dist.init_process_group(backend, store=dist.HashStore(), rank=0, world_size=1, device_id=device)
    try:
        DistributedDataParallel(model)(images).sum().backward()
    finally:
        dist.destroy_process_group()
    for parameter, gradient in zip(model.parameters(), expected, strict=True):
        torch.testing.assert_close(parameter.grad, gradient)


def test_a_stopped_run_continues_to_the_same_bits(tmp_path):
    whole, _ = trained(tmp_path / "whole", deterministic=True)
    asked = iter([False] * 30)
    with pytest.raises(StoppedError):
        trained(tmp_path / "cut", stop_asked=lambda: next(asked, True), deterministic=True)
    continued, _ = trained(tmp_path / "cut", deterministic=True)
    assert continued.step == whole.step
    for name, value in whole.weights().items():
        assert same_bits(continued.weights()[name], value), name


@pytest.mark.skipif(DEVICE == "cpu", reason="CUDA graphs need a GPU; tests/train/test_config.py has the refusal")
@pytest.mark.parametrize("train", [{}, {"accumulation": 2}, {"precision": "bf16", "channels_last": True}])
def test_a_cuda_graph_gives_the_bits_of_its_kernels_called_one_by_one(train):
    plain, scores = trained(deterministic=True, **train)
    recorded, recorded_scores = trained(deterministic=True, cuda_graphs=True, **train)
    assert recorded_scores == scores
    for name, value in plain.weights().items():
        assert same_bits(recorded.weights()[name], value), name


@pytest.mark.skipif(DEVICE == "cpu", reason="CUDA graphs need a GPU")
def test_a_cuda_graph_draws_new_numbers_at_each_replay():
    model = nn.Sequential(nn.Linear(64, 64), nn.Dropout(0.5)).to(DEVICE)
    inputs = torch.ones(2, 64, device=DEVICE)

    def gradients(inputs, targets):
        model.zero_grad()
        loss = model(inputs).sum()
        loss.backward()
        return loss.detach()

    recorded = RecordedGradients(gradients, model, memory_format=torch.preserve_format)
    for step in range(3):
        torch.manual_seed(step)
        loss = recorded(inputs, inputs).clone()
        bias = model[0].bias.grad.clone()
        torch.manual_seed(step)
        assert same_bits(gradients(inputs, inputs), loss)
        assert same_bits(model[0].bias.grad, bias)


@pytest.mark.filterwarnings("ignore:TensorFloat32 tensor cores:UserWarning")  # float32 was asked for
@pytest.mark.parametrize("train", [{"precision": "bf16", "channels_last": True}, {"compile": True}])
def test_a_faster_form_learns_as_well(train):
    _, plain = trained()
    _, scores = trained(**train)
    assert scores["top1"] > plain["top1"] - 0.1


def test_sync_batchnorm_works_on_a_gpu_and_is_refused_on_the_cpu():
    config = TrainConfig(sync_batchnorm=True)
    model = resnet_core.cifar_resnet20()
    world = World(device=torch.device(DEVICE))
    if DEVICE == "cpu":
        with pytest.raises(ValueError, match="sync_batchnorm"):
            prepare_model(model, config, world)
    else:
        prepared = prepare_model(model, config, world).train()
        assert any(isinstance(module, nn.SyncBatchNorm) for module in prepared.modules())
        assert prepared(torch.randn(2, 3, 32, 32, device=DEVICE)).isfinite().all()
