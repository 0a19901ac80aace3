"""Time from the start of a process to its first step: the first and a later start.

The default job is started in new processes, each with a new run folder. The first start
has an empty compilation cache, and the later ones have the cache that it wrote. The
time includes Python's imports, the text, and the evaluation before the first step.

    python -m benchmarks.seconds_to_first_step
"""

import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

from ._report import Row, main

_LIMIT = 0.5


def rows(smoke: bool) -> Iterator[Row]:
    """Measures pairs of a first and a second start."""
    pairs = []
    with tempfile.TemporaryDirectory() as folder:
        # Once before, which compiles Python's modules and reads all files.
        _seconds(Path(folder, "warmup"), Path(folder, "cache-of-warmup"))
        for n in range(1 if smoke else 5):
            cache = Path(folder, f"cache-{n}")
            first = _seconds(Path(folder, f"first-{n}"), cache)
            pairs.append((first, _seconds(Path(folder, f"second-{n}"), cache)))
    firsts, seconds = zip(*pairs, strict=True)
    ratios = [second / first for first, second in pairs]
    yield Row(
        claim="seconds to the first step of the default job: second start over first",
        value=statistics.median(ratios),
        unit="of the first",
        limit=_LIMIT,
        detail=f"first {_listed(firsts)}, second {_listed(seconds)}",
    )


def _seconds(run: Path, cache: Path) -> float:
    """Starts the default job in a new process, and reads the time from its folder."""
    environment = os.environ | {
        "XDG_CACHE_HOME": str(cache),
        # Python's own cache of compiled modules, as for an installed package.
        "PYTHONDONTWRITEBYTECODE": "",
        "PYTHONPYCACHEPREFIX": str(run.with_name("pycache")),
    }
    for name in list(environment):
        if name.startswith("JAX_") and "CACHE" in name:
            del environment[name]
    code = "import sys; from jaxopt_tf.cli import main; sys.exit(main())"
    flags = ["train", "--max_steps", "3", "--output_dir", str(run)]
    subprocess.run(
        [sys.executable, "-c", code, *flags],
        env=environment,
        check=True,
        stdout=subprocess.DEVNULL,
    )
    (start,) = (run / "starts.jsonl").read_text().splitlines()
    return json.loads(start)["seconds_to_first_step"]


def _listed(seconds: tuple[float, ...]) -> str:
    low, middle, high = min(seconds), statistics.median(seconds), max(seconds)
    return f"{middle:.1f} s ({low:.1f} to {high:.1f})"


if __name__ == "__main__":
    main("Seconds to the first step", rows)
