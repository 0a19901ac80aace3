"""Figures of one run and of several runs."""

import json
import shutil

import numpy as np
import pytest

from jaxopt_tf.plots import plot_run, plot_runs
from jaxopt_tf.plots._run import smoothed
from tests.plots.conftest import NUM_STEPS


def drawn(panel):
    return {line.get_label(): line.get_xydata() for line in panel.get_lines()}


def test_draws_what_our_run_wrote_down(our_run, tmp_path):
    path = tmp_path / "run.svg"
    figure = plot_run(our_run, path)
    losses, rate, grads, ratio = figure.axes
    labels = [panel.get_ylabel() for panel in figure.axes]
    assert labels == [
        "loss",
        "learning rate",
        "gradient norm\n(before clipping)",
        "update norm /\nparameter norm",
    ]
    assert losses.get_title(loc="left") == "ours"
    lines = drawn(losses)
    evaluations = lines["evaluation: 2.25 at the end, 2.25 at best (step 40)"]
    np.testing.assert_array_equal(evaluations, [[20, 2.5], [40, 2.25]])
    assert "skipped steps: 1" in lines
    assert "single steps" in lines
    x, y = lines["training"].T
    np.testing.assert_array_equal(x, np.arange(1, NUM_STEPS + 1))
    np.testing.assert_allclose(np.delete(y, 10), np.linspace(4, 2, 40)[x != 11])
    rates = np.linspace(0, 1e-3, NUM_STEPS)
    np.testing.assert_allclose(rate.get_lines()[0].get_ydata(), rates, rtol=1e-6)
    np.testing.assert_allclose(grads.get_lines()[0].get_ydata()[[0, -1]], [3, 1])
    ratios = ratio.get_lines()[0].get_ydata()
    assert np.isnan(ratios[10])  # the step that was skipped
    np.testing.assert_allclose(ratios[-1], 2e-3, rtol=1e-6)
    assert path.exists()


def test_draws_what_a_trainer_wrote_down(trainer_run):
    figure = plot_run(trainer_run)
    state = json.loads((trainer_run / "checkpoint-8/trainer_state.json").read_text())
    entries = [entry for entry in state["log_history"] if "loss" in entry]
    assert len(entries) == 8
    labels = [panel.get_ylabel() for panel in figure.axes]
    assert labels == ["loss", "learning rate", "gradient norm\n(before clipping)"]
    losses, rate, grads = figure.axes
    for panel, label, name in (
        (losses, "training", "loss"),
        (rate, None, "learning_rate"),
        (grads, None, "grad_norm"),
    ):
        lines = drawn(panel)
        x, y = (lines[label] if label else next(iter(lines.values()))).T
        np.testing.assert_array_equal(x, [entry["step"] for entry in entries])
        np.testing.assert_allclose(y, [entry[name] for entry in entries])
    line = next(y for name, y in drawn(losses).items() if "evaluation" in name)
    evaluations = [entry for entry in state["log_history"] if "eval_loss" in entry]
    np.testing.assert_allclose(line[:, 1], [e["eval_loss"] for e in evaluations])


def names_in(figure):
    (legend,) = figure.legends
    return [text.get_text() for text in legend.get_texts()]


def test_draws_ours_and_a_trainers_side_by_side(our_run, trainer_run, tmp_path):
    path = tmp_path / "runs.png"
    figure = plot_runs([our_run, trainer_run], path)
    assert names_in(figure) == ["ours", "output"]
    assert [panel.get_ylabel() for panel in figure.axes] == [
        "training loss,\nsmoothed",
        "evaluation loss",
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
    with pytest.raises(ValueError, match="`folders` must contain at least one"):
        plot_runs([])


def test_refuses_a_single_folder(our_run):
    with pytest.raises(TypeError, match=r"must be a sequence of folders.*`plot_run`"):
        plot_runs(str(our_run))


def test_names_the_folder_that_is_no_run(our_run, tmp_path):
    with pytest.raises(ValueError, match="nowhere"):
        plot_runs([our_run, tmp_path / "nowhere"])


def test_smoothing_keeps_a_line_a_line_and_passes_over_gaps():
    line = np.linspace(4.0, 3.0, 500)
    line[100] = np.nan
    means = smoothed(line)
    assert np.isfinite(means).all()
    # At the end the mean is of one side only.
    np.testing.assert_allclose(means[:490], np.linspace(4, 3, 500)[:490], atol=3e-3)
