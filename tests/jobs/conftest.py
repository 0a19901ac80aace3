"""Runs without a picture, but for one test: drawing takes a quarter of a tiny run."""

import pytest

from jaxopt_tf import monitors, training


@pytest.fixture(autouse=True)
def _no_picture(request, monkeypatch):
    if "bit_for_bit" not in request.node.name:
        nothing = training.Monitor(lambda _: None, lambda _: None, lambda: None)
        monkeypatch.setattr(monitors, "curves", lambda *_, **__: nothing)
