"""Documents in files against the same documents in one array."""

import os
import resource
import tempfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxopt_tf.data import _tokens
from jaxopt_tf.data._tokens import Documents, TokenFile, TokenStream

# More than a small file has: behind it, tokens are mapped instead of read.
FAR = 2**16 + 8


def write(path, tokens, dtype, offset=0):
    tokens = np.asarray(tokens, dtype)
    path.write_bytes(b"\xff" * offset + tokens.tobytes())
    return TokenFile(path, np.dtype(dtype), offset, len(tokens), sha256="")


def index(rows):
    file, start, length = zip(*rows, strict=True) if rows else ((), (), ())
    return Documents(
        np.asarray(file, np.int32),
        np.asarray(start, np.int64),
        np.asarray(length, np.int64),
    )


@pytest.fixture
def stream(tmp_path):
    """Two documents of a small file and one of a mapped one: 4 + 3 + 6 tokens."""
    files = [
        write(tmp_path / "small", np.arange(10), "<u2"),
        write(tmp_path / "large", np.arange(20, 30), "<u2", offset=FAR),
    ]
    documents = index([(0, 5, 3), (0, 0, 2), (1, 4, 5)])
    return TokenStream(files, documents, end=99, dtype=np.dtype(np.uint8))


def test_documents_stand_in_order_and_each_is_ended(stream):
    expected = [5, 6, 7, 99, 0, 1, 99, 24, 25, 26, 27, 28, 99]
    np.testing.assert_array_equal(stream.read(0, 13), expected)
    assert (len(stream), stream.num_documents) == (13, 3)
    assert stream.read(0, 13).dtype == np.uint8


@settings(deadline=None, max_examples=60)
@given(data=st.data())
def test_any_slice_is_that_of_the_plain_concatenation(data):
    token = st.integers(0, 50)
    contents = data.draw(
        st.lists(st.lists(token, min_size=1, max_size=9), min_size=1, max_size=3)
    )
    dtypes = st.sampled_from(["u1", "<u2", ">u2", "<u4", "<i8"])
    rows, end = [], data.draw(st.sampled_from([None, 51]))
    expected = []
    for _ in range(data.draw(st.integers(0, 6))):
        file = data.draw(st.integers(0, len(contents) - 1))
        start = data.draw(st.integers(0, len(contents[file]) - 1))
        length = data.draw(st.integers(1, len(contents[file]) - start))
        rows.append((file, start, length))
        expected += contents[file][start : start + length]
        expected += [] if end is None else [end]
    with tempfile.TemporaryDirectory() as folder:
        files = [
            write(
                Path(folder, str(i)),
                content,
                data.draw(dtypes),
                offset=data.draw(st.sampled_from([0, 8, FAR])),
            )
            for i, content in enumerate(contents)
        ]
        stream = TokenStream(files, index(rows), end=end, dtype=np.dtype("u1"))
        assert len(stream) == len(expected)
        for start in range(len(expected) + 1):
            for stop in range(start, len(expected) + 1):
                assert stream.read(start, stop).tolist() == expected[start:stop]


def test_what_is_read_is_a_copy(stream):
    stream.read(0, 13)[:] = 0
    assert stream.read(0, 1) == 5


@pytest.mark.parametrize(("start", "stop"), [(-1, 3), (3, 2), (0, 14)])
def test_refuses_what_is_not_in_the_row(stream, start, stop):
    with pytest.raises(IndexError, match=r"`start` and `stop` must .* 0 to 13, got"):
        stream.read(start, stop)


@pytest.mark.parametrize("offset", [0, FAR], ids=["small", "mapped"])
@pytest.mark.parametrize("damage", ["gone", "shorter", "empty"])
def test_refuses_a_file_that_is_not_what_it_was(tmp_path, offset, damage):
    file = write(tmp_path / "file", np.arange(10), "u1", offset=offset)
    stream = TokenStream([file], index([(0, 0, 10)]), end=None, dtype=np.dtype("u1"))
    if damage == "gone":
        file.path.unlink()
    else:
        os.truncate(file.path, offset + 9 if damage == "shorter" else 0)
    with pytest.raises(ValueError, match=r"`text` must not change .*file' was deleted"):
        stream.read(0, 1)


def test_keeps_no_small_file_open(tmp_path):
    files = [write(tmp_path / str(i), [i], "u1") for i in range(20)]
    documents = index([(i, 0, 1) for i in range(20)])
    stream = TokenStream(files, documents, end=None, dtype=np.dtype("u1"))
    before = os.listdir("/proc/self/fd")
    np.testing.assert_array_equal(stream.read(0, 20), np.arange(20))
    # Something of other tests may be closed meanwhile.
    assert set(os.listdir("/proc/self/fd")) <= set(before)


def test_reads_more_files_than_a_process_may_open(tmp_path):
    files = [write(tmp_path / str(i), [i % 256], "u1", FAR) for i in range(300)]
    documents = index([(i, 0, 1) for i in range(300)])
    stream = TokenStream(files, documents, end=None, dtype=np.dtype("u1"))
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    highest = max(int(name) for name in os.listdir("/proc/self/fd"))
    resource.setrlimit(resource.RLIMIT_NOFILE, (highest + 200, before[1]))
    try:
        np.testing.assert_array_equal(stream.read(0, 300), np.arange(300) % 256)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)


@pytest.mark.skipif(not Path("/proc/self/smaps").exists(), reason="not on Linux")
@pytest.mark.parametrize("is_large", [False, True], ids=["small", "large"])
def test_large_files_are_not_read_ahead(tmp_path, monkeypatch, is_large):
    file = write(tmp_path / "file", np.arange(10), "u1", offset=FAR)
    if is_large:
        monkeypatch.setattr(_tokens, "_BYTES_IN_A_LARGE_FILE", FAR)
    stream = TokenStream([file], index([(0, 0, 10)]), end=None, dtype=np.dtype("u1"))
    assert stream.read(9, 10) == 9
    maps = Path("/proc/self/smaps").read_text().split("VmFlags:")
    mapped = next(i for i, text in enumerate(maps) if str(file.path) in text)
    flags = maps[mapped + 1].splitlines()[0].split()
    assert ("rr" in flags) == is_large  # random read advice
