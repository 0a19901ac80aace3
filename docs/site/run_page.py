"""Runs the code blocks of a page, in order, in an empty folder.

    python docs/site/run_page.py docs/lora.md

Blocks in `python` share their names; blocks in `sh` are run by bash. The first one that
fails ends the program.
"""

import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any


def run_page(page: Path) -> int:
    """Runs the blocks of a page, and returns their number."""
    text = page.read_text(encoding="utf-8")
    blocks = re.findall(r"^```(python|sh)\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
    names: dict[str, Any] = {"__name__": "__main__"}
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        for i, (language, block) in enumerate(blocks, 1):
            if language == "python":
                exec(compile(block, f"{page}, block {i}", "exec"), names)
            else:
                subprocess.run(["bash", "-euo", "pipefail", "-c", block], check=True)
        os.chdir("/")
    return len(blocks)


if __name__ == "__main__":
    number = run_page(Path(sys.argv[1]).resolve())
    if not number:
        sys.exit(f"{sys.argv[1]} has no blocks in `python` or `sh`.")
    print(f"{number} blocks ran.")
