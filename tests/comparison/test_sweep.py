"""The doctor's confusion table: a part of it, made here, and the whole as it is published."""

import re
from pathlib import Path

import pytest

from parity.patients.scoped import FAMILIES, draw
from parity.sweep import PAGE, judged

CASES = [(family, count, seed) for family in FAMILIES for count in (1, 2, 3, 4) for seed in range(1000, 1005)]


@pytest.mark.parametrize(("family", "count", "seed"), CASES)
def test_planted_mistakes_are_named_and_no_others(family, count, seed):
    result = judged(family, draw(seed, FAMILIES[family], count))
    assert result is None or result.explained, result


def test_the_published_table_has_no_wrong_names_and_few_gaps():
    text = Path(PAGE).read_text()
    networks, explained, wrong, crashes = map(
        int,
        re.search(r"^(\d+) networks: (\d+) fully.*?, (\d+) with a name.*?, (\d+) crashes", text, re.MULTILINE).groups(),
    )
    assert networks >= 200
    assert explained >= 0.95 * networks
    assert wrong == crashes == 0
