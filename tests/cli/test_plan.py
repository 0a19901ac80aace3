"""`jaxopt-tf plan`."""

import json

import jax
import pytest

from jaxopt_tf import jobs
from jaxopt_tf.cli import main
from jaxopt_tf.planning import _slices, bytes_by_leaf
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
        _slices, "is_compiler_installed", lambda slice_: slice_.family == "cpu"
    )


def shown(capsys, flags):
    status = main(["plan", *flags.split()])
    captured = capsys.readouterr()
    return status, " ".join(captured.out.split()), captured.err  # lines are broken


@pytest.mark.usefixtures("_no_compilers")
def test_without_a_compiler_plans_from_shapes_and_names_the_package(capsys):
    flags = "--model gpt2 --n_layer 1 --devices v5e:4x4 --mesh data=4,fsdp=4"
    status, out, _ = shown(capsys, flags)
    assert status == 0
    assert "v5e:4x4: 16 x TPU v5e of 16 GB" in out
    assert 'pip install "jax[tpu]==' in out
    assert "activations were not counted" in out
    # Nothing is called fitting before activations are counted; no argument is named.
    assert "fits" not in out
    assert "Parameters, optimizer state, gradients fit (1% of a device's memory)" in out
    assert "slice_" not in out
    assert "devices` must have devices whose compiler is installed" in out
    assert "fsdp does not divide" not in out
    # 46 million parameters, most of them divided by 4; AdamW has them twice.
    assert "48.9 MB" in out
    assert "97.7 MB" in out
    assert "adafactor, ZeRO-1" in out


@pytest.mark.usefixtures("_no_compilers")
def test_step_that_does_not_fit_is_reported_by_the_exit_status(capsys):
    sizes = "--n_layer 2 --n_embd 8192 --n_head 64"
    status, out, _ = shown(capsys, f"{sizes} --devices v5e:1x1")
    assert status == 1
    assert "It does not fit." in out


# Llama 3 8B; the folder has no weights and no tokenizer.
LLAMA = {
    **{"model_type": "llama", "architectures": ["LlamaForCausalLM"]},
    **{"hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 32},
    **{"num_attention_heads": 32, "num_key_value_heads": 8, "head_dim": 128},
    **{"vocab_size": 128256, "max_position_embeddings": 8192, "rope_theta": 5e5},
}


@pytest.mark.usefixtures("_no_compilers")
def test_plans_a_folder_of_a_llama_with_a_mesh_on_which_it_fits(capsys, tmp_path):
    (tmp_path / "config.json").write_text(json.dumps(LLAMA))
    status, out, _ = shown(capsys, f"--model_name_or_path {tmp_path} --devices v5p-16")
    assert status == 0
    assert "v5p:2x2x2: 8 x TPU v5p of 95 GB" in out
    assert "This is a plan with `--mesh fsdp=8`: without `--mesh` each device" in out
    # 8.03 billion float32 parameters over 8 chips; AdamW has them twice.
    assert "parameters 4.02 GB 4.02 GB optimizer state 8.03 GB 8.03 GB" in out
    status, out, _ = shown(
        capsys, f"--model_name_or_path {tmp_path} --devices v5e-8 --mesh data=8"
    )
    assert status == 1
    assert (
        "It does not fit. Settings that need less memory: `--mesh fsdp=8`, `--bf16`, "
        "`--gradient_checkpointing`, a `--per_device_train_batch_size` below 8." in out
    )


def test_compiles_for_this_machine(capsys, monkeypatch):
    calls, make = [], jobs.plan

    def recorded(config, **options):
        calls.append((config, make(config, **options)))
        return calls[-1][1]

    monkeypatch.setattr(jobs, "plan", recorded)
    flags = "--n_layer 1 --n_embd 32 --block_size 16 --devices cpu:8 --zero_1"
    status, out, _ = shown(capsys, f"{flags} --mesh data=2,fsdp=4 --optim adafactor")
    assert status == 0
    for words in ("total of the step", "all-gather", "donated: ", "adafactor, ZeRO-1"):
        assert words in out
    ((config, plan),) = calls
    setup = jobs.build_setup(config, make_mesh("data=2,fsdp=4"))
    leaves = bytes_by_leaf((setup.run_state.state, setup.batch))
    assert sum(leaf.on_device for leaf in leaves) == plan.cost.arguments
    assert plan.on_device >= plan.cost.arguments
    assert plan.cost.unused_donations == ()


def test_shapes_only_compiles_nothing(capsys):
    status, out, _ = shown(capsys, "--devices cpu:8 --shapes_only")
    assert status == 0
    assert "nothing was compiled, as requested" in out
    assert "fits" not in out
    assert "total of the step" not in out


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ("--devices v5e:5x5", "`--devices` must be an existing slice, got 'v5e:5x5'"),
        (
            "--devices cpu:8 --mesh data=3",
            "a product of 3 for 8 devices. It would fit with",
        ),
        (
            "--mesh data=3",
            "a product of 3 for 1 device. It would fit with data=1. "
            "Alternatively, change `--devices`, which is 'cpu:1'.",
        ),
        ("--devices cpu:999", "`--devices` must have no more CPU devices"),
        ("--devices cpu:8 --mesh rows=8", "`--mesh` must be one of 'data', 'fsdp'"),
        ("--device cpu:8", "Did you mean --devices?"),
        ("--model gpt3", "`--preset` must be one of"),
    ],
)
def test_refuses_in_a_sentence_that_names_flags(capsys, flags, message):
    jax.devices()  # before the first call JAX could still make 999 devices
    status, out, err = shown(capsys, flags)
    assert (status, out) == (2, "")
    assert message in err
    assert "slice_" not in err
