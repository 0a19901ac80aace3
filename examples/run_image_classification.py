"""Transformers' `run_image_classification.py` in JAX, with a module in Python.

`python examples/run_image_classification.py FOLDER` trains a tiny ViT on the digits of
scikit-learn. Images in a file are trained on by `jaxopt-tf train --train_file`.
"""

import pathlib
import sys

import transformers
from sklearn.datasets import load_digits

from jaxopt_tf import Recipe, data, jobs

digits = load_digits()
rows = [
    {"image": image, "label": int(label)}
    for image, label in zip(digits.images, digits.target, strict=True)
]
names = [str(name) for name in digits.target_names]
config = transformers.ViTConfig(
    image_size=8,
    patch_size=4,
    num_channels=1,
    hidden_size=64,
    num_hidden_layers=1,
    num_attention_heads=2,
    intermediate_size=64,
    id2label=dict(enumerate(names)),
    label2id={name: i for i, name in enumerate(names)},
)
transformers.set_seed(0)
module = transformers.ViTForImageClassification(config)

result = jobs.train(
    module,
    Recipe(
        max_steps=200,
        per_device_train_batch_size=32,
        learning_rate=1e-2,
        warmup_steps=0.1,
        weight_decay=0.01,
        decay_rule="transformers_v5",
    ),
    train_dataset=rows[:1500],
    eval_dataset=rows[1500:],
    data_collator=data.Images((8, 8), mean=[0.5], std=[0.5], rescale_factor=1 / 16),
    compute_metrics=jobs.task_metrics("image-classification", names),
    remove_unused_columns=False,  # the collator makes `pixel_values` of `image`
    output_dir=pathlib.Path(sys.argv[1]),
    eval_steps=100,
    save_steps=100,
    metric_for_best_model="accuracy",
    load_best_model_at_end=True,
)
print(f"accuracy {result.metrics.get('accuracy')}")
