"""Photographs through four effects, a quality report and a collage, on three unlike workers.

Every photograph is resized, then made gray, sepia, blurred and reduced to its edges. Each
picture gets a thumbnail, for the collage, and each effect is measured against the resized
photograph, for the report. Run it with the photographs that scikit-image carries, or with
your own::

    python notebooks/image_pipeline.py
    python notebooks/image_pipeline.py ~/Pictures/holiday --output /tmp/holiday
"""

from __future__ import annotations

import argparse
import csv
import math
import sys
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from importlib.resources import files
from pathlib import Path
from typing import TypeAlias

import numpy as np
from dask.distributed import Client, Nanny, Scheduler, SpecCluster
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageOps
from skimage import color, feature, filters, measure, metrics, transform, util

from handoff_dask import (
    DAG,
    ExecutionResult,
    Function,
    FunctionFailedError,
    HandoffError,
    collocated,
    execute,
)

#: Photographs of scikit-image that come with its package; the others it would download.
PACKAGED = (
    "astronaut.png",
    "chelsea.png",
    "coffee.png",
    "hubble_deep_field.jpg",
    "retina.jpg",
    "rocket.jpg",
)
SUFFIXES = {".bmp", ".gif", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp"}

#: What each worker of the embedded cluster offers: cores, MB, units. The GPU is a unit on
#: paper, which the gate hands out like a real one.
CAPABILITIES = {
    "large": {"cpu": 4, "memory": 4000},
    "small": {"cpu": 1, "memory": 1000},
    "gpu": {"cpu": 2, "memory": 2000, "gpu": 1},
}

#: Pixels of shape (rows, columns, 3), red, green and blue.
Picture: TypeAlias = NDArray[np.uint8]
Metrics: TypeAlias = dict[str, float]


class PictureError(ValueError):
    """A photograph that cannot be had; the message names the file or folder."""


# The functions of the DAG: plain ones, that know nothing of Handoff. Between them pictures
# travel as bytes, a quarter of the floats that the algorithms compute with.


def read(path: str) -> Picture:
    """Decode a photograph, upright as its camera was held."""
    try:
        with Image.open(path) as photograph:
            return np.asarray(ImageOps.exif_transpose(photograph).convert("RGB"))
    except Exception as error:  # Pillow raises whatever its decoders do
        raise PictureError(f"{path} is not a picture that can be read: {error}") from error


def resize(picture: Picture, side: int) -> Picture:
    """Scale so that the longer side has this many pixels."""
    rows, columns = picture.shape[:2]
    scale = side / max(rows, columns)
    shape = (max(1, round(rows * scale)), max(1, round(columns * scale)))
    small = transform.resize(util.img_as_float32(picture), shape, anti_aliasing=scale < 1)
    return util.img_as_ubyte(small.clip(0, 1))


def grayscale(picture: Picture) -> Picture:
    """Keep the luminance only."""
    return util.img_as_ubyte(color.gray2rgb(color.rgb2gray(picture)))


def sepia(picture: Picture) -> Picture:
    """Tone like an old print."""
    tones = np.array([[0.393, 0.769, 0.189], [0.349, 0.686, 0.168], [0.272, 0.534, 0.131]])
    return util.img_as_ubyte((util.img_as_float32(picture) @ tones.T).clip(0, 1))


def blur(picture: Picture, sigma: float) -> Picture:
    """Smooth with a Gaussian of this width in pixels."""
    return util.img_as_ubyte(filters.gaussian(picture, sigma, channel_axis=-1).clip(0, 1))


def edges(picture: Picture, sigma: float) -> Picture:
    """Draw the edges that Canny's detector finds, white on black."""
    return util.img_as_ubyte(color.gray2rgb(feature.canny(color.rgb2gray(picture), sigma)))


def quality(photograph: Picture, effect: Picture) -> Metrics:
    """Measure what an effect kept of a photograph.

    Returns
    -------
    dict
        ``ssim``: structural similarity of the luminance, at most 1. ``psnr``: dB. ``colour``
        (after Hasler and Suesstrunk), ``sharpness`` (variance of the Laplacian) and
        ``entropy``: the effect's as a share of the photograph's.
    """
    before, after = color.rgb2gray(photograph), color.rgb2gray(effect)
    return {
        "ssim": float(metrics.structural_similarity(before, after, data_range=1)),
        "psnr": float(metrics.peak_signal_noise_ratio(photograph, effect)),
        "colour": _share(_colourfulness, photograph, effect),
        "sharpness": _share(lambda gray: float(filters.laplace(gray).var()), before, after),
        "entropy": _share(measure.shannon_entropy, before.round(2), after.round(2)),
    }


def _share(
    measured: Callable[[NDArray[np.generic]], float],
    before: NDArray[np.generic],
    after: NDArray[np.generic],
) -> float:
    whole = measured(before)
    return float(measured(after) / whole) if whole else math.nan


def _colourfulness(picture: Picture) -> float:
    red, green, blue = np.moveaxis(picture.astype(float), -1, 0)
    opponents = np.stack([red - green, (red + green) / 2 - blue])
    spread, offset = opponents.std(axis=(1, 2)), opponents.mean(axis=(1, 2))
    return float(np.hypot(*spread) + 0.3 * np.hypot(*offset))
