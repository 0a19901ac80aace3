"""`jaxopt-tf doctor` and `jaxopt-tf explain`."""

import pytest

from jaxopt_tf.cli import main

pytestmark = pytest.mark.promotion_of_others  # flax's layers


@pytest.mark.parametrize(
    "flags",
    [
        "",
        "--preset gpt2 --n_layer 1 --bf16",
        "--optim adafactor --scan_layers",
        "--lr_scheduler_type reduce_lr_on_plateau",
    ],
)
def test_doctor_finds_nothing_in_a_valid_recipe(capsys, flags):
    assert main(["doctor", *flags.split()]) == 0
    first, *rest = capsys.readouterr().out.splitlines()
    assert first == "nothing found"
    assert " ".join(map(str.strip, rest)) == (
        "Not judged: whether learning rate, batch size and number of steps suit the "
        "model and the data; the data; the loss function."
    )


def test_doctor_prints_its_findings(capsys):
    assert main(["doctor", "--warmup_steps", "1900", "--learning_rate", "1e-7"]) == 1
    shown = capsys.readouterr().out
    assert "1900 of 2000 steps are warmup" in shown
    assert "learning rate and weight decay is at most 1e-08" in shown
    # An argument, and no flag.
    words = " ".join(shown.split())
    assert "in Python, build the optimizer with" in words


def test_explain_prints_a_row_per_parameter(capsys):
    flags = "--n_layer 2 --scan_layers --optim adafactor"
    assert main(["explain", *flags.split()]) == 0
    lines = capsys.readouterr().out.splitlines()
    row = next(line for line in lines if "c_fc.kernel" in line)
    assert "2 x 128 x 512" in row
    assert lines[-1].startswith("437,760 parameters, ")
