"""First step of a run: compilation in the background, and the time until its result.

with compile_ahead(train_step, shapes_of_state, batch) as compilation:
    evaluate(params)
    train_step = FirstStep(train_step, compilation, report, seconds_since_process_start)
"""

import concurrent.futures
import contextlib
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax

from .. import _IMPORTED_AT


@contextlib.contextmanager
def compile_ahead(
    train_step: Any, *args: Any
) -> Iterator[concurrent.futures.Future[None]]:
    """Compiles a step in a thread, during a context.

    Meanwhile the caller reads parameters and evaluates them. JAX keeps the program for
    calls with the same shapes and shardings. An error of the compilation is raised by
    the first call, too. The context ends when the compilation has ended. Contexts of
    JAX, such as `jax.default_matmul_precision`, apply to the calling thread only: in
    one of them, the first call compiles the step again.

    Args:
        train_step: a jitted function, or a `training.FrozenStep`.
        args: its arguments; `jax.ShapeDtypeStruct`s with shardings are sufficient.

    Yields:
        The compilation.
    """

    def compile_step() -> None:
        train_step.lower(*args).compile()

    with concurrent.futures.ThreadPoolExecutor(1, "compilation") as executor:
        yield executor.submit(compile_step)


class FirstStep:
    """Training step that measures the time until its first result is computed.

    Later calls add one comparison to the step, and do not wait.
    """

    def __init__(
        self,
        train_step: Callable[..., Any],
        compilation: concurrent.futures.Future[None],
        report: Callable[[Any, float], None],
        seconds_since_start: Callable[[], float],
    ):
        """Wraps a step.

        Args:
            train_step: the step.
            compilation: compilation of the step, which the first call waits for.
            report: receives the results of the first step, and the seconds at its end.
            seconds_since_start: function that returns the seconds since the start.
        """
        self._step, self._report = train_step, report
        self._compilation = compilation
        self._seconds, self._is_first = seconds_since_start, True

    def __call__(self, *args: Any) -> Any:
        """Makes a step."""
        if not self._is_first:
            return self._step(*args)
        self._is_first = False
        concurrent.futures.wait([self._compilation])
        results = jax.block_until_ready(self._step(*args))
        self._report(results, self._seconds())
        return results


def seconds_since_process_start() -> float:
    """Returns the age of this process; outside Linux, since the package's import."""
    with contextlib.suppress(OSError, ValueError, IndexError, AttributeError):
        # The second field, the name of the program, may contain spaces. The start is
        # field 22, in ticks since the machine was booted.
        _, _, fields = Path("/proc/self/stat").read_text().rpartition(")")
        start = int(fields.split()[19]) / os.sysconf("SC_CLK_TCK")
        age = time.clock_gettime(time.CLOCK_BOOTTIME) - start
        if age > 0:  # in some sandboxes the two clocks differ
            return age
    return time.monotonic() - _IMPORTED_AT
