"""Figures of searches."""

import dataclasses

import numpy as np
import pytest

from jaxopt_tf import tuning
from jaxopt_tf.recipes import Recipe
from jaxopt_tf.tuning import LRFinderResult, Sweep, Trial, Uniform

BASE = Recipe(max_steps=40)
RATES = [1e-4, 1e-3, 1e-2]


def swept(recipes, over, losses, steps=40):
    """A sweep that has come to these losses."""
    steps = np.broadcast_to(steps, len(losses))
    trials = [
        Trial(i, int(step), 5.0, float(loss), float(loss))
        for i, (loss, step) in enumerate(zip(losses, steps, strict=True))
    ]
    return Sweep(recipes, tuple(over), tuple(trials))


def grid_of(over, losses, steps=40):
    return swept(tuning.grid(BASE, over), over, losses, steps)


def legend_of(figure):
    (legend,) = figure.legends
    return [text.get_text() for text in legend.get_texts()]


def lines_of(panel):
    return {line.get_label(): line.get_xydata() for line in panel.get_lines()}


def test_a_grid_of_two_fields_is_a_heat_map_with_its_numbers(tmp_path):
    over = {"weight_decay": [0.1, 0.0], "learning_rate": RATES}
    losses = [2.5, 2.1, np.inf, 2.4, 2.2, 2.3]
    path = tmp_path / "sweep.png"
    figure = tuning.plot_sweep(grid_of(over, losses), path)
    panel, bar = figure.axes
    assert (panel.get_xlabel(), panel.get_ylabel()) == ("learning_rate", "weight_decay")
    assert bar.get_ylabel() == "evaluation loss, per item"
    (mesh,) = panel.collections
    shown = mesh.get_array()
    # Numbers rise along both axes, whatever their order was.
    np.testing.assert_array_equal(shown[0], [2.4, 2.2, 2.3])
    np.testing.assert_array_equal(shown[1, :2], [2.5, 2.1])
    assert shown.mask[1, 2]
    assert [text.get_text() for text in panel.texts][:2] == ["2.400", "2.200"]
    assert len(panel.texts) == 5
    assert legend_of(figure) == ["diverged", "best: 2.1"]
    (hatched,) = [patch for patch in panel.patches if patch.get_hatch()]
    assert hatched.get_xy() == (2, 1)
    assert {patch.get_xy() for patch in panel.patches} == {(2, 1), (1, 1)}
    assert path.read_bytes().startswith(b"\x89PNG")


def test_a_cell_of_a_run_left_behind_says_where():
    over = {"learning_rate": RATES, "optim": ["sgd", "adamw_torch"]}
    losses = [2.0, 2.1, 2.2, 2.3, 2.4, 2.5]
    figure = tuning.plot_sweep(grid_of(over, losses, [10, 40, 40, 10, 10, 10]))
    panel = figure.axes[0]
    shown = [text.get_text() for text in panel.texts]
    assert shown[0] == "2.000\nstep 10"
    # A loss after fewer steps is not the best one.
    assert legend_of(figure) == ["best: 2.1"]
    assert [t.get_text() for t in panel.get_yticklabels()] == ["sgd", "adamw_torch"]


def test_a_loss_far_above_the_others_does_not_take_all_colours():
    over = {"learning_rate": RATES, "seed": [1, 2]}
    figure = tuning.plot_sweep(grid_of(over, [2.0, 2.1, 2.2, 2.3, 2.4, 9.0]))
    (mesh,) = figure.axes[0].collections
    assert mesh.norm.vmin == 2.0
    assert mesh.norm.vmax == pytest.approx(3.0)


def test_one_field_is_a_line_over_a_logarithmic_axis():
    figure = tuning.plot_sweep(
        grid_of({"learning_rate": [1e-2, 1e-4, 1e-1, 1e-3]}, [2.2, 2.5, np.inf, 2.1])
    )
    (panel,) = figure.axes
    lines = lines_of(panel)
    kept = lines["trained to the end"]
    np.testing.assert_array_equal(kept, [[1e-4, 2.5], [1e-3, 2.1], [1e-2, 2.2]])
    np.testing.assert_array_equal(lines["best: 2.1"], [[1e-3, 2.1]])
    assert lines["diverged"][0, 0] == 0.1
    assert panel.get_xscale() == "log"
    assert panel.get_xlabel() == "learning_rate"


def test_a_random_search_has_a_panel_for_each_field():
    over = {
        "learning_rate": Uniform(1e-5, 1e-1),
        "weight_decay": Uniform(0.0, 0.3, "linear"),
        "optim": ["sgd", "adamw_torch"],
        "adam_beta2": [0.99],
    }
    recipes = tuning.random_search(BASE, over, 30, 0)
    figure = tuning.plot_sweep(swept(recipes, over, np.linspace(2, 3, 30)))
    # What has one value only decides nothing.
    names = [panel.get_xlabel() for panel in figure.axes]
    assert names == ["learning_rate", "weight_decay", "optim"]
    assert [panel.get_xscale() for panel in figure.axes] == ["log", "linear", "linear"]
    ticks = [tick.get_text() for tick in figure.axes[2].get_xticklabels()]
    assert sorted(ticks) == ["adamw_torch", "sgd"]


def test_fields_that_are_json_have_names():
    over = {"lr_scheduler_kwargs": [{}, {"power": 2.0}]}
    base = dataclasses.replace(BASE, lr_scheduler_type="polynomial")
    figure = tuning.plot_sweep(swept(tuning.grid(base, over), over, [2.0, 2.1]))
    ticks = [tick.get_text() for tick in figure.axes[0].get_xticklabels()]
    assert ticks == ["{}", '{"power": 2.0}']


@pytest.mark.parametrize("seeds", [[1], [1, 2]])
def test_draws_what_all_diverged(seeds):
    over = {"learning_rate": [1e37, 1e38], "seed": seeds}
    figure = tuning.plot_sweep(grid_of(over, [np.inf] * 2 * len(seeds)))
    assert "diverged" in legend_of(figure)
    assert not any("best" in text for text in legend_of(figure))
    assert figure._repr_png_()


def test_rates_have_the_suggestion_as_a_line(tmp_path):
    rates, losses = np.array([1e-4, 1e-3, 1e-2]), np.array([2.5, 2.1, np.inf])
    found = LRFinderResult(rates, losses, 1e-3, "after 100 steps", BASE)
    path = tmp_path / "rates.png"
    figure = tuning.plot_rates(found, path)
    (panel,) = figure.axes
    lines = lines_of(panel)
    np.testing.assert_array_equal(lines["loss"], [[1e-4, 2.5], [1e-3, 2.1]])
    assert lines["diverged"][0, 0] == 1e-2
    assert lines["suggestion: 0.001"][0, 0] == 1e-3
    assert panel.get_xscale() == "log"
    assert panel.get_title(loc="left") == "after 100 steps"
    assert path.read_bytes().startswith(b"\x89PNG")


def test_rates_without_a_suggestion_have_no_line_for_it():
    rates, losses = np.geomspace(1e-4, 1, 60), np.linspace(3, 2, 60)
    figure = tuning.plot_rates(
        LRFinderResult(rates, losses, None, "try higher ones", BASE)
    )
    assert legend_of(figure) == ["loss"]


def test_refuses_a_path_that_is_no_picture(tmp_path):
    with pytest.raises(ValueError, match="`path` must end with one of"):
        tuning.plot_sweep(grid_of({"seed": [1, 2]}, [1, 2]), tmp_path / "sweep.txt")
    found = LRFinderResult(np.ones(3), np.ones(3), None, "", BASE)
    with pytest.raises(ValueError, match="`path` must end with one of"):
        tuning.plot_rates(found, tmp_path / "rates.txt")
