"""Heat maps of the layers of a run."""

import numpy as np
import pytest

from jaxopt_tf.monitors import json_lines
from jaxopt_tf.plots import plot_layers
from jaxopt_tf.plots._layers import _place, _without_prefix
from tests.events import metrics_of, tell
from tests.plots.conftest import NUM_STEPS


def maps_in(figure):
    return [panel.collections[0] for panel in figure.axes[:2]]


def write_run(folder, loss, layers, first_step=1):
    monitor = json_lines(folder / "metrics.jsonl", first_step=first_step - 1)
    tell(monitor, metrics_of(loss, layers=layers), first_step=first_step)
    monitor.close()


def test_draws_a_row_for_each_layer_in_the_order_of_the_model(our_run, tmp_path):
    path = tmp_path / "layers.png"
    figure = plot_layers(our_run, path)
    shown = [label.get_text() for label in figure.axes[0].get_yticklabels()]
    assert shown == ["wte", "h.0.ln", "h.2.ln", "h.10.ln", "ln_f"]
    grads, ratios = (of.get_array() for of in maps_in(figure))
    assert grads.shape == ratios.shape == (5, NUM_STEPS)
    np.testing.assert_allclose(grads[:, 5], [1e-5, 1e-1, 1e-3, 1e-2, 1e-4], rtol=1e-6)
    rates = np.linspace(0, 1e-3, NUM_STEPS)
    np.testing.assert_allclose(ratios[1, 1:], rates[1:], rtol=1e-6)
    np.testing.assert_allclose(ratios[0, 1:], 5 * rates[1:], rtol=1e-6)
    # Nothing was updated at a rate of 0: no colour.
    assert ratios.mask[:, 0].all()
    assert path.exists()


def test_colours_are_logarithmic_and_explained(our_run):
    figure = plot_layers(our_run)
    assert all(type(of.norm).__name__ == "LogNorm" for of in maps_in(figure))
    labels = [axes.get_xlabel() for axes in figure.axes]
    assert labels == [
        "step",
        "step",
        "gradient norm\n(before clipping)",
        "update norm / parameter norm",
    ]


def test_a_long_run_has_a_bounded_number_of_columns(tmp_path):
    write_run(tmp_path, np.ones(3_003), {"a": (1.0, 1e-3, 1.0)})
    grads, _ = maps_in(plot_layers(tmp_path))
    assert 300 <= grads.get_array().shape[1] <= 620
    edges = grads.get_coordinates()[0, :, 0]
    assert edges[0] == pytest.approx(1, abs=6)
    assert edges[-1] == pytest.approx(3_003, abs=6)


def test_layers_may_be_logged_from_some_step_on(tmp_path):
    write_run(tmp_path, np.ones(20), {"a": (1.0, 1e-3, 1.0)})
    more = {"a": (2.0, 1e-3, 1.0), "b": (3.0, 1e-3, 1.0)}
    write_run(tmp_path, np.ones(20), more, first_step=21)
    grads, _ = (of.get_array() for of in maps_in(plot_layers(tmp_path)))
    assert grads.shape == (2, 40)
    np.testing.assert_array_equal(grads[0], [1.0] * 20 + [2.0] * 20)
    assert grads.mask[1, :20].all()
    np.testing.assert_array_equal(grads[1, 20:], [3.0] * 20)


def test_layers_without_a_finite_number_are_drawn_empty(tmp_path):
    write_run(tmp_path, np.ones(1), {"a": (np.nan, 0.0, 0.0)})
    figure = plot_layers(tmp_path, tmp_path / "layers.pdf")
    assert all(of.get_array().mask.all() for of in maps_in(figure))


def test_numbers_in_names_are_numbers():
    names = ["h.10", "ln_f", "h.9", "wpe", "embed.tokens"]
    assert sorted(names, key=_place) == ["embed.tokens", "wpe", "h.9", "h.10", "ln_f"]


def test_modules_that_all_are_in_are_not_repeated():
    assert _without_prefix(["m.a.x", "m.a.y"]) == ["x", "y"]
    assert _without_prefix(["m.ab", "m.ac.d"]) == ["ab", "ac.d"]
    assert _without_prefix(["m.a"]) == ["a"]
    assert _without_prefix(["a", "b"]) == ["a", "b"]


def test_refuses_a_run_without_layers_and_says_what_to_do(tmp_path, trainer_run):
    write_run(tmp_path, np.ones(5), {})
    for folder in (tmp_path, trainer_run):
        with pytest.raises(ValueError, match=r"logged its layers.*`--log_layers`"):
            plot_layers(folder)
