"""Collator of images, as the image processors of Transformers prepare them."""

import io
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from .. import _checks
from ._examples import Arrays, to_numpy

_FILE = "preprocessor_config.json"
_IMAGE = ("image", "img", "pixel_values")
_LABELS = ("label", "label_ids", "labels")
_BILINEAR = 2  # `PIL.Image.Resampling.BILINEAR`
# Steps of other image processors, which are refused.
_OTHER_STEPS = ("do_pad", "do_reduce_labels", "do_flip_channel_order")


class Images:
    """Collator that resizes, rescales and normalizes images.

    Source: transformers 5.23 `image_processing_backends.py`, `PilBackend`;
        `image_transforms.py`.
    """

    def __init__(
        self,
        size: tuple[int, int] | int,
        mean: Sequence[float] | float | None,
        std: Sequence[float] | float | None,
        *,
        num_channels: int | None = None,
        rescale_factor: float | None = 1 / 255,
        do_resize: bool = True,
        resample: int = _BILINEAR,
        crop_size: tuple[int, int] | None = None,
    ):
        """Stores the settings.

        Args:
            size: height and width of images; or one number, the length of the shortest
                edge, which keeps the ratio of height and width.
            mean: mean of each channel after rescaling; None for no normalization.
            std: standard deviation of each channel.
            num_channels: C; None for the length of `mean`, or 3.
            rescale_factor: factor of all values; None for none.
            do_resize: whether images of another size are resized instead of refused.
            resample: number of Pillow's filter that resizes.
            crop_size: height and width of the center that is cut out; None for all.

        Raises:
            ValueError: if a size is less than 1, or `mean` has another number of
                channels.
        """
        sizes = (size,) if isinstance(size, int) else tuple(size)
        for number in (*sizes, *(crop_size or ())):
            _checks.whole_number("size", number, minimum=1)
        lengths = {len(x) for x in (mean, std) if isinstance(x, Sequence)}
        if num_channels is None:
            num_channels = max(lengths, default=3)
        if (mean is None) != (std is None) or lengths - {num_channels}:
            raise ValueError(
                f"`mean` and `std` must have {num_channels} numbers, one for each "
                f"channel, got {mean!r} and {std!r}. Correct them in {_FILE}."
            )
        self.num_channels = num_channels
        self._size, self._crop_size = sizes, crop_size
        self._mean, self._std = mean, std
        self._factor, self._do_resize = rescale_factor, do_resize
        self._resample = resample

    @classmethod
    def from_folder(
        cls, folder: str | Path, *, num_channels: int | None = None
    ) -> "Images":
        """Returns the collator of the `preprocessor_config.json` in a model folder.

        Args:
            folder: folder of a model.
            num_channels: number of channels that the model takes; None for that of the
                file.

        Raises:
            ValueError: if the file does not exist or cannot be read, or has other
                steps.

        Source: transformers 5.23 `models/vit/image_processing_vit.py`, for settings
            that the file lacks.
        """
        path = Path(folder) / _FILE
        try:
            config = dict(json.loads(path.read_text(encoding="utf-8")))
        except (OSError, ValueError, TypeError) as error:
            raise ValueError(
                f"`model_name_or_path` must be a folder with a {_FILE}, but "
                f"{str(path)!r} cannot be read: {error}. Save the image processor of "
                "the model with `save_pretrained`."
            ) from error
        others = [name for name in _OTHER_STEPS if config.get(name)]
        if others:
            raise ValueError(
                f"`model_name_or_path` must have an image processor that only resizes, "
                f"crops, rescales and normalizes, but {str(path)!r} has "
                f"{', '.join(others)}. Prepare `pixel_values` and use `train`."
            )
        is_normalized = config.get("do_normalize", True)
        crop_size = config.get("crop_size") if config.get("do_center_crop") else None
        return cls(
            _read_size(config.get("size", 224), path),
            config.get("image_mean", (0.5, 0.5, 0.5)) if is_normalized else None,
            config.get("image_std", (0.5, 0.5, 0.5)) if is_normalized else None,
            num_channels=num_channels,
            rescale_factor=(
                config.get("rescale_factor", 1 / 255)
                if config.get("do_rescale", True)
                else None
            ),
            do_resize=config.get("do_resize", True),
            resample=config.get("resample", _BILINEAR),
            crop_size=None if crop_size is None else _crop_size(crop_size, path),
        )

    def __call__(self, examples: Sequence[Mapping[str, Any]]) -> Arrays:
        """Returns the arrays of a micro-batch.

        Args:
            examples: B examples with an `image`: an image of Pillow, the bytes of a
                file, a dictionary with `bytes` or `path`, or an array [H, W],
                [H, W, C] or [C, H, W]; and with a `label`, except for prediction.

        Returns:
            `pixel_values`, float32 [B, C, H, W], and `labels` [B].

        Raises:
            ModuleNotFoundError: if Pillow is needed and not installed.
            ValueError: if an image has another size and is not resized, has another
                number of channels, or cannot be read.
        """
        name = next((n for n in _IMAGE if n in examples[0]), None)
        if name is None:
            raise ValueError(
                "`text_column` must be a column of images named 'image', got the "
                f"columns {', '.join(map(repr, examples[0]))}. Rename the column."
            )
        pixels = [self.pixels(example[name]) for example in examples]
        arrays = {"pixel_values": np.stack(pixels)}
        label = next((n for n in _LABELS if n in examples[0]), None)
        if label is not None:
            labels = to_numpy([example[label] for example in examples])
            is_whole = labels.dtype.kind in "biu"
            arrays["labels"] = labels.astype(np.int32) if is_whole else labels
        return arrays

    def pixels(self, image: Any) -> np.ndarray:
        """Returns an image as float32 [C, H, W]."""
        array = self._with_channels(_read_image(image, self.num_channels))
        height, width = self._target(array.shape[1:])
        if self._do_resize:
            array = _resized(array, (height, width), self._resample)
        elif self._crop_size is None and array.shape[1:] != (height, width):
            raise ValueError(
                f"`size` must be that of all images, {height} x {width}, but an image "
                f"has {array.shape[1]} x {array.shape[2]}. Set `do_resize` to true in "
                f"{_FILE}, or resize the image."
            )
        if self._crop_size is not None:
            array = _center(array, self._crop_size)
        if self._factor is not None:
            array = (array.astype(np.float64) * self._factor).astype(np.float32)
        array = array.astype(np.float32)
        if self._mean is not None:
            mean, std = (
                np.asarray(x, np.float32).reshape(-1, 1, 1)
                for x in (self._mean, self._std)
            )
            array = (array - mean) / std
        return array

    def _with_channels(self, array: np.ndarray) -> np.ndarray:
        """Returns an array [C, H, W]; a single channel is repeated."""
        if array.ndim == 2:
            array = array[None]
        elif array.ndim == 3 and array.shape[0] not in (1, 3, 4):
            array = np.moveaxis(array, -1, 0)
        if array.ndim == 3 and array.shape[0] == 1:
            array = np.repeat(array, self.num_channels, axis=0)
        if array.ndim != 3 or array.shape[0] != self.num_channels:
            raise ValueError(
                f"`image` must have {self.num_channels} channels, as the model, got an "
                f"array of shape {array.shape}. Convert the images."
            )
        return array

    def _target(self, size: Sequence[int]) -> tuple[int, int]:
        if len(self._size) == 2:
            return self._size[0], self._size[1]
        short, long = sorted(size)
        new_long = int(self._size[0] * long / short)
        is_portrait = size[0] > size[1]
        edges = (new_long, self._size[0]) if is_portrait else (self._size[0], new_long)
        return edges if long != short else (self._size[0], self._size[0])


def _read_size(size: Any, path: Path) -> tuple[int, int] | int:
    if isinstance(size, int):
        return size, size
    if isinstance(size, Mapping) and {"height", "width"} <= set(size):
        return size["height"], size["width"]
    edge = size.get("shortest_edge") if isinstance(size, Mapping) else None
    if edge and not size.get("longest_edge"):
        return int(edge)
    raise ValueError(
        f"`size` in {str(path)!r} must have `height` and `width`, or `shortest_edge` "
        f"only, got {size!r}. Prepare `pixel_values` and use `train`."
    )


def _crop_size(size: Any, path: Path) -> tuple[int, int]:
    found = _read_size(size, path)
    return (found, found) if isinstance(found, int) else found


def _read_image(image: Any, num_channels: int) -> np.ndarray:
    """Returns an image as an array of rank 2 or 3."""
    if isinstance(image, Mapping):
        image = image.get("bytes") or image.get("path")
    if isinstance(image, str | Path | bytes):
        pillow = _import_pillow()
        source = io.BytesIO(image) if isinstance(image, bytes) else image
        try:
            image = pillow.open(source)
            image.load()
        # Pillow raises many kinds of errors for damaged files.
        except Exception as error:
            raise ValueError(
                f"`image` must be an image file that Pillow can read, but it cannot: "
                f"{error}. Correct or remove the row."
            ) from error
    if hasattr(image, "convert"):  # an image of Pillow
        modes = {1: "L", 3: "RGB", 4: "RGBA"}
        image = image.convert(modes.get(num_channels, "RGB"))
    try:
        array = np.asarray(image)
        if array.dtype.kind in "biuf":
            is_byte = array.dtype.kind in "iu" and 0 <= array.min() <= array.max() < 256
            return array.astype(np.uint8) if is_byte else array
    except ValueError:  # rows of different lengths
        pass
    raise ValueError(
        f"`image` must be an image or numbers, got {type(image).__name__}. Give the "
        "column of the images."
    )


def _resized(array: np.ndarray, size: tuple[int, int], resample: int) -> np.ndarray:
    """Resizes an array [C, H, W] as an image of bytes."""
    # Numbers from 0 to 1 are converted to bytes and back, as by Transformers.
    is_fraction, whole = False, array
    if array.dtype != np.uint8:
        as_bytes = np.clip(array, 0, 255).astype(np.uint8)
        if not np.array_equal(as_bytes, array):
            is_fraction = bool(np.all((array >= 0) & (array <= 1)))
            if not is_fraction:
                raise ValueError(
                    "`image` must contain numbers from 0 to 1, or whole numbers from "
                    f"0 to 255, to be resized, got {array.min()} to {array.max()}. Set "
                    f"`do_resize` to false in {_FILE}, or convert the images."
                )
            as_bytes = (array.astype(np.float64) * 255).astype(np.float32)
        whole = as_bytes.astype(np.uint8)
    if whole.shape[1:] != size:
        pillow = _import_pillow()
        planes = whole[0] if len(whole) == 1 else np.moveaxis(whole, 0, -1)
        image = pillow.fromarray(np.ascontiguousarray(planes))
        found = np.asarray(image.resize((size[1], size[0]), resample=resample))
        whole = found[None] if found.ndim == 2 else np.moveaxis(found, -1, 0)
    if is_fraction:
        return (whole.astype(np.float64) * (1 / 255)).astype(np.float32)
    return whole


def _center(array: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Returns the center of an array [C, H, W]; zeros surround a smaller one."""
    missing = [
        max(0, new - old) for new, old in zip(size, array.shape[1:], strict=True)
    ]
    before = [math.ceil(n / 2) for n in missing]
    width = [(0, 0), *((b, n - b) for b, n in zip(before, missing, strict=True))]
    padded = np.pad(array, width)
    top, left = (
        (old - new) // 2 for new, old in zip(size, padded.shape[1:], strict=True)
    )
    return padded[:, top : top + size[0], left : left + size[1]]


def _import_pillow() -> Any:
    try:
        from PIL import Image
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            "Pillow must be installed to read and resize images. Install it with "
            '`pip install -e ".[tasks]"`.',
            name=error.name,
        ) from error
    return Image
