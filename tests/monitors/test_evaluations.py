"""Metrics that monitors reject."""

import pytest

from jaxopt_tf import monitors
from jaxopt_tf.training import Evaluation

MAKE = {
    "console": lambda folder: monitors.console(2),
    "json_lines": lambda folder: monitors.json_lines(folder / "metrics.jsonl"),
    "tensorboard": monitors.tensorboard,
    "trainer_state": lambda folder: monitors.trainer_state(
        folder / "trainer_state.json", max_steps=2
    ),
    "health_monitor": lambda folder: monitors.health_monitor(),
}


@pytest.mark.parametrize("name", MAKE)
def test_refuses_a_metric_that_is_not_a_real_number(name, tmp_path):
    monitor = MAKE[name](tmp_path)
    for value in ("0.5", None, True, 0.5j, [0.5]):
        with pytest.raises(TypeError, match=r"`evaluation.metrics\['loss'\]` must be"):
            monitor.evaluation(Evaluation(1, {"loss": value}))
    monitor.evaluation(Evaluation(1, {"loss": float("nan")}))
    monitor.close()
