"""Restoration of checkpoints, including damaged and incompatible ones."""

import math
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxopt_tf.checkpoints import (
    latest_valid,
    lock_folder,
    open_checkpoints,
    read_metadata,
    restore,
    restore_latest,
)
from jaxopt_tf.checkpoints._digest import DIGEST_FILE, write_checksums
from jaxopt_tf.checkpoints._restore import find_damage
from jaxopt_tf.optimizers import adamw_tf, sgd_tf
from jaxopt_tf.schedules import greedy, reduce_lr_on_plateau

LIKE = {"w": jnp.arange(4.0), "rng": jax.random.key(0), "empty": jnp.zeros((0, 3))}


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """A folder with two good checkpoints; copied before anything is done to it."""
    folder = tmp_path_factory.mktemp("run")
    with lock_folder(folder) as lock, open_checkpoints(lock) as checkpoints:
        for step in (1, 2):
            arrays = LIKE | {"w": LIKE["w"] + step}
            checkpoints.save(step, arrays, {"step": step, "shape": (1, 2)})
    return folder


@pytest.fixture
def folder(saved, tmp_path):
    return shutil.copytree(saved, tmp_path / "run")


def files_of(checkpoint):
    return sorted(path for path in checkpoint.rglob("*") if path.is_file())


def test_takes_the_newest(folder, capsys):
    restored = restore_latest(folder, LIKE)
    assert restored.step == 2
    assert restored.path == folder / "checkpoint-2"
    assert restored.metadata == {"step": 2, "shape": [1, 2]}
    np.testing.assert_array_equal(restored.arrays["w"], [2, 3, 4, 5])
    assert capsys.readouterr().err == ""


def test_skips_a_checkpoint_with_a_damaged_file_and_reports_it(folder, rng):
    checkpoint = folder / "checkpoint-2"
    assert len(files_of(checkpoint)) >= 5
    for path in files_of(checkpoint):
        data = path.read_bytes()
        flipped = bytearray(data)
        flipped[rng.integers(len(data))] ^= 1 << rng.integers(8)
        # The first and the last are of a kind that only a comparison of all finds.
        for damaged in (flipped, data[:-1], data[: len(data) // 2], b"", data + b"\0"):
            path.write_bytes(damaged)
            said = []
            assert latest_valid(folder, report=said.append) == folder / "checkpoint-1"
            assert len(said) == 1
            assert said[0].startswith("checkpoint-2 is damaged: ")
            assert said[0].endswith(" The previous checkpoint is used.")
        path.unlink()
        assert latest_valid(folder, report=said.append) == folder / "checkpoint-1"
        path.write_bytes(data)
    (checkpoint / "d" / "extra").touch()
    assert find_damage(checkpoint) == "d/extra has no checksum"
    (checkpoint / "d" / "extra").unlink()
    assert find_damage(checkpoint) is None


def test_skips_a_checkpoint_without_checksums_record_or_files(folder, capsys):
    (folder / "checkpoint-2" / DIGEST_FILE).unlink()
    foreign = folder / "checkpoint-3"
    foreign.mkdir()
    (foreign / "_METADATA").write_text('{"custom_metadata": null}')
    write_checksums(foreign)
    shutil.copytree(foreign, folder / "checkpoint-4")
    (folder / "checkpoint-4" / "_METADATA").unlink()
    write_checksums(folder / "checkpoint-4")
    (folder / "checkpoint-5").mkdir()
    (folder / "checkpoint-6.orbax-checkpoint-tmp").mkdir()
    assert restore_latest(folder, LIKE).step == 1
    said = capsys.readouterr().err.splitlines()
    starts = [
        "checkpoint-6.orbax-checkpoint-tmp is incomplete: ",
        f"checkpoint-5 is damaged: it has no checksum file {DIGEST_FILE}.",
        "checkpoint-4 is damaged: it has no record ([Errno 2]",
        "checkpoint-3 is damaged: it has no record (_METADATA has another format)",
        f"checkpoint-2 is damaged: it has no checksum file {DIGEST_FILE}.",
    ]
    assert [
        line[: len(start)] for line, start in zip(said, starts, strict=True)
    ] == starts


def test_raises_if_all_checkpoints_are_damaged(folder):
    for step in (1, 2):
        (folder / f"checkpoint-{step}" / "manifest.ocdbt").unlink()
    with pytest.raises(ValueError, match="must contain a valid checkpoint") as caught:
        restore_latest(folder, LIKE)
    for step in (1, 2):
        reason = f"checkpoint-{step} is damaged: manifest.ocdbt is missing"
        assert reason in str(caught.value)


def test_reports_that_the_first_save_was_interrupted(tmp_path):
    (tmp_path / "checkpoint-1.orbax-checkpoint-tmp").mkdir()
    said = []
    assert restore_latest(tmp_path, LIKE, report=said.append) is None
    assert len(said) == 1
    assert restore_latest(tmp_path / "nowhere", LIKE, report=said.append) is None
    assert len(said) == 1


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"w": jnp.zeros(5)}, "(w: float32[4] in checkpoint-2, float32[5] in `like`)"),
        ({"w": jnp.zeros(4, jnp.int32)}, "float32[4] in checkpoint-2, int32[4] in"),
        (
            {"rng": jax.random.key(0, impl="rbg")},
            "key<fry>[] in checkpoint-2, key<rbg>",
        ),
        ({"empty": jnp.zeros((3, 0))}, "(empty: float32[0, 3] in checkpoint-2, "),
        ({"rng": None}, "1 only in checkpoint-2 (rng)"),
        ({"m": {"v": LIKE["w"]}, "z": LIKE["w"]}, "2 only in `like` (m.v)"),
    ],
)
def test_restore_names_the_leaves_that_do_not_match(folder, change, reason):
    with pytest.raises(
        ValueError, match="`like` must have the same leaves as"
    ) as caught:
        restore_latest(folder, LIKE | change)
    assert reason in str(caught.value)
    assert "or start a new run in another folder" in str(caught.value)


def test_restore_explains_why_a_checkpoint_is_invalid(folder):
    (folder / "checkpoint-2" / "_METADATA").write_text("{}")
    reason = "_METADATA does not match its checksum. Pass another"
    for read in (lambda path: restore(path, LIKE), read_metadata):
        with pytest.raises(ValueError, match=reason):
            read(folder / "checkpoint-2")
    with pytest.raises(ValueError, match="is not: there is no such folder"):
        restore(folder / "checkpoint-3", LIKE)
    with pytest.raises(ValueError, match="No such file"):
        read_metadata(folder / "checkpoint-3")
    with pytest.raises(ValueError, match="must be a folder checkpoint-<step>"):
        restore(folder, LIKE)
    assert restore(folder / "checkpoint-1", LIKE).step == 1


def test_reads_metadata_without_arrays(folder):
    shutil.rmtree(folder / "checkpoint-2" / "d")
    assert read_metadata(folder / "checkpoint-2") == {"step": 2, "shape": [1, 2]}


def test_rejects_leaves_that_are_not_arrays_or_share_a_name(folder):
    with pytest.raises(TypeError, match="`like` must contain only arrays, .* 'w'"):
        restore_latest(folder, LIKE | {"w": "1.0"})
    twice = {"a.b": LIKE["w"], "a": {"b": LIKE["w"]}}
    with pytest.raises(ValueError, match="got two leaves 'a.b'. Rename"):
        restore_latest(folder, twice)


PARAMS = {"w": jnp.ones(3), "table": jnp.zeros(2)}
RATES = {"constant": 0.25, "schedule": lambda step: 0.5 ** jnp.float32(step)}


def after_updates(optimizer, state, num_updates):
    for _ in range(num_updates):
        _, state = optimizer.update(PARAMS, state, PARAMS)
    return state


@pytest.mark.promotion_of_others
@pytest.mark.parametrize("counts", ["one count", "a count per leaf"])
@pytest.mark.parametrize("rate", RATES)
def test_restores_a_state_without_rate_source(tmp_path, rate, counts):
    optimizer = sgd_tf(RATES[rate], momentum=0.9)
    state = optimizer.init(PARAMS)
    if counts == "a count per leaf":
        state = state._replace(count={"w": jnp.int32(2), "table": jnp.int32(0)})
    state = after_updates(optimizer, state, 3)
    older = state._replace(
        rate_source=None, step=state.step if rate == "schedule" else None
    )
    with lock_folder(tmp_path) as lock, open_checkpoints(lock) as checkpoints:
        checkpoints.save(3, {"chain": (older,)}, {})
    like = {"chain": (jax.eval_shape(lambda: state),)}
    restored = restore_latest(tmp_path, like).arrays["chain"][0]
    assert restored.rate_source == (rate == "schedule")
    # Constant rates had no step: the largest count is the best that is known.
    assert restored.step == (
        5 if (rate, counts) == ("constant", "a count per leaf") else 3
    )
    expected = after_updates(optimizer, state, 1)._replace(step=restored.step + 1)
    for a, b in zip(
        jax.tree.leaves(after_updates(optimizer, restored, 1)),
        jax.tree.leaves(expected),
        strict=True,
    ):
        np.testing.assert_array_equal(a, b)


def test_a_state_that_lacks_something_else_too_is_refused(tmp_path):
    state = sgd_tf(0.25, momentum=0.9).init(PARAMS)
    older = state._replace(rate_source=None, step=None, momentum=None)
    with lock_folder(tmp_path) as lock, open_checkpoints(lock) as checkpoints:
        checkpoints.save(3, older, {})
    with pytest.raises(ValueError, match=r"2 only in `like` \(momentum"):
        restore_latest(tmp_path, state)


def in_arrays_of_32_bits(state):
    """Returns a state that a metric drives as checkpoints used to hold it."""

    def pair(values):
        high = np.float32(values)
        rest = values - high if np.isfinite(high).all() else 0
        return {"high": high, "low": np.float32(rest)}

    older = state._asdict()
    mantissa, exponent = math.frexp(older.pop("learning_rate"))
    bits = int(mantissa * 2**53) << 11
    older["rate"] = {
        "high": jnp.uint32(bits >> 32),
        "low": jnp.uint32(bits & 0xFFFFFFFF),
        "exponent": jnp.int32(exponent - 1),
    }
    older["best"] = pair(older["best"])
    average = older.get("average")
    if average is not None:  # a ring: the next metric was to be written at `place`
        place = 1 if average.num_values == 4 else average.num_values
        older["average"] = {
            "values": pair(np.roll(average.values, place)),
            "total": pair(average.total),
            "place": jnp.int32(place),
            "num_values": average.num_values,
        }
    return jax.tree.map(lambda x: jnp.int32(x) if type(x) is int else x, older)


@pytest.mark.parametrize(
    "schedule",
    [
        reduce_lr_on_plateau(1e-3, patience=0, factor=0.3),
        greedy(1e-2, patience=0),
        greedy(1e-2, patience=0, smooth=True, window_size=4),
    ],
    ids=["plateau", "greedy", "smooth"],
)
@pytest.mark.parametrize("num_metrics", [0, 3, 9])
def test_an_older_state_that_a_metric_drives_is_continued(
    tmp_path, schedule, num_metrics
):
    # Few digits each, so that a pair of float32 holds them and their sums exactly.
    metrics = [3.0, 2.5, 2.75, 2.25, 2.5, 3.5, 1.0, 1.25, 1.125]
    state = schedule.init()
    for metric in metrics[:num_metrics]:
        state = schedule.update(state, metric)
    older = in_arrays_of_32_bits(state)
    with lock_folder(tmp_path) as lock, open_checkpoints(lock) as checkpoints:
        checkpoints.save(3, {"a": {"schedule": older, "w": LIKE["w"]}}, {})
    like = {"a": {"schedule": schedule.init(), "w": LIKE["w"]}}
    restored = restore_latest(tmp_path, like).arrays["a"]["schedule"]
    jax.tree.map(np.testing.assert_array_equal, restored, state)
    assert type(restored.learning_rate) is float
    for metric in (2.0, 9.0, 1.0):
        restored = schedule.update(restored, metric)
        state = schedule.update(state, metric)
        assert restored.learning_rate == state.learning_rate
        assert restored.num_bad_updates == state.num_bad_updates


def test_an_older_state_with_another_smoothing_is_refused(tmp_path):
    schedule = greedy(1e-2, smooth=True, window_size=4)
    with lock_folder(tmp_path) as lock, open_checkpoints(lock) as checkpoints:
        checkpoints.save(3, in_arrays_of_32_bits(schedule.init()), {})
    with pytest.raises(ValueError, match="6 only in checkpoint-3 .average"):
        restore_latest(tmp_path, greedy(1e-2).init())


@pytest.mark.parametrize("sharded", [False, True])
def test_moments_may_change_their_dtype_with_a_note(tmp_path, capsys, sharded):
    params = {"w": jnp.arange(8.0) / 3}

    def like(dtype):
        optimizer = adamw_tf(1e-3, mu_dtype=dtype)
        tree = {
            "opt_state": optimizer.update(params, optimizer.init(params), params)[1]
        }
        if not sharded:
            return tree
        mesh = jax.make_mesh((2,), ("x",), axis_types=(jax.sharding.AxisType.Auto,))
        spec = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())
        return jax.device_put(tree, spec)

    with lock_folder(tmp_path) as lock, open_checkpoints(lock) as checkpoints:
        checkpoints.save(1, like("float32"), {})
    restored = restore_latest(tmp_path, like("bfloat16")).arrays["opt_state"]
    assert restored.mu["w"].dtype == jnp.bfloat16
    expected = like("float32")["opt_state"]
    np.testing.assert_array_equal(
        restored.mu["w"], expected.mu["w"].astype(jnp.bfloat16)
    )
    np.testing.assert_array_equal(restored.nu["w"], expected.nu["w"])
    note = "1 moments of checkpoint-1 are converted from float32 to bfloat16."
    assert note in capsys.readouterr().err
    other = {"opt_state": expected._replace(mu={"w": jnp.ones(8, jnp.float16)})}
    with pytest.raises(ValueError, match="another shape or dtype"):
        restore_latest(tmp_path, other)
