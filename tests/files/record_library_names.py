"""Writes library_names.json: names and shapes of parameters as Haiku, Keras and Penzai
make them.

    pip install dm-haiku keras penzai jax
    KERAS_BACKEND=jax python tests/files/record_library_names.py
"""

import importlib.metadata
import json
import os
import pathlib

os.environ["KERAS_BACKEND"] = "jax"

import haiku as hk
import jax
import jax.numpy as jnp
import keras
from penzai import pz
from penzai.models.transformer.variants import llamalike_common

KEY = jax.random.key(0)


def haiku():
    def forward(x):
        x = hk.LayerNorm(-1, True, True)(hk.Linear(4)(x))
        x = hk.LayerNorm(-1, True, True, name="ln_f")(x)
        x = hk.LayerNorm(-1, True, True, name="post")(x)
        x = hk.BatchNorm(True, True, 0.9)(hk.RMSNorm(-1)(x), is_training=True)
        x = hk.Bias()(hk.nets.MLP([4, 4])(hk.GroupNorm(2)(x)))
        init = hk.initializers.RandomNormal()
        attention = hk.MultiHeadAttention(2, 2, w_init=init, model_size=4)
        x = attention(x[None], x[None], x[None])[0]
        x = x + hk.Embed(5, 4)(jnp.zeros(2, int))
        for core in (hk.GRU(4), hk.LSTM(4)):
            x, _ = core(x, core.initial_state(2))
        return hk.InstanceNorm(True, True)(hk.Conv1D(4, 3)(x[None]))

    params, _ = hk.transform_with_state(forward).init(KEY, jnp.ones((2, 4)))
    return {
        module: {name: list(leaf.shape) for name, leaf in leaves.items()}
        for module, leaves in params.items()
    }


def of_keras():
    layers = keras.layers
    inputs = keras.Input((6,), dtype="int32")
    x = layers.Dense(4)(layers.Embedding(5, 4)(inputs))
    x = layers.LayerNormalization()(x)
    x = layers.LayerNormalization(name="ln_f", center=False)(x)
    x = layers.BatchNormalization(name="post")(layers.BatchNormalization()(x))
    x = layers.BatchNormalization(scale=False)(x)
    x = layers.RMSNormalization()(layers.GroupNormalization(2)(x))
    x = layers.MultiHeadAttention(2, 2)(x, x)
    x = layers.GRU(4, return_sequences=True)(layers.LSTM(4, return_sequences=True)(x))
    x = layers.SeparableConv1D(4, 1)(layers.PReLU()(layers.Conv1D(4, 3)(x)))
    model = keras.Model(inputs, x)
    return {
        kind: [[variable.path, list(variable.shape)] for variable in variables]
        for kind, variables in (
            ("trainable", model.trainable_variables),
            ("non_trainable", model.non_trainable_variables),
        )
    }


def penzai():
    config = llamalike_common.LlamalikeTransformerConfig(
        num_kv_heads=1,
        query_head_multiplier=1,
        embedding_dim=4,
        projection_dim=2,
        mlp_hidden_dim=8,
        num_decoder_blocks=1,
        vocab_size=5,
        mlp_variant="swiglu",
        tie_embedder_and_logits=False,
        rope_wavelength=100.0,
        rms_norm_eps=1e-6,
        attention_type=llamalike_common.AttentionTypeGlobalCausal(),
    )
    features = {"features": 4}
    model = pz.nn.Sequential(
        [
            llamalike_common.build_llamalike_transformer(config, init_base_rng=KEY),
            pz.nn.Affine.from_config("affine", KEY, features, features),
            pz.nn.LayerNorm.from_config("post", KEY, features),
        ]
    )
    _, params = pz.unbind_params(model, freeze=True)
    return [[p.label, list(jax.tree.leaves(p)[0].shape)] for p in params]


if __name__ == "__main__":
    names = ("dm-haiku", "keras", "penzai")
    recorded = {
        "versions": {name: importlib.metadata.version(name) for name in names},
        "haiku": haiku(),
        "keras": of_keras(),
        "penzai": penzai(),
    }
    path = pathlib.Path(__file__).with_name("library_names.json")
    path.write_text(json.dumps(recorded) + "\n")
