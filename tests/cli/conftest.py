"""A short text, and flags of a model that trains on it in seconds."""

import pytest


@pytest.fixture
def text(tmp_path):
    path = tmp_path / "text.txt"
    path.write_text("the quick brown fox jumps over the lazy dog\n" * 60)
    return path


@pytest.fixture
def small(text):
    """The flags, to be split."""
    return (
        "--n_layer 1 --n_head 2 --n_embd 16 --block_size 16 --max_steps 20 "
        f"--warmup_steps 2 --text {text}"
    )
