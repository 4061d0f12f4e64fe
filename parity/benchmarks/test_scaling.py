"""ImageNet on paper: its arithmetic, its page, and what is measured for it."""

import re
import statistics
from dataclasses import replace
from pathlib import Path

import pytest

from parity.benchmarks import scaling
from parity.benchmarks.scaling import (
    GPUS,
    Estimate,
    Site,
    activation_bytes,
    batch_seconds,
    gradient_bytes,
    main,
    weights_bytes,
    write_photographs,
)

CARD, A100, H100, H200, _ = GPUS
PAGE = Path(__file__).parents[2] / "docs" / "scaling.md"
ENOUGH = Site(cores=1000)


def test_the_card_trains_8363_images_a_second_on_its_8_gpus():
    rate = 90 * 1_281_167 / (3.83 * 3600)
    assert rate == pytest.approx(8362.7, abs=0.1)
    assert CARD.images_per_second == pytest.approx(rate / 8)


def test_the_cards_hours_come_back_plus_evaluations_and_checkpoints():
    hours = Estimate(CARD, 8, ENOUGH).hours
    evaluations, checkpoints = 90 * 50_000 / (3 * 8362.7) / 3600, 90 * 0.6 / 3600
    assert hours - evaluations - checkpoints == pytest.approx(3.83, rel=0.001)  # epochs lose their last 1,167


@pytest.mark.parametrize("gpus", [2, 8])
def test_the_network_takes_as_long_as_a_ring_that_passes_each_part_around_twice(gpus):
    """Scatter-reduce and all-gather: each of the gpus sends one part to its neighbour, gpus - 1 times in each."""
    part = gradient_bytes() / gpus
    sent = sum(part for phase in ("reduce", "gather") for _ in range(gpus - 1))
    assert Estimate(H100, gpus, Site()).network == pytest.approx(sent / H100.link)


def test_the_network_is_hidden_behind_the_backward_until_it_is_longer():
    hidden, bare = Estimate(H100, 64, ENOUGH), Estimate(H200, 64, ENOUGH)
    assert hidden.computed == hidden.compute
    assert bare.computed == pytest.approx(bare.compute / 3 + bare.network)
    assert (hidden.bounds, bare.bounds) == (["compute"] * 2, ["network"] * 2)


@pytest.mark.parametrize("gpu", GPUS, ids=lambda gpu: gpu.name)
@pytest.mark.parametrize("gpus", [1, 8, 64])
def test_as_many_cores_as_it_says_keep_up_and_one_fewer_does_not(gpu, gpus):
    cores = Estimate(gpu, gpus, Site()).enough_cores
    assert Estimate(gpu, gpus, Site(cores=cores)).bounds[0] != "data"
    assert Estimate(gpu, gpus, Site(cores=cores - 1)).bounds[0] == "data"


def test_a_batch_is_cut_until_its_parts_fit_into_memory():
    assert [Estimate(gpu, 1, Site()).parts for gpu in (A100, H200)] == [2, 1]
    small = replace(A100, memory=weights_bytes() + 256 * activation_bytes())
    assert [Estimate(small, gpus, Site()).parts for gpus in (1, 4, 8)] == [8, 2, 1]


def test_the_page_shows_what_the_command_prints(capsys):
    page = PAGE.read_text()
    shown = re.findall(r"^\$ python -m parity.benchmarks.scaling(| .*\d)$", page, re.MULTILINE)
    assert len(shown) == 2
    for arguments in shown:
        main(arguments.split())
        tables = capsys.readouterr().out.strip().split("\n\n")
        assert len(tables) == 3
        for table in tables if not arguments else tables[1:2]:
            assert table in page


def test_the_page_shows_the_memory_that_is_reckoned_with():
    gib = (weights_bytes() + 256 * activation_bytes()) / 2**30
    assert f"about {gib:.2f} GiB a process" in PAGE.read_text()


def test_a_rate_of_your_own_stands_in_for_the_published_ones(capsys):
    main(["--images-per-second", "2790", "--gpus", "8"])
    _, steps, runs = capsys.readouterr().out.strip().split("\n\n")
    main(["--gpus", "8"])
    for mine, table in zip((steps, runs), capsys.readouterr().out.strip().split("\n\n")[1:], strict=True):
        h100 = next(line for line in table.splitlines() if "H100" in line)
        assert mine.splitlines()[-1].split()[3:] == h100.split()[3:]


@pytest.mark.parametrize("gpus", ["0", "3", "4096"])
def test_numbers_of_gpus_that_do_not_divide_the_batch_are_refused(gpus, capsys):
    with pytest.raises(SystemExit) as exit:
        main(["--gpus", gpus])
    assert exit.value.code == 2
    rule = f"{gpus} GPUs do not divide the global batch of 2048; take a power of two up to it"
    assert rule in capsys.readouterr().err


@pytest.mark.parametrize("option", ["--images-per-second", "--cores", "--images-per-core", "--gigabits", "--dollars"])
def test_rates_and_prices_must_be_above_0(option, capsys):
    with pytest.raises(SystemExit) as exit:
        main([option, "0"])
    assert exit.value.code == 2
    assert f"argument {option}: must be above 0 and finite, got 0" in capsys.readouterr().err


def test_the_loader_is_measured_on_files_like_imagenets(tmp_path):
    assert write_photographs(tmp_path, scaling.TYPICAL, count=16) == pytest.approx(scaling.FILE_BYTES, rel=0.02)
    seconds = list(batch_seconds(tmp_path))
    assert len(seconds) == scaling.MEASURED_EPOCHS
    assert 0 < statistics.median(seconds) < 60
