"""Weight decay path of a linear model against ridge regression."""

import jax
import jax.numpy as jnp
import numpy as np
from sklearn.datasets import load_diabetes
from sklearn.linear_model import Ridge

from jaxopt_tf import tuning
from jaxopt_tf.recipes import Recipe


def test_l2_comes_to_the_solutions_of_ridge_regression():
    # sgd adds decay * w to the gradient of mean((x w + b - y)^2), of n rows in a batch
    # that has all of them: Ridge with alpha = n * decay / 2.
    x, y = load_diabetes(return_X_y=True, scaled=False)
    x, y = x[:120], y[:120]
    x, y = (x - x.mean(0)) / x.std(0), (y - y.mean()) / y.std()
    examples = {"x": np.float32(x), "y": np.float32(y)}

    def loss_fn(params, batch):
        error = batch["x"] @ params["kernel"] + params["bias"] - batch["y"]
        return jnp.sum(error**2), len(batch["y"])

    recipe = Recipe(
        optim="sgd",
        optim_args={"momentum": 0.95, "nesterov": True},
        learning_rate=0.05,
        lr_scheduler_type="constant",
        max_grad_norm=0.0,
        max_steps=600,
        per_device_train_batch_size=90,
    )
    decays = np.array([0.01, 0.1, 1.0])
    path = tuning.decay_path(
        loss_fn,
        lambda seed: {"kernel": np.zeros(10, np.float32), "bias": np.zeros((1,), "f4")},
        examples,
        recipe,
        decays,
        num_folds=4,
        devices=jax.devices()[:1],
    )
    for d, f in np.ndindex(3, 4):
        rest, own = path.fold_of_row != f, path.fold_of_row == f
        ridge = Ridge(alpha=90 * decays[d] / 2).fit(x[rest], y[rest])
        for ours, rows in ((path.training, rest), (path.eval_loss, own)):
            theirs = np.mean((ridge.predict(x[rows]) - y[rows]) ** 2)
            np.testing.assert_allclose(ours[d, f], theirs, rtol=1e-4)
