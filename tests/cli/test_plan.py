"""`jaxopt-tf plan`."""

import pytest

from jaxopt_tf.cli import main
from jaxopt_tf.jobs import Job, RunConfig, build_setup
from jaxopt_tf.models import GPT2Config
from jaxopt_tf.planning import (
    _topology,
    bytes_by_leaf,
    named_slice,
    plan_step,
    slice_devices,
)
from jaxopt_tf.recipes import Recipe
from jaxopt_tf.sharding import make_mesh

pytestmark = [
    pytest.mark.promotion_of_others,  # flax's layers
    pytest.mark.usefixtures("compiled_quickly"),
]


@pytest.fixture(autouse=True)
def _wide(monkeypatch):
    monkeypatch.setenv("COLUMNS", "120")


@pytest.fixture
def _no_compilers(monkeypatch):
    monkeypatch.setattr(
        _topology, "is_compiler_installed", lambda slice_: slice_.family == "cpu"
    )


def shown(capsys, flags):
    status = main(["plan", *flags.split()])
    captured = capsys.readouterr()
    return status, " ".join(captured.out.split()), captured.err  # lines are broken


@pytest.mark.usefixtures("_no_compilers")
def test_without_a_compiler_shapes_speak_and_it_says_what_to_install(capsys):
    flags = "--model gpt2 --devices v5e:4x4 --mesh data=4,fsdp=4"
    status, out, _ = shown(capsys, flags)
    assert status == 0
    assert "v5e:4x4: 16 x TPU v5e of 16 GB" in out
    assert 'pip install "jax[tpu]==' in out
    assert "activations come on top" in out
    assert "fsdp does not divide" not in out
    # 124 million parameters, most of them divided by 4; AdamW has them twice.
    assert "127 MB" in out
    assert "adafactor, ZeRO-1" in out


@pytest.mark.usefixtures("_no_compilers")
def test_what_does_not_fit_is_said_and_is_the_status(capsys):
    sizes = "--n_layer 2 --n_embd 8192 --n_head 64"
    status, out, _ = shown(capsys, f"{sizes} --devices v5e:1x1")
    assert status == 1
    assert "It does not fit." in out


def test_compiles_for_this_machine(capsys):
    flags = "--n_layer 1 --n_embd 32 --block_size 16 --devices cpu:8 --zero_1"
    status, out, _ = shown(capsys, f"{flags} --mesh data=2,fsdp=4")
    assert status == 0
    for words in ("the step needs", "all-gather", "donated: ", "adamw_torch, ZeRO-1"):
        assert words in out


def test_the_jobs_bytes_are_the_compilers():
    slice_ = named_slice("cpu:8")
    mesh = make_mesh("data=2,fsdp=4", slice_devices(slice_))
    recipe = Recipe(max_steps=10, optim="adafactor")
    model = GPT2Config(n_layer=1, n_embd=32, block_size=16)
    job = Job(zero_1=True)
    setup = build_setup(RunConfig(recipe=recipe, model=model, job=job), mesh)
    args = setup.position.state, setup.batch
    plan = plan_step(setup.train_step, *args, slice_=slice_)
    told = sum(leaf.on_device for leaf in bytes_by_leaf(args))
    assert told == plan.cost.arguments
    assert plan.on_device >= told
    assert plan.cost.not_donated == ()


def test_compiles_nothing_if_asked_not_to(capsys):
    status, out, _ = shown(capsys, "--devices cpu:8 --shapes_only")
    assert status == 0
    assert "nothing was compiled, as asked" in out
    assert "the step needs" not in out


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ("--devices v5e:5x5", "`devices` must be a slice that there is, got 'v5e:5x5'"),
        ("--devices cpu:8 --mesh data=3", "3 places for 8 devices. It would fit with"),
        ("--devices cpu:8 --mesh rows=8", "`mesh` must be one of 'data', 'fsdp'"),
        ("--device cpu:8", "Did you mean `--devices`?"),
        ("--model gpt3", "`preset` must be one of"),
    ],
)
def test_refuses_in_a_sentence(capsys, flags, message):
    status, out, err = shown(capsys, flags)
    assert (status, out) == (2, "")
    assert message in err
