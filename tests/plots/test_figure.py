"""Style and saving of figures."""

import pickle
import subprocess
import sys

import numpy as np
import pytest

from jaxopt_tf.plots import _figure


@pytest.fixture
def figure():
    figure = _figure.new_figure(3.0)
    panel = figure.subplots()
    _figure.draw_line(panel, np.arange(5), np.arange(5) * 1e-3, index=1, label="a line")
    _figure.add_grid_and_xlabel([panel])
    return figure


def test_shows_itself_at_100_pixels_an_inch(figure):
    # What IPython asks for. Also after a trip through pickle.
    for one in (figure, pickle.loads(pickle.dumps(figure))):
        shown = one._repr_png_()
        assert shown.startswith(b"\x89PNG")
        assert int.from_bytes(shown[16:20], "big") == 800
        assert int.from_bytes(shown[20:24], "big") == 300


@pytest.mark.parametrize("ending", [".png", ".SVG", ".pdf"])
def test_is_saved_whole_in_the_format_of_its_name(tmp_path, figure, ending):
    path = _figure.checked_figure_path(str(tmp_path / f"new{ending}"))
    _figure.save_figure(figure, path)
    assert path.read_bytes()[:5] in (b"\x89PNG\r", b"<?xml", b"%PDF-")
    assert list(tmp_path.iterdir()) == [path]


def test_25_lines_differ_in_colour_or_dashes():
    panel = _figure.new_figure(3.0).subplots()
    for index in range(25):
        _figure.draw_line(
            panel, np.arange(3), np.arange(3.0), index=index, label=str(index)
        )
    looks = {(x.get_color(), str(x._unscaled_dash_pattern)) for x in panel.get_lines()}
    assert len(looks) == 25


def test_a_line_that_is_nowhere_finite_can_be_drawn(figure):
    (panel,) = figure.axes
    _figure.draw_line(panel, np.arange(3), np.full(3, np.nan), index=3, label="none")
    _figure.draw_line(panel, np.empty(0), np.empty(0), index=3, label="nothing")
    assert figure._repr_png_()


def test_steps_are_whole_and_have_separators():
    figure = _figure.new_figure(3.0)
    panel = figure.subplots()
    panel.plot([0, 2_000_000], [0, 1])
    _figure.add_grid_and_xlabel([panel])
    figure.canvas.draw()
    shown = [label.get_text() for label in panel.get_xticklabels()]
    assert "1,000,000" in shown
    assert panel.get_xlabel() == "step"


def test_the_axis_is_logarithmic_where_large_values_would_hide_others():
    panels = _figure.new_figure(3.0).subplots(3)
    _figure.use_log_scale_if_skewed(panels[0], np.ones(9), np.array([100.0, np.nan]))
    _figure.use_log_scale_if_skewed(panels[1], np.ones(9))
    _figure.use_log_scale_if_skewed(panels[2], np.array([1.0, 1.0, -1.0, 100.0]))
    assert [panel.get_yscale() for panel in panels] == ["log", "linear", "linear"]


def test_heat_maps_go_from_dark_to_light():
    from matplotlib import colormaps

    colours = colormaps[_figure.HEAT_MAP_COLOURS](np.linspace(0, 1, 64))[:, :3]
    lightness = colours @ [0.2126, 0.7152, 0.0722]
    assert (np.diff(lightness) > 0).all()


def test_matplotlib_is_loaded_with_the_first_picture_and_pyplot_never():
    code = (
        "import sys; from jaxopt_tf import monitors, plots, tuning;"
        "print('matplotlib' in sys.modules);"
        "from jaxopt_tf.plots import _figure; _figure.new_figure(1.0);"
        "print('matplotlib.pyplot' in sys.modules)"
    )
    printed = subprocess.check_output([sys.executable, "-c", code], text=True)
    assert printed.split() == ["False", "False"]


def test_refuses_what_is_no_picture(tmp_path):
    with pytest.raises(ValueError, match=r"`path` must end with one of \.png"):
        _figure.checked_figure_path(tmp_path / "new.txt")


def test_refuses_a_folder_that_is_not_there(tmp_path):
    with pytest.raises(ValueError, match="`path` must be in a folder that exists"):
        _figure.checked_figure_path(tmp_path / "nowhere" / "new.png")
