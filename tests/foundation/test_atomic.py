"""Files appear whole or not at all."""

import os

import pytest

from resnet_core.foundation.atomic import replace_file, replacing


def full(descriptor):
    raise OSError(28, "No space left on device")


def test_a_file_is_replaced_whole(tmp_path):
    path = tmp_path / "result.json"
    for data in (b"old", b"new"):
        replace_file(path, data)
        assert path.read_bytes() == data
    assert list(tmp_path.iterdir()) == [path]


def test_a_failed_write_leaves_the_old_file_and_no_leftovers(tmp_path, monkeypatch):
    path = tmp_path / "result.json"
    replace_file(path, b"old")
    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        replace_file(path, b"new")
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_an_exception_removes_what_was_written(tmp_path, error):
    def write():
        with replacing(tmp_path / "weights") as aside:
            aside.write_bytes(b"half")
            assert list(tmp_path.iterdir()) == [aside]
            raise error

    with pytest.raises(error):
        write()
    assert list(tmp_path.iterdir()) == []
