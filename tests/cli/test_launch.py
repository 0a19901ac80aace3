"""Arguments of distributed runs, checked before processes connect."""

import pytest

from jaxopt_tf.cli._launch import Launch, connected_processes


def test_single_process_without_launch_flags():
    with (
        pytest.raises(ValueError, match="of the inside"),
        connected_processes(Launch()),
    ):
        raise ValueError("of the inside")


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"process_id": 0}, "`coordinator_address` must be given with `process_id`"),
        (
            {"coordinator_address": "here:1", "num_processes": 2},
            "`process_id` must be given with `coordinator_address`",
        ),
        (
            {"coordinator_address": "here", "num_processes": 2, "process_id": 0},
            "`coordinator_address` must be host:port, got 'here'",
        ),
        (
            {"coordinator_address": "here:1", "num_processes": 2, "process_id": 2},
            "`process_id` must be",
        ),
        ({"distributed": 1}, "`distributed` must be True or False"),
    ],
)
def test_rejects_a_coordinator_that_cannot_be_reached(settings, sentence):
    with pytest.raises((ValueError, TypeError), match=sentence):
        Launch(**settings)
