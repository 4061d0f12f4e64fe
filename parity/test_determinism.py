"""The batches of both decoders are the same whatever the workers and ranks, and after a resume."""

import pytest
import torch

from parity import determinism
from parity.benchmarks.scaling import write_photographs

pytestmark = [
    pytest.mark.filterwarnings("ignore:This DataLoader will create"),
    pytest.mark.filterwarnings("ignore:.*is multi-threaded:DeprecationWarning"),
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("photographs")
    write_photographs(folder, (96, 128), count=determinism.IMAGES)
    return folder


@pytest.mark.parametrize("decoder", determinism.DECODERS)
@pytest.mark.parametrize(("workers", "ranks"), [(1, 3), (3, 2), (0, 4)])
def test_batches_do_not_depend_on_workers_ranks_or_a_resume(folder, decoder, workers, ranks):
    reference = list(determinism.epoch_of(folder, decoder, workers=0, ranks=1))
    assert determinism.verdict(reference, folder, decoder, workers=workers, ranks=ranks) == "equal, equal"


def test_a_difference_is_seen(folder):
    reference = list(determinism.epoch_of(folder, "simplejpeg", workers=0, ranks=1))
    reference[-1] = tuple(torch.roll(each, 1, 0) for each in reference[-1])
    seen = determinism.verdict(reference, folder, "simplejpeg", workers=0, ranks=2)
    assert seen == "different, different after a resume"
