"""Apply four effects to photographs; write a collage and a quality report. On three workers.

Every photograph is resized, then turned gray and sepia, blurred, and reduced to its edges. Each
picture gets a thumbnail for the collage, and each effect is compared with the resized photograph
for the report. All of that is kept in a store, so that a second run only writes the files again.
Run it with the photographs that come with scikit-image, or with your own::

    python notebooks/image_pipeline.py
    python notebooks/image_pipeline.py ~/Pictures/holiday --output holiday
"""

from __future__ import annotations

import argparse
import csv
import logging
import math
import sys
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
from cloudpickle import register_pickle_by_value
from dask.distributed import Client, Nanny, Scheduler, SpecCluster
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageOps
from skimage import color, feature, filters, measure, metrics, transform, util

from handoff_dask import (
    DAG,
    ExecutionResult,
    FunctionFailedError,
    HandoffError,
    collocated,
    execute,
    function,
)

#: Photographs that come with scikit-image; it would download the others.
PACKAGED = (
    "astronaut.png",
    "chelsea.png",
    "coffee.png",
    "hubble_deep_field.jpg",
    "retina.jpg",
    "rocket.jpg",
)
SUFFIXES = {".bmp", ".gif", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp"}

#: What each worker of the embedded cluster offers: cores, MB, units. The GPU is only a number here,
#: but it is assigned like a real one.
CAPABILITIES = {
    "large": {"cpu": 4, "memory": 4000},
    "small": {"cpu": 1, "memory": 1000},
    "gpu": {"cpu": 2, "memory": 2000, "gpu": 1},
}

#: Pixels of shape (rows, columns, 3), red, green and blue.
Picture: TypeAlias = NDArray[np.uint8]
Metrics: TypeAlias = dict[str, float]


class PictureError(ValueError):
    """A photograph that cannot be read; the message names the file or folder."""


# The functions of the DAG are plain functions; `@function` says what they cost, and changes nothing
# else about them. They pass pictures as bytes, which take a quarter of the space of the floats that
# the algorithms compute with.


# Inline: evaluated inside resize, so that the full size is never a result.
@function(type="inline")
def read(path: str, changed: int = 0) -> Picture:
    """Decode a photograph, upright as its camera was held.

    `changed` is when the file was. It only tells the store that a photograph is not the one that
    had this path before.
    """
    try:
        with Image.open(path) as photograph:
            return np.asarray(ImageOps.exif_transpose(photograph).convert("RGB"))
    except Exception as error:  # Pillow raises whatever its decoders do
        raise PictureError(f"{path} is not a picture that can be read: {error}") from error


@function(cost={"cpu": 1, "memory": "500 MB"})
def resize(picture: Picture, side: int) -> Picture:
    """Scale so that the longer side has this many pixels."""
    rows, columns = picture.shape[:2]
    scale = side / max(rows, columns)
    shape = (max(1, round(rows * scale)), max(1, round(columns * scale)))
    small = transform.resize(util.img_as_float32(picture), shape, anti_aliasing=scale < 1)
    return util.img_as_ubyte(small.clip(0, 1))


@function(cost={"cpu": 1, "memory": "200 MB"})
def grayscale(picture: Picture) -> Picture:
    """Keep the luminance only."""
    return util.img_as_ubyte(color.gray2rgb(color.rgb2gray(picture)))


@function(cost={"cpu": 1, "memory": "200 MB"})
def sepia(picture: Picture) -> Picture:
    """Tone like an old print."""
    tones = np.array([[0.393, 0.769, 0.189], [0.349, 0.686, 0.168], [0.272, 0.534, 0.131]])
    return util.img_as_ubyte((util.img_as_float32(picture) @ tones.T).clip(0, 1))


@function(cost={"cpu": 1, "memory": "200 MB"})
def blur(picture: Picture, sigma: float) -> Picture:
    """Smooth with a Gaussian of this width in pixels."""
    return util.img_as_ubyte(filters.gaussian(picture, sigma, channel_axis=-1).clip(0, 1))


@function(cost={"cpu": 1, "memory": "400 MB", "gpu": 1})
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
    with np.errstate(divide="ignore"):  # the same picture: infinitely like itself
        psnr = float(metrics.peak_signal_noise_ratio(photograph, effect))
    return {
        "ssim": float(metrics.structural_similarity(before, after, data_range=1)),
        "psnr": psnr,
        "colour": _share(_colourfulness, photograph, effect),
        "sharpness": _share(lambda gray: float(filters.laplace(gray).var()), before, after),
        "entropy": _share(measure.shannon_entropy, before.round(2), after.round(2)),
    }


def _share(
    measured: Callable[[NDArray[Any]], float],
    before: NDArray[Any],
    after: NDArray[Any],
) -> float:
    whole = measured(before)
    return float(measured(after) / whole) if whole else math.nan


def _colourfulness(picture: Picture) -> float:
    red, green, blue = np.moveaxis(picture.astype(float), -1, 0)
    opponents = np.stack([red - green, (red + green) / 2 - blue])
    spread, offset = opponents.std(axis=(1, 2)), opponents.mean(axis=(1, 2))
    return float(np.hypot(*spread) + 0.3 * np.hypot(*offset))


@function(cost={"cpu": 1, "memory": "500 MB"})
def compare(photograph: Picture, *effects: Picture) -> list[Metrics]:
    """Measure every effect against its photograph."""
    return [quality(photograph, effect) for effect in effects]


def thumbnail(picture: Picture, side: int) -> Picture:
    """Fit a picture, centred, into a square."""
    small = ImageOps.pad(Image.fromarray(picture), (side, side), color=(24, 24, 24))
    return np.asarray(small)


@function(cost={"cpu": 1, "memory": "100 MB"})
def collage(thumbnails: Sequence[Picture], names: Sequence[str], columns: Sequence[str]) -> Picture:
    """Lay thumbnails out, a photograph a row and an effect a column, under their names."""
    side, margin, header = thumbnails[0].shape[0], 8, 28
    width = margin + len(columns) * (side + margin)
    height = header + len(names) * (side + header)
    sheet = Image.new("RGB", (width, height), (250, 250, 247))
    draw = ImageDraw.Draw(sheet)
    for column, title in enumerate(columns):
        draw.text((margin + column * (side + margin), margin), title, fill=(24, 24, 24))
    for row, name in enumerate(names):
        top = header + row * (side + header)
        for column in range(len(columns)):
            picture = Image.fromarray(thumbnails[row * len(columns) + column])
            sheet.paste(picture, (margin + column * (side + margin), top))
        draw.text((margin, top + side + 6), name, fill=(96, 96, 96))
    return np.asarray(sheet)


def report(measured: Sequence[Sequence[Metrics]], names: Sequence[str]) -> list[dict[str, object]]:
    """Make one row of every photograph and effect."""
    return [
        {"photograph": name, "effect": effect, **numbers}
        for name, effects in zip(names, measured, strict=True)
        for effect, numbers in zip(EFFECTS, effects, strict=True)
    ]


# Not stored: they run for the files that they write, not for what they return.
@function(stored=False)
def save_picture(picture: Picture, path: str) -> str:
    """Write a picture to a file and return its path."""
    Image.fromarray(picture).save(path)
    return path


@function(stored=False)
def save_table(rows: Sequence[Mapping[str, object]], path: str) -> str:
    """Write rows to a CSV file and return its path."""
    with Path(path).open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, fieldnames=list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    return path


#: The effects, and their arguments after the picture.
EFFECTS: dict[str, tuple[Callable[..., Picture], list[float]]] = {
    "grayscale": (grayscale, []),
    "sepia": (sepia, []),
    "blur": (blur, [3.0]),
    "edges": (edges, [1.5]),
}


def build_dag(photographs: Iterable[str | Path], output: str | Path, side: int = 640) -> DAG:
    """Build the pipeline.

    Parameters
    ----------
    photographs
        Paths, readable from every worker.
    output
        Folder for ``collage.png`` and ``report.csv``; it exists.
    side
        Pixels of the longer side that photographs are resized to.
    """
    paths = [Path(path) for path in photographs]
    names = [path.name for path in paths]
    dag = DAG("image_pipeline")
    thumbnails, measured = [], []
    for path, name in zip(paths, names, strict=True):
        photograph = dag.add(read, str(path), path.stat().st_mtime_ns, id=("read", name))
        resized = dag.add(resize, photograph, side, id=("resize", name))
        pictures = {"resize": resized}
        for effect, (code, extra) in EFFECTS.items():
            pictures[effect] = dag.add(code, resized, *extra, id=(effect, name))
        for step, picture in pictures.items():
            # Collocated with the picture, so that only the thumbnail is sent.
            id_, node = ("thumbnail", step, name), collocated(picture)
            thumbnails.append(dag.add(thumbnail, picture, 160, id=id_, node=node))
        measured.append(dag.add(compare, *pictures.values(), id=("quality", name)))
    sheet = dag.add(collage, thumbnails, names, ["photograph", *EFFECTS])
    rows = dag.add(report, measured, names)
    output = Path(output)
    dag.add(save_picture, sheet, str(output / "collage.png"), id=("save", "collage"))
    dag.add(save_table, rows, str(output / "report.csv"), id=("save", "report"))
    return dag


def make_cluster() -> SpecCluster:
    """Start three worker processes that offer what CAPABILITIES says."""
    workers = {
        name: {
            "cls": Nanny,
            "options": {
                "nthreads": int(offered["cpu"]),
                "resources": offered,
                "silence_logs": logging.CRITICAL,
            },
        }
        for name, offered in CAPABILITIES.items()
    }
    scheduler = {
        "cls": Scheduler,
        "options": {"dashboard": False, "dashboard_address": ":0", "host": "localhost"},
    }
    return SpecCluster(workers=workers, scheduler=scheduler, silence_logs=logging.CRITICAL)


def find_photographs(folder: Path | None) -> list[Path]:
    """List the pictures of a folder, or those that come with scikit-image.

    Raises
    ------
    PictureError
        The folder does not exist, or has no pictures.
    """
    if folder is None:
        return [Path(str(files("skimage") / "data" / name)) for name in PACKAGED]
    if not folder.is_dir():
        raise PictureError(f"{folder} is not a folder")
    pictures = sorted(path for path in folder.iterdir() if path.suffix.lower() in SUFFIXES)
    if not pictures:
        raise PictureError(f"{folder} has no pictures ({', '.join(sorted(SUFFIXES))})")
    return pictures


def show(result: ExecutionResult) -> str:
    """Format the report and the allocations for a terminal."""
    rows = result.results["report"]
    numbers = [name for name in rows[0] if name not in ("photograph", "effect")]
    lines = ["quality against the resized photograph", ""]
    lines.append(f"{'photograph':<24}{'effect':<12}" + "".join(f"{n:>11}" for n in numbers))
    for row in rows:
        values = "".join(f"{row[n]:>11.3f}" for n in numbers)
        lines.append(f"{row['photograph']:<24}{row['effect']:<12}{values}")
    names = {
        attempt.worker: attempt.worker_name
        for attempts in result.attempts.values()
        for attempt in attempts
        if attempt.outcome != "stored"
    }
    counts: dict[str, Counter[str]] = {}
    for id_, worker in result.allocations.items():
        step = id_[0] if isinstance(id_, tuple) else id_
        counts.setdefault(str(step), Counter())[names[worker]] += 1
    lines += ["", "what ran where", ""]
    lines.append(f"{'function':<24}" + "".join(f"{name:>8}" for name in CAPABILITIES))
    for step, ran in counts.items():
        lines.append(f"{step:<24}" + "".join(f"{ran[name] or '-':>8}" for name in CAPABILITIES))
    stored = sum(attempts[-1].outcome == "stored" for attempts in result.attempts.values())
    total = f"{len(result.allocations)} functions in {result.makespan:.1f} s"
    lines += ["", f"{total}, {stored} results from the store" if stored else total]
    return "\n".join(lines)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the pipeline from a command line; return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0] if __doc__ else None)
    parser.add_argument("folder", nargs="?", type=Path, help="your own photographs")
    parser.add_argument(
        "--output",
        type=Path,
        default=Path("image_pipeline_output"),
        help="where the results go, and the store",
    )
    args = parser.parse_args(argv)
    try:
        photographs = find_photographs(args.folder)
        args.output.mkdir(parents=True, exist_ok=True)
    except (PictureError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    dag = build_dag(photographs, args.output.resolve())
    with make_cluster() as cluster, Client(cluster) as client:
        try:
            result = execute(
                dag,
                client=client,
                results=["report", ("save", "collage"), ("save", "report")],
                store=args.output / "store",
            )
        except FunctionFailedError as error:
            print(f"error: {error.__cause__}", file=sys.stderr)
            return 1
        except HandoffError as error:
            print(f"error: {error}", file=sys.stderr)
            return 1
    print(show(result))
    print(f"\nwritten: {result.results['save', 'collage']}, {result.results['save', 'report']}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
else:
    # Imported by a notebook or a test: workers lack this module, so its code is sent to them.
    register_pickle_by_value(sys.modules[__name__])
