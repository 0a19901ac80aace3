"""Disables figures in runs of tests, where drawing takes a quarter of the time."""

import pytest

from jaxopt_tf import plots, training


@pytest.fixture(autouse=True)
def _no_picture(request, monkeypatch):
    if "bit_for_bit" not in request.node.name:
        nothing = training.Monitor(lambda _: None, lambda _: None, lambda: None)
        monkeypatch.setattr(plots, "curves", lambda *_, **__: nothing)
