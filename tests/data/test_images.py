"""`Images` against the image processors of Transformers."""

import io
import json
import sys

import numpy as np
import pytest

from jaxopt_tf.data import Images


def write(folder, **config):
    (folder / "preprocessor_config.json").write_text(json.dumps(config))
    return Images.from_folder(folder)


def images(rng):
    """A colour image of both layouts, fractions, and a grey image."""
    array = rng.integers(0, 256, (30, 25, 3)).astype(np.uint8)
    return [array, np.moveaxis(array, -1, 0), rng.random((3, 30, 25)), array[..., 0]]


CONFIGS = {
    "vit": {"size": {"height": 16, "width": 20}, "image_mean": [0.1, 0.2, 0.3]},
    "bicubic": {"size": {"height": 40, "width": 20}, "resample": 3},
    "same size": {"size": {"height": 30, "width": 25}, "rescale_factor": 1 / 16},
    "not resized": {"do_resize": False, "size": {"height": 30, "width": 25}},
    "not normalized": {"size": {"height": 8, "width": 8}, "do_normalize": False},
    "cropped": {
        "size": {"shortest_edge": 20},
        "do_center_crop": True,
        "crop_size": {"height": 18, "width": 19},
    },
    "crop with borders": {
        "size": {"shortest_edge": 20},
        "do_center_crop": True,
        "crop_size": {"height": 41, "width": 18},
    },
}


@pytest.mark.parametrize("name", CONFIGS)
def test_pixels_are_those_of_the_image_processor(rng, tmp_path, name):
    pillow = pytest.importorskip("PIL.Image", reason="it resizes")
    backends = pytest.importorskip("transformers.image_processing_backends")
    defaults = {
        "image_mean": [0.5, 0.5, 0.5], "image_std": [0.5, 0.25, 0.5],
        "do_resize": True, "do_rescale": True, "do_normalize": True, "resample": 2,
        "default_to_square": False,
    }  # fmt: skip
    settings = defaults | CONFIGS[name]
    processor = backends.PilBackend(**settings)
    ours = write(tmp_path, **settings)
    for image in images(rng):
        # `run_image_classification.py` converts images to RGB first.
        colour = image if image.ndim == 3 else np.stack([image] * 3)
        expected = processor(colour, return_tensors="np")["pixel_values"]
        found = ours([{"image": image}])["pixel_values"]
        assert found.dtype == np.float32
        np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5)
    grey = pillow.fromarray(images(rng)[3])
    expected = processor(grey.convert("RGB"), return_tensors="np")["pixel_values"]
    found = ours([{"image": grey}])["pixel_values"]
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5)


def test_files_bytes_and_lists_are_images_too(rng, tmp_path):
    pillow = pytest.importorskip("PIL.Image", reason="it reads files")
    array = rng.integers(0, 256, (8, 8, 3)).astype(np.uint8)
    pillow.fromarray(array).save(tmp_path / "a.png")
    content = (tmp_path / "a.png").read_bytes()
    forms = [
        array,
        array.tolist(),
        content,
        str(tmp_path / "a.png"),
        {"bytes": content, "path": None},
        {"bytes": None, "path": str(tmp_path / "a.png")},
        pillow.open(io.BytesIO(content)),
    ]
    collate = Images((8, 8), [0.5] * 3, [0.5] * 3)
    batch = collate([{"image": form, "label": i} for i, form in enumerate(forms)])
    assert batch["pixel_values"].shape == (7, 3, 8, 8)
    assert np.ptp(batch["pixel_values"], axis=0).max() == 0
    assert batch["labels"].tolist() == list(range(7))
    assert batch["labels"].dtype == np.int32
    with pytest.raises(ValueError, match="`image` must be an image file"):
        collate([{"image": content[:50]}])


def test_digits_of_scikit_learn_are_images_of_one_channel():
    # 8 x 8 numbers from 0 to 16.
    image = np.arange(64.0).reshape(8, 8) % 17
    collate = Images((8, 8), 0.5, 0.5, num_channels=1, rescale_factor=1 / 16)
    (pixels,) = collate([{"image": image}])["pixel_values"]
    np.testing.assert_allclose(pixels[0], image / 8 - 1, rtol=0, atol=1e-6)
    bare = Images((8, 8), None, None, rescale_factor=None, do_resize=False)
    assert bare.pixels(image).shape == (3, 8, 8)
    np.testing.assert_array_equal(bare.pixels(image)[2], image.astype(np.float32))


def test_an_image_of_another_size_is_refused_if_it_is_not_resized(tmp_path):
    collate = write(tmp_path, size={"height": 8, "width": 8}, do_resize=False)
    with pytest.raises(ValueError, match=r"8 x 8, but an image has 9 x 8.*`do_resize`"):
        collate([{"image": np.zeros((9, 8))}])


@pytest.mark.parametrize(
    ("image", "message"),
    [
        (np.zeros((8, 8, 5)), "3 channels.*8, 8"),
        (np.full((8, 8), 300.0), "from 0 to 1, or whole numbers from 0 to 255"),
        ([[1, 2], [3]], "an image or numbers, got list"),
        ({"bytes": None, "path": None}, "an image or numbers, got NoneType"),
    ],
    ids=["channels", "range", "ragged", "missing"],
)
def test_other_values_are_refused(image, message):
    collate = Images((8, 8), [0.5] * 3, [0.5] * 3)
    with pytest.raises(ValueError, match=f"`image` must .*{message}"):
        collate([{"image": image}])
    with pytest.raises(ValueError, match=r"named 'image', got the columns 'picture'"):
        collate([{"picture": image}])


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"size": {"longest_edge": 9}}, "`size` in .*preprocessor_config.json"),
        ({"do_pad": True}, "has do_pad"),
        ({"image_mean": [0.5]}, r"`mean` and `std` must have 3 numbers.*\[0.5\]"),
        ({"size": 0}, "`size` must be from 1"),
    ],
    ids=["size", "pad", "mean", "zero"],
)
def test_other_processors_are_refused(tmp_path, config, message):
    with pytest.raises(ValueError, match=message):
        write(tmp_path, **config)
    assert write(tmp_path, size=224).num_channels == 3
    (tmp_path / "preprocessor_config.json").write_text("{")
    with pytest.raises(ValueError, match="cannot be read"):
        Images.from_folder(tmp_path)


def test_pillow_is_named_if_it_is_missing(monkeypatch):
    monkeypatch.setitem(sys.modules, "PIL", None)
    collate = Images((8, 8), [0.5] * 3, [0.5] * 3)
    assert collate.pixels(np.zeros((8, 8))).shape == (3, 8, 8)
    with pytest.raises(ModuleNotFoundError, match=r"Pillow must be .*\.\[tasks\]"):
        collate.pixels(np.zeros((9, 8)))
