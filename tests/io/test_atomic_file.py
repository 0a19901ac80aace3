"""Atomic writing of files."""

import pytest

from jaxopt_tf._io._atomic_file import atomic_write


def test_takes_the_place_of_the_old_one_at_the_end(tmp_path):
    path = tmp_path / "file"
    path.write_text("old")
    with atomic_write(path) as new_path:
        new_path.write_text("new")
        assert path.read_text() == "old"
    assert path.read_text() == "new"
    assert list(tmp_path.iterdir()) == [path]


def test_the_old_one_stays_where_the_new_one_fails(tmp_path):
    path = tmp_path / "file"
    path.write_text("old")
    with pytest.raises(TypeError), atomic_write(path) as new_path:
        new_path.write_text(b"not text")
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_what_a_kill_has_left_is_written_over(tmp_path):
    path = tmp_path / "file"
    for _ in range(2):
        killed = atomic_write(path)
        killed.__enter__().write_text("half")
    with atomic_write(path) as new_path:
        new_path.write_text("new")
    assert path.read_text() == "new"
    assert list(tmp_path.iterdir()) == [path]
