"""The benchmark of loading: everyone goes over all files, and ratios are those of pairs."""

import pytest

from parity.benchmarks.data import CONTENDERS, DECODING, Measured, Row, differences, in_turn, rows_of
from parity.benchmarks.scaling import write_photographs


@pytest.mark.filterwarnings("ignore:.*deprecated")
def test_each_contender_prepares_every_file(tmp_path):
    write_photographs(tmp_path, (72, 96), count=32)
    for name, contender in (CONTENDERS | DECODING).items():
        assert contender(tmp_path, 0)(1) == 32, name
    assert differences(tmp_path)["mean"] < 0.1  # of 0..255: nothing is reduced


def test_rates_are_medians_and_ratios_are_of_pairs():
    mine = [Measured(100, seconds, 2 * seconds) for seconds in (1.0, 2.0, 4.0)]
    theirs = [Measured(100, seconds, seconds) for seconds in (3.0, 2.0, 8.0)]
    assert rows_of({"mine": mine, "theirs": theirs}, "mine") == {
        "mine": Row(50, 25, 1),
        "theirs": Row(100 / 3, 100 / 3, 2),
    }


def test_everyone_has_a_turn_in_each_round_after_one_to_warm_up():
    turns = []
    times = in_turn({name: lambda epoch, name=name: turns.append(name) or 1 for name in "ab"}, rounds=2)
    assert {name: len(found) for name, found in times.items()} == {"a": 2, "b": 2}
    assert turns == ["b", "a", "a", "b", "b", "a"]
