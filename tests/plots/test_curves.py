"""The figure of a run, drawn during the run."""

import numpy as np
import pytest

from jaxopt_tf.plots import curves
from jaxopt_tf.training import Evaluation
from tests.events import metrics_of, tell, window_of


def test_is_a_picture_800_pixels_wide(tmp_path):
    path = tmp_path / "curves.png"
    monitor = curves(path)
    losses = np.linspace(4, 2, 50)
    losses[20] = np.nan
    skipped = np.isnan(losses)
    tell(monitor, metrics_of(losses, skipped=skipped), evaluations={0: 5.0, 50: 2.5})
    monitor.close()
    picture = path.read_bytes()
    assert picture.startswith(b"\x89PNG")
    assert int.from_bytes(picture[16:20], "big") == 800
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("ending", [".svg", ".pdf"])
def test_may_be_drawn_with_lines(tmp_path, ending):
    path = tmp_path / f"curves{ending}"
    monitor = curves(path)
    monitor.window(window_of(1, [4.0, 3.0]))
    monitor.close()
    assert path.read_bytes()[:5] in (b"<?xml", b"%PDF-")


def test_reports_what_it_shows(tmp_path):
    path = tmp_path / "curves.svg"
    monitor = curves(path, unit="nats per byte")
    # As text, to be found in the file.
    import matplotlib

    skipped = np.arange(50) == 7
    with matplotlib.rc_context({"svg.fonttype": "none"}):
        tell(
            monitor,
            metrics_of(np.linspace(4, 2, 50), skipped=skipped),
            evaluations={0: 5.0, 40: 2.5, 50: 2.75},
        )
        monitor.close()
    shown = path.read_text()
    for words in (
        "loss (nats per byte)",
        "evaluation: 2.75 at the end, 2.5 at best (step 40)",
        "skipped steps: 1",
        "learning rate",
        "gradient norm",
        "update norm",
        "parameter norm",
    ):
        assert words in shown


def test_a_run_without_a_rate_or_an_evaluation_is_drawn_too(tmp_path):
    monitor = curves(tmp_path / "curves.png")
    monitor.window(window_of(1, [np.nan], rate=np.nan, params=0.0))
    monitor.close()
    assert (tmp_path / "curves.png").exists()


def test_nothing_is_drawn_where_nothing_was_run(tmp_path):
    monitor = curves(tmp_path / "curves.png")
    monitor.evaluation(Evaluation(0, {"loss": 5.0}))
    monitor.close()
    assert list(tmp_path.iterdir()) == []


def test_is_drawn_on_the_way_where_asked(tmp_path):
    path = tmp_path / "curves.png"
    monitor = curves(path, every=20)
    drawn = []
    for step in (10, 20, 30, 40):
        monitor.window(window_of(step - 9, [4.0] * 10))
        monitor.evaluation(Evaluation(step, {"loss": 4.0}))
        drawn.append(path.exists())
        path.unlink(missing_ok=True)
    assert drawn == [False, True, False, True]


def test_refuses_a_format_that_is_not_a_picture(tmp_path):
    with pytest.raises(ValueError, match=r"`path` must end with one of \.png"):
        curves(tmp_path / "curves.txt")


def test_refuses_a_folder_that_is_not_there(tmp_path):
    with pytest.raises(ValueError, match="`path` must be in a folder that exists"):
        curves(tmp_path / "nowhere" / "curves.png")


def test_refuses_an_interval_below_1(tmp_path):
    with pytest.raises(ValueError, match="`every` must be"):
        curves(tmp_path / "curves.png", every=0)


def test_refuses_a_metric_that_is_not_a_real_number(tmp_path):
    monitor = curves(tmp_path / "curves.png")
    with pytest.raises(TypeError, match=r"`evaluation.metrics\['loss'\]` must be"):
        monitor.evaluation(Evaluation(1, {"loss": "0.5"}))
