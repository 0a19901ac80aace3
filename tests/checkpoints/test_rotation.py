"""Deletion of old checkpoints against Transformers' `rotate_checkpoints`."""

import pathlib
import tempfile

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers.trainer_utils import rotate_checkpoints

from jaxopt_tf.checkpoints._save import (
    commit,
    find_checkpoints,
    remove_incomplete,
    rotate,
)

# Few numbers, so that the best is now one of them and now not.
steps = st.sets(st.integers(0, 20), min_size=1, max_size=12)
limits = st.sampled_from([None, 0, 1, 1, 2, 3, 14])


def make_checkpoints(folder, steps):
    folder.mkdir(parents=True, exist_ok=True)
    for step in steps:
        (folder / f"checkpoint-{step}").mkdir()
        (folder / f"checkpoint-{step}" / "file").touch()
    return folder


def names(folder):
    return sorted(path.name for path in folder.iterdir())


@settings(deadline=None)  # folders are made
@given(steps, limits, st.none() | st.integers(0, 20))
def test_keeps_what_transformers_keeps(steps, limit, best):
    with tempfile.TemporaryDirectory() as folder:
        ours = make_checkpoints(pathlib.Path(folder) / "ours", steps)
        theirs = make_checkpoints(pathlib.Path(folder) / "theirs", steps)
        rotate(ours / f"checkpoint-{max(steps)}", limit, best)
        # The Trainer knows a best checkpoint only where there is one.
        path = str(theirs / f"checkpoint-{best}") if best in steps else None
        rotate_checkpoints(str(theirs), limit, path)
        assert names(ours) == names(theirs)


def test_rotation_keeps_the_newest_save_even_if_others_have_a_higher_step(tmp_path):
    make_checkpoints(tmp_path, [10, 15, 20, 30])
    rotate(tmp_path / "checkpoint-15", 1, None)
    assert names(tmp_path) == ["checkpoint-15"]


def test_finds_checkpoints_in_the_order_of_their_steps(tmp_path):
    make_checkpoints(tmp_path, [100, 20, 3])
    (tmp_path / "checkpoint-4").touch()
    for name in ("checkpoint-5x", "checkpoint-", "checkpoint-6.orbax-checkpoint-tmp"):
        (tmp_path / name).mkdir()
    found = [path.name for path in find_checkpoints(tmp_path)]
    assert found == ["checkpoint-3", "checkpoint-20", "checkpoint-100"]
    assert find_checkpoints(tmp_path / "nowhere") == []


def test_removes_incomplete_checkpoints(tmp_path):
    left = ["checkpoint-2.orbax-checkpoint-tmp", "deleted-checkpoint-1"]
    left += ["deleted-replaced-checkpoint-1", "replaced-checkpoint-3"]
    for name in ["checkpoint-3", "runs", *left]:
        (tmp_path / name).mkdir()
        (tmp_path / name / "file").touch()
    said = []
    remove_incomplete(tmp_path, said.append)
    assert names(tmp_path) == ["checkpoint-3", "runs"]
    assert said == [
        f"{left[0]} is incomplete: its save was interrupted. It is deleted."
    ]


def test_restores_the_replaced_checkpoint_if_the_new_one_is_missing(tmp_path):
    make_checkpoints(tmp_path, [3])
    (tmp_path / "checkpoint-3").rename(tmp_path / "replaced-checkpoint-3")
    remove_incomplete(tmp_path, print)
    assert names(tmp_path) == ["checkpoint-3"]
    assert names(tmp_path / "checkpoint-3") == ["file"]


@pytest.mark.parametrize("is_there", [False, True], ids=["new", "again"])
def test_commit_renames_the_folder(tmp_path, is_there):
    if is_there:
        make_checkpoints(tmp_path, [3])
    complete = tmp_path / "checkpoint-3.orbax-checkpoint-tmp"
    complete.mkdir()
    (complete / "new file").touch()
    commit(complete, tmp_path / "checkpoint-3")
    assert names(tmp_path) == ["checkpoint-3"]
    assert names(tmp_path / "checkpoint-3") == ["new file"]
