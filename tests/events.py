"""Windows and evaluations for tests of monitors, without a run."""

import jax
import numpy as np

from jaxopt_tf.training import Evaluation, Metrics, Norms, Window


def metrics_of(
    loss,
    rate=1e-3,
    grads=1.0,
    updates=1e-2,
    params=10.0,
    items=64.0,
    clipped=False,
    skipped=False,
    stopped=False,
    layers=None,
):
    """Metrics as columns; a single number stands for all steps."""
    loss = np.asarray(loss, np.float32)

    def column(value, dtype=np.float32):
        return np.broadcast_to(np.asarray(value, dtype), loss.shape).copy()

    return Metrics(
        loss=loss,
        learning_rate=column(rate),
        norms=Norms(column(grads), column(updates), column(params)),
        num_items=column(items),
        is_clipped=column(clipped, bool),
        is_skipped=column(skipped, bool),
        is_stopped=column(stopped, bool),
        layers={
            name: Norms(*(column(norm) for norm in norms))
            for name, norms in (layers or {}).items()
        },
    )


def window_of(first_step, loss, seconds=0.5, **numbers):
    return Window(first_step, metrics_of(loss, **numbers), seconds)


def part(metrics, begin, end):
    """The columns from `begin` to `end`."""
    return jax.tree.map(lambda column: column[begin:end], metrics)


def tell(monitor, metrics, *, cuts=(), evaluations=None, first_step=1):
    """Tells of a run in windows of at most 10 steps, cut at `cuts` as well.

    Args:
        monitor: who is told.
        metrics: columns of all steps.
        cuts: steps after which a window ends.
        evaluations: held-out losses by step.
        first_step: of the columns.
    """
    evaluations = evaluations or {}
    last_step = first_step + len(metrics.loss) - 1
    ends = {*range(first_step + 9, last_step, 10), *cuts, *evaluations, last_step}
    begin = first_step
    for end in sorted(ends):
        if first_step <= end <= last_step:
            columns = part(metrics, begin - first_step, end - first_step + 1)
            monitor.window(Window(begin, columns, 0.1))
            begin = end + 1
        if end in evaluations:
            monitor.evaluation(Evaluation(end, {"loss": evaluations[end]}))


def are_same(one, other):
    """Returns whether two events are equal bit for bit, apart from their duration."""
    if isinstance(one, Evaluation) or isinstance(other, Evaluation):
        return repr(one) == repr(other)
    leaves, structure = jax.tree.flatten((one.first_step, one.metrics))
    others, other_structure = jax.tree.flatten((other.first_step, other.metrics))
    return structure == other_structure and all(
        np.asarray(a).dtype == np.asarray(b).dtype
        and np.asarray(a).tobytes() == np.asarray(b).tobytes()
        for a, b in zip(leaves, others, strict=True)
    )
