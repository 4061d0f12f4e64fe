"""Files that real libraries wrote of a torchvision network: ours from them gives that network's logits bitwise."""

import argparse
import copy

import pytest
import torch
import torch.distributed.checkpoint as dcp
import torchvision
from torch import nn
from torch.distributed.checkpoint.state_dict import get_state_dict
from torch.nn.utils import prune
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from parity.drop_in import images
from resnet_core.comparison.trace import calibrate
from resnet_core.foundation.precision import same_bits
from resnet_core.weights.inspect import inspect_weights
from resnet_core.weights.pretrained import load_model

pytestmark = [pytest.mark.interop, pytest.mark.filterwarnings("ignore")]

CLASSES = 5
INPUTS = images(batch=4, size=64)
LABELS = torch.arange(4)


@pytest.fixture
def network():
    torch.manual_seed(0)
    model = torchvision.models.resnet18(num_classes=CLASSES)
    calibrate(model, images(seed=1, batch=4))
    return model


def step(model, optimizer):
    model.train()
    nn.functional.cross_entropy(model(INPUTS), LABELS).backward()
    optimizer.step()
    optimizer.zero_grad()


# Each trains the network for a step and saves it: the file, and the network that was saved where it is another.


def timm_with_an_average(network, folder):
    checkpoints = pytest.importorskip("timm.utils")
    optimizer, average = torch.optim.SGD(network.parameters(), 0.1), checkpoints.ModelEmaV3(network, decay=0.5)
    step(network, optimizer)
    average.update(network)
    args = argparse.Namespace(model="resnet18", lr=0.1)
    saver = checkpoints.CheckpointSaver(
        network, optimizer, args=args, model_ema=average, checkpoint_dir=folder, recovery_dir=folder
    )
    saver.save_checkpoint(epoch=0, metric=7.0)
    return folder / "model_best.pth.tar", average.module


def timm_without_the_average(network, folder):
    return timm_with_an_average(network, folder)[0], network, {"key": "state_dict"}


def lightning(network, folder):
    lightning = pytest.importorskip("lightning")

    class Module(lightning.LightningModule):
        def __init__(self, network):
            super().__init__()
            self.save_hyperparameters({"lr": 0.1, "kind": argparse.Namespace(a=1)})
            self.backbone = network
            self.criterion = nn.CrossEntropyLoss(weight=torch.ones(CLASSES))

        def training_step(self, batch, index):
            return self.criterion(self.backbone(batch[0]), batch[1])

        def configure_optimizers(self):
            optimizer = torch.optim.AdamW(self.parameters(), 0.01)
            return [optimizer], [torch.optim.lr_scheduler.MultiStepLR(optimizer, [1, 2])]

    samples = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(INPUTS, LABELS), batch_size=4)
    quiet = {"enable_progress_bar": False, "enable_model_summary": False}
    trainer = lightning.Trainer(max_epochs=1, accelerator="cpu", default_root_dir=folder, **quiet)
    trainer.fit(Module(network), samples)
    trainer.save_checkpoint(folder / "epoch=0.ckpt")
    return folder / "epoch=0.ckpt", network


def lightnings_root_folder(network, folder):
    lightning(network, folder / "root")[0].unlink()
    return folder / "root", network  # with lightning_logs/version_0/checkpoints/


def accelerates_state(network, folder):
    accelerate = pytest.importorskip("accelerate")
    accelerator = accelerate.Accelerator(cpu=True)
    prepared, optimizer = accelerator.prepare(network, torch.optim.SGD(network.parameters(), 0.1, momentum=0.9))
    step(prepared, optimizer)
    accelerator.save_state(folder / "state")
    return folder / "state", network


def accelerates_shards(network, folder):
    accelerate = pytest.importorskip("accelerate")
    accelerate.Accelerator(cpu=True).save_model(network, folder / "model", max_shard_size="20MB")
    assert len(list((folder / "model").glob("*.safetensors"))) > 1
    return folder / "model", network


def distributed_checkpoint(network, folder):
    optimizer = torch.optim.AdamW(network.parameters(), 0.01)
    step(network, optimizer)
    model, states = get_state_dict(network, optimizer)
    dcp.save({"model": model, "optimizer": states, "epoch": 3}, checkpoint_id=folder / "dcp", no_dist=True)
    return folder / "dcp", network


def averaged_model(network, folder):
    average = AveragedModel(network, multi_avg_fn=get_ema_multi_avg_fn(0.5), use_buffers=True)
    step(network, torch.optim.SGD(network.parameters(), 0.1))
    average.update_parameters(network)
    torch.save(average.state_dict(), folder / "average.pth")
    return folder / "average.pth", average.module


def counters_of_thop(network, folder):
    thop = pytest.importorskip("thop")
    plain = copy.deepcopy(network)
    thop.profile(network, inputs=(INPUTS,), verbose=False)
    counted = {name: torch.zeros(1) for name in ("total_ops", "total_params", "layer1.0.conv1.total_ops")}
    torch.save(network.state_dict() | counted, folder / "counted.pth")  # it forgets them, if it is not interrupted
    return folder / "counted.pth", plain


def pruned(network, folder):
    convolutions = [(module, "weight") for module in network.modules() if isinstance(module, nn.Conv2d)]
    prune.global_unstructured(convolutions, prune.L1Unstructured, amount=0.3)
    torch.save({"model": network.state_dict(), "sparsity": 0.3}, folder / "pruned.pth")
    return folder / "pruned.pth", network


WRITERS = [
    timm_with_an_average, timm_without_the_average, lightning, lightnings_root_folder, accelerates_state,
    accelerates_shards,
    distributed_checkpoint, averaged_model, counters_of_thop, pruned,
]  # fmt: skip


@pytest.mark.parametrize("write", WRITERS, ids=lambda write: write.__name__)
@torch.no_grad()
def test_a_file_of_a_real_library_gives_its_networks_logits_bitwise(write, network, tmp_path):
    with torch.enable_grad():
        path, saved, *options = write(network, tmp_path)
    ours, info = load_model(path, **(options[0] if options else {}))
    assert (info.model, info.config) == ("resnet18", {"num_classes": CLASSES})
    assert same_bits(ours(images(seed=7)), saved.eval()(images(seed=7)))
    assert all(network.model == "resnet18" for network in inspect_weights(path).networks)
