"""One run drawn."""

import json

import numpy as np

from jaxopt_tf.plots import plot_run
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
    held_out = lines["held out: 2.25 at the end, 2.25 at best (step 40)"]
    np.testing.assert_array_equal(held_out, [[20, 2.5], [40, 2.25]])
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
    held_out = next(y for name, y in drawn(losses).items() if "held out" in name)
    evaluations = [entry for entry in state["log_history"] if "eval_loss" in entry]
    np.testing.assert_allclose(held_out[:, 1], [e["eval_loss"] for e in evaluations])
