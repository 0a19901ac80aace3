"""What the border loads, and when."""

import subprocess
import sys


def test_torch_and_transformers_are_loaded_by_what_needs_them_only():
    heavy = ["torch", "transformers", "accelerate"]
    listed = f"[m for m in {heavy} if m in sys.modules]"
    code = f"import jaxopt_tf.interop, sys; print({listed})"
    printed = subprocess.check_output([sys.executable, "-c", code], text=True)
    assert printed.strip() == "[]"
