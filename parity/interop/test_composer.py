"""MosaicML Composer 0.32: its losses and initializers give our numbers, and its Trainer trains our classifier."""

import copy
import pickle

import pytest
import torch
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

import resnet_core
from parity.oracles.composer import BLOCKS, network
from resnet_core.classifier import losses
from resnet_core.classifier.builders import composer_resnet, composer_resnet_cifar
from resnet_core.classifier.classifier import PROBABILITIES, Classifier
from resnet_core.classifier.initializers import Initializer
from resnet_core.foundation.precision import same_bits

pytestmark = pytest.mark.interop

composer = pytest.importorskip("composer")
pytest.importorskip("torchmetrics")


def pictures(count=48, size=32, num_classes=3):
    """Images that are noise brightened by their class."""
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(count) % num_classes
    images = torch.randn(count, 3, size, size, generator=generator)
    return images + labels.reshape(-1, 1, 1, 1), labels


def targets(logits, indices):
    """(kind, target): indices, some below 0, one-hot, smoothed, and rows of zeros."""
    one_hot = F.one_hot(indices, logits.shape[1]).movedim(-1, 1)
    yield "indices", indices
    yield (
        "one below 0",
        torch.where(torch.arange(len(indices)).reshape(-1, *[1] * (indices.ndim - 1)) == 0, -1, indices),
    )
    yield "one-hot", one_hot
    yield "smoothed", one_hot * 0.9 + 0.1 / logits.shape[1]
    yield "row of zeros", one_hot * (torch.arange(len(indices)) > 0).reshape(-1, *[1] * (logits.ndim - 1))


@pytest.mark.filterwarnings("ignore:Some targets have", "ignore:Negative ", "ignore:ignore_index")
@pytest.mark.parametrize("reduction", ["none", "mean", "sum"])
@pytest.mark.parametrize("shape", [(4, 3), (2, 5, 3), (3, 2, 2, 4)])
@pytest.mark.parametrize("weighted", [False, True])
def test_losses_are_composers_to_the_bit(shape, reduction, weighted):
    generator = torch.Generator().manual_seed(0)
    logits = 5 * torch.randn(shape, generator=generator)
    indices = torch.randint(shape[1], (shape[0], *shape[2:]), generator=generator)
    weight = torch.rand(shape[1], generator=generator) if weighted else None
    per_class = weight.reshape(-1, *[1] * (len(shape) - 2)) if weighted else None
    cases = [
        ("soft_cross_entropy", {"weight": weight, "ignore_index": -1}),
        ("binary_cross_entropy_with_logits", {"weight": per_class}),
        ("binary_cross_entropy_with_logits", {"pos_weight": per_class, "scale_by_batch_size": False}),
    ]
    for kind, target in targets(logits, indices):
        for name, options in cases:
            ours = losses.LOSSES[name](logits, target, reduction=reduction, **options)
            theirs = getattr(composer.loss, name)(logits, target, reduction=reduction, **options)
            assert same_bits(ours, theirs), (kind, name, ours, theirs)


@pytest.mark.parametrize("name", list(Initializer))
def test_initializers_are_composers_to_the_bit(name):
    states = []
    for library in (Initializer, composer.models.Initializer):
        torch.manual_seed(0)
        model = resnet_core.resnet18(num_classes=10)
        model.apply(library(name).get_initializer())
        states.append(model.state_dict())
    assert all(same_bits(states[0][key], states[1][key]) for key in states[1])


def test_composers_own_enum_names_our_initializers():
    ones = composer.models.Initializer.BN_ONES
    assert Initializer(ones) is Initializer.BN_ONES
    assert composer_resnet_cifar("resnet_20", initializers=[ones]).num_classes == 10


@pytest.mark.parametrize("clone", [copy.deepcopy, lambda model: pickle.loads(pickle.dumps(model))])
def test_the_classifier_is_a_composer_model_and_copies_stay_so(clone):
    for model in (composer_resnet("resnet18", 3), composer_resnet_cifar("resnet_20", 3)):
        for each in (model, clone(model)):
            assert isinstance(each, Classifier)
            assert isinstance(each, composer.ComposerModel)
        images, labels = pictures(4)
        assert same_bits(clone(model).eval()((images, labels)), model.eval()((images, labels)))


def test_metrics_are_composers_where_batches_are_equal_and_a_mean_over_images_where_not():
    model = composer_resnet("resnet18", 3).eval()
    theirs = composer.models.ComposerClassifier(model.module, num_classes=3)
    images, labels = pictures(10)
    logits = model((images, labels)).detach()
    assert list(model.get_metrics(is_train=True)) == list(theirs.get_metrics(is_train=True)) == ["MulticlassAccuracy"]
    for sizes in ([5, 5], [8, 2]):
        results = []
        for classifier in (model, theirs):
            metrics = classifier.get_metrics(is_train=False)
            for metric in metrics.values():
                metric.reset()
                for outputs, part in zip(logits.split(sizes), labels.split(sizes), strict=True):
                    classifier.update_metric((None, part), outputs, metric)
            results.append({name: metric.compute().item() for name, metric in metrics.items()})
        assert list(results[0]) == ["CrossEntropy", "MulticlassAccuracy"]
        assert results[0].keys() == results[1].keys()
        assert results[0]["MulticlassAccuracy"] == pytest.approx((logits.argmax(1) == labels).float().mean().item())
        assert results[0]["CrossEntropy"] == pytest.approx(F.cross_entropy(logits, labels).item())
        assert (results[0] == pytest.approx(results[1])) == (sizes == [5, 5])


def test_a_loss_that_is_no_number_shows_in_the_metric():
    model = composer_resnet("resnet18", 3)
    metric = model.get_metrics()["CrossEntropy"]
    for logits in (torch.zeros(2, 3), torch.full((2, 3), torch.nan)):
        model.update_metric((None, torch.tensor([0, 1])), logits, metric)
    assert metric.compute().isnan()


def fit(model, **options):
    """Composer's Trainer after two epochs, and the training loss of each batch."""
    data = TensorDataset(*pictures())
    logger = composer.loggers.InMemoryLogger()
    trainer = composer.Trainer(
        model=model,
        train_dataloader=DataLoader(data, batch_size=12),
        eval_dataloader=DataLoader(data, batch_size=20),  # 20, 20 and 8
        max_duration="2ep",
        optimizers=torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9),
        device="cpu",
        progress_bar=False,
        loggers=[logger],
        seed=0,
        **options,
    )
    trainer.fit()
    return trainer, [value for _, value in logger.data["loss/train/total"]]


SMALL_BATCH = "ignore:Cannot split tensor of length"  # Composer of each batch that is smaller than the others


@pytest.mark.filterwarnings(SMALL_BATCH)
@pytest.mark.parametrize("loss_name", list(PROBABILITIES))
def test_composers_trainer_trains_and_evaluates_our_classifier(loss_name):
    initializers = ["kaiming_normal", "bn_ones", "linear_log_constant_bias"]
    model = composer_resnet("resnet18", 3, initializers=initializers, loss_name=loss_name)
    before = copy.deepcopy(model.state_dict())
    trainer, trained = fit(model)
    assert len(trained) == 8
    assert trained[-1] < trained[0]
    after = model.state_dict()
    assert all(not torch.equal(before[key], after[key]) for key in before)
    train, evaluation = trainer.state.train_metrics, trainer.state.eval_metrics["eval"]
    assert list(train) == ["MulticlassAccuracy"]
    assert list(evaluation) == ["CrossEntropy", "MulticlassAccuracy"]
    assert all(metric.update_called for metric in (*train.values(), *evaluation.values()))
    images, labels = pictures()
    logits = model.eval().module(images)
    assert evaluation["CrossEntropy"].compute().item() == pytest.approx(F.cross_entropy(logits, labels).item(), 1e-3)
    accuracy = (logits.argmax(1) == labels).float().mean().item()
    assert evaluation["MulticlassAccuracy"].compute().item() == pytest.approx(accuracy)
    print(f"\n{loss_name}: loss {trained[0]:.3f} -> {trained[-1]:.3f},", end=" ")
    print({f"train {name}": round(metric.compute().item(), 4) for name, metric in train.items()}, end=" ")
    print({f"eval {name}": round(metric.compute().item(), 4) for name, metric in evaluation.items()})


@pytest.mark.filterwarnings(SMALL_BATCH)
def test_composers_selective_backprop_finds_the_losss_reduction():
    half = composer.algorithms.SelectiveBackprop(start=0.0, end=1.0, keep=0.5, interrupt=0)
    _, trained = fit(composer_resnet_cifar("resnet_20", 3), algorithms=[half])
    assert len(trained) == 8


@pytest.mark.parametrize("name", BLOCKS)
def test_cifar_networks_compute_what_composers_plan_says(name):
    ours, theirs = composer_resnet_cifar(name).module, network(name)
    theirs.load_state_dict(dict(zip(theirs.state_dict(), ours.state_dict().values(), strict=True)))
    images, _ = pictures(4)
    assert same_bits(ours.train()(images), theirs.train()(images))
    assert same_bits(ours.eval()(images), theirs.eval()(images))
