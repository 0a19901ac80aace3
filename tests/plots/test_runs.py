"""Several runs drawn, to be compared."""

import shutil

import numpy as np
import pytest

from jaxopt_tf.plots import plot_runs


def names_in(figure):
    (legend,) = figure.legends
    return [text.get_text() for text in legend.get_texts()]


def test_draws_ours_and_a_trainers_side_by_side(our_run, trainer_run, tmp_path):
    path = tmp_path / "runs.png"
    figure = plot_runs([our_run, trainer_run], path)
    assert names_in(figure) == ["ours", "output"]
    assert [panel.get_ylabel() for panel in figure.axes] == [
        "training loss,\nsmoothed",
        "held-out loss",
        "learning rate",
        "gradient norm\n(before clipping)",
        "update norm /\nparameter norm",
    ]
    for panel in figure.axes:
        ours, theirs = panel.get_lines()
        assert ours.get_linestyle() != theirs.get_linestyle()
        assert np.isfinite(ours.get_ydata()).any()
    # The last panel has nothing of the Trainer's to show.
    assert not np.isfinite(theirs.get_ydata()).any()
    assert path.read_bytes().startswith(b"\x89PNG")


def test_a_panel_that_no_run_has_numbers_for_is_left_out(trainer_run):
    figure = plot_runs({"one": trainer_run, "two": trainer_run / "checkpoint-4"})
    assert names_in(figure) == ["one", "two"]
    assert len(figure.axes) == 4


def test_runs_whose_folders_have_one_name_are_named_in_full(our_run, tmp_path):
    other = tmp_path / "other" / "ours"
    shutil.copytree(our_run, other)
    assert names_in(plot_runs([our_run, other])) == [str(our_run), str(other)]


def test_refuses_none():
    with pytest.raises(ValueError, match="`folders` must hold at least one"):
        plot_runs([])


def test_refuses_a_single_folder(our_run):
    with pytest.raises(TypeError, match=r"must be a sequence of folders.*`plot_run`"):
        plot_runs(str(our_run))


def test_names_the_folder_that_is_no_run(our_run, tmp_path):
    with pytest.raises(ValueError, match="nowhere"):
        plot_runs([our_run, tmp_path / "nowhere"])
