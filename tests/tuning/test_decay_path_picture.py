"""Figure of a weight decay path."""

import numpy as np
import pytest

from .test_decay_path_result import MIDDLE, path_of


def shown(figure):
    (panel,) = figure.axes
    figure.canvas.draw()
    lines = {line.get_label(): line for line in panel.get_lines()}
    return panel, lines


def test_shows_means_errors_and_both_marks():
    panel, lines = shown(MIDDLE.picture())
    np.testing.assert_allclose(lines["training"].get_ydata(), MIDDLE.mean / 2)
    (bars,) = panel.containers
    np.testing.assert_allclose(bars[0].get_ydata(), MIDDLE.mean)
    top, bottom = bars[2][0].get_segments()[2][::-1, 1]
    np.testing.assert_allclose([top, bottom], [1.2, 0.8])
    assert list(lines["lowest: 0.1"].get_xdata()) == [0.1]
    assert list(lines["suggested: 0.3"].get_xdata()) == [0.3]


@pytest.mark.parametrize("decays", [[0.0, 0.01, 1.0], [0.0], [0.01, 0.1], [0.5]])
def test_decays_stand_apart_on_the_axis_and_0_is_one_of_them(decays):
    path = path_of(decays, [(1.0, 0.1)] * len(decays))
    panel, _ = shown(path.picture())
    at = panel.transAxes.inverted().transform(
        panel.transData.transform([(decay, 1.0) for decay in decays])
    )[:, 0]
    assert ((at >= 0) & (at <= 1)).all()
    assert (np.diff(at) > 0.1).all()
    ticks = [label.get_text() for label in panel.get_xticklabels()]
    assert ticks == [f"{decay:g}" for decay in decays]


def test_of_many_decays_some_have_ticks():
    decays = [0.0, *np.geomspace(1e-4, 1, 29)]
    panel, _ = shown(path_of(decays, [(1.0, 0.1)] * 30).picture())
    assert len(panel.get_xticks()) == 10


def test_those_that_diverged_are_marked_at_the_top():
    path = path_of([0.1, 1.0, 10.0], [(1.0, 0.1), (1.1, 0.1), (2.0, 0.1)])
    path.eval_loss[2, 0] = np.inf
    panel, lines = shown(path.picture())
    assert list(lines["diverged"].get_xdata()) == [10.0]
    assert panel.get_ylim()[1] < 2


def test_is_written_to_a_file(tmp_path):
    MIDDLE.picture(tmp_path / "path.png")
    assert (tmp_path / "path.png").read_bytes().startswith(b"\x89PNG")


def test_refuses_what_is_no_picture(tmp_path):
    with pytest.raises(ValueError, match="`path` must end with one of"):
        MIDDLE.picture(tmp_path / "path.txt")
