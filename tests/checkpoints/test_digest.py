"""Checksums of a checkpoint folder, and their format."""

import hashlib
import shutil
import subprocess

import pytest

from jaxopt_tf.checkpoints._digest import (
    DIGEST_FILE,
    checksum_matches,
    find_damage,
    write_checksums,
)


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "b" / "c").mkdir(parents=True)
    (tmp_path / "empty folder").mkdir()
    (tmp_path / "a").write_bytes(b"first")
    (tmp_path / "b" / "none").write_bytes(b"")
    (tmp_path / "b" / "c" / "two words").write_bytes(bytes(range(256)) * 999)
    write_checksums(tmp_path)
    return tmp_path


def flip(path, bit):
    data = bytearray(path.read_bytes())
    data[bit // 8] ^= 1 << bit % 8
    path.write_bytes(data)


def test_finds_no_damage_in_an_unchanged_folder(folder):
    assert find_damage(folder) is None


def test_has_a_line_for_each_file_in_order(folder):
    lines = (folder / DIGEST_FILE).read_text().splitlines()
    assert lines[0] == f"{hashlib.sha256(b'first').hexdigest()}  a"
    paths = [line[66:] for line in lines]
    assert paths == ["a", "b/c/two words", "b/none"]


@pytest.mark.skipif(shutil.which("sha256sum") is None, reason="needs sha256sum")
def test_digest_file_is_accepted_by_sha256sum(folder):
    command = ["sha256sum", "--strict", "-c", DIGEST_FILE]
    printed = subprocess.run(command, cwd=folder, capture_output=True, text=True)
    assert printed.returncode == 0
    assert printed.stdout.count(": OK\n") == 3
    flip(folder / "a", 3)
    assert subprocess.run(command, cwd=folder, capture_output=True).returncode == 1


def test_notices_every_single_bit_of_a_small_file(folder):
    for bit in range(8 * len(b"first")):
        flip(folder / "a", bit)
        assert find_damage(folder) == "a does not match its checksum"
        flip(folder / "a", bit)


def test_notices_a_bit_of_the_digest_itself(folder):
    # Every 7th, so that each of a byte's bits has its turn.
    for bit in range(0, 8 * (folder / DIGEST_FILE).stat().st_size, 7):
        flip(folder / DIGEST_FILE, bit)
        assert find_damage(folder) is not None
        flip(folder / DIGEST_FILE, bit)
    assert find_damage(folder) is None


def test_find_damage_describes_the_damage(folder):
    (folder / "a").write_bytes(b"firs")
    assert find_damage(folder) == "a does not match its checksum"
    (folder / "b" / "none").unlink()
    assert find_damage(folder) == "b/none is missing, and 1 more"
    (folder / "a").write_bytes(b"first")
    (folder / "b" / "none").touch()
    (folder / "new").touch()
    assert find_damage(folder) == "new has no checksum"


def test_reports_an_invalid_digest_file(folder):
    text = (folder / DIGEST_FILE).read_bytes()
    (folder / DIGEST_FILE).write_bytes(text + b"\n")
    assert find_damage(folder) == f"{DIGEST_FILE} is damaged"
    (folder / DIGEST_FILE).write_bytes(b"")
    assert "has no checksum" in find_damage(folder)
    (folder / DIGEST_FILE).unlink()
    assert find_damage(folder) == f"it has no checksum file {DIGEST_FILE}"


def test_reports_that_a_file_cannot_be_read(folder):
    (folder / "b" / "none").unlink()
    (folder / "b" / "none").symlink_to(folder / "nowhere")
    assert "b/none cannot be read (No such file" in find_damage(folder)
    (folder / DIGEST_FILE).unlink()
    (folder / DIGEST_FILE).mkdir()
    assert find_damage(folder) == f"{DIGEST_FILE} cannot be read (Is a directory)"


def test_checksum_matches_reads_one_file_only(folder):
    assert checksum_matches(folder, "b/c/two words")
    flip(folder / "a", 0)
    assert checksum_matches(folder, "b/c/two words")
    assert not checksum_matches(folder, "a")
