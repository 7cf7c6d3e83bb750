"""The image pipeline: its algorithms, its command line, and a run on worker processes."""

from __future__ import annotations

import csv

import pytest

np = pytest.importorskip("numpy")
pytest.importorskip("skimage")
Image = pytest.importorskip("PIL.Image")

import image_pipeline as pipeline  # noqa: E402 - only where its libraries are


@pytest.fixture(scope="module")
def photograph():
    """A small real photograph."""
    (path,) = [p for p in pipeline.find_photographs(None) if p.name == "chelsea.png"]
    return pipeline.resize(pipeline.read(str(path)), 120)


def test_resize_keeps_the_shape(photograph):
    """The longer side has the requested size, and the other is in proportion."""
    assert photograph.shape == (80, 120, 3)
    assert photograph.dtype == np.uint8


def test_grayscale_has_no_colour(photograph):
    """All three channels are the same, and lighter pixels stay lighter."""
    gray = pipeline.grayscale(photograph)
    assert (np.ptp(gray, axis=-1) == 0).all()
    lightness = photograph.astype(float).mean(axis=-1)
    assert np.corrcoef(lightness.ravel(), gray[..., 0].ravel())[0, 1] > 0.95


def test_sepia_is_warm(photograph):
    """Red is never below green, nor green below blue."""
    red, green, blue = np.moveaxis(pipeline.sepia(photograph).astype(int), -1, 0)
    assert (red >= green).all()
    assert (green >= blue).all()
    assert (red > blue).mean() > 0.9


def test_blur_removes_detail_and_keeps_brightness(photograph):
    """A wider blur leaves less detail; the mean stays."""
    sharpness = [
        pipeline.quality(photograph, pipeline.blur(photograph, sigma))["sharpness"]
        for sigma in (0.5, 1, 4)
    ]
    assert 1 > sharpness[0] > sharpness[1] > sharpness[2]
    blurred = pipeline.blur(photograph, 4)
    assert blurred.mean() == pytest.approx(photograph.mean(), abs=2)


def test_edges_are_where_the_picture_changes():
    """The edges of a white square on black are its outline."""
    square = np.zeros((40, 40, 3), dtype=np.uint8)
    square[10:30, 10:30] = 255
    outline = pipeline.edges(square, 1.0)[..., 0] > 0
    assert outline.any()
    assert not outline[14:26, 14:26].any()
    assert not outline[:6].any()


def test_quality_of_a_picture_against_itself(photograph):
    """A picture has perfect quality compared with itself."""
    itself = pipeline.quality(photograph, photograph)
    assert itself["ssim"] == itself["sharpness"] == itself["entropy"] == itself["colour"] == 1


@pytest.mark.parametrize("make", [lambda tmp: tmp / "nowhere", lambda tmp: tmp])
def test_a_folder_without_pictures(tmp_path, capsys, make):
    """A folder that is missing or has no pictures gives one line and exit code 2."""
    folder = make(tmp_path)
    assert pipeline.main([str(folder), "--output", str(tmp_path / "out")]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.count("\n") == 1
    assert str(folder) in err
    assert not (tmp_path / "out").exists()


def test_a_corrupt_picture_is_named(tmp_path, capfd):
    """A file that is not a picture ends the run with its name in one line and exit code 1."""
    (tmp_path / "broken.png").write_text("not a picture")
    assert pipeline.main([str(tmp_path), "--output", str(tmp_path / "out")]) == 1
    out, err = capfd.readouterr()
    assert out == ""
    assert err.count("\n") == 1
    assert "broken.png" in err


def test_the_pipeline_on_three_worker_processes(tmp_path, capsys):
    """With own pictures, edges run only on the GPU worker; collage and report are written.

    The second time, that is all that runs.
    """
    photographs = tmp_path / "photographs"
    photographs.mkdir()
    for path in pipeline.find_photographs(None)[:2]:
        picture = pipeline.resize(pipeline.read(str(path)), 200)
        Image.fromarray(picture).save(photographs / path.name)
    out = tmp_path / "out"
    assert pipeline.main([str(photographs), "--output", str(out)]) == 0
    text = capsys.readouterr().out
    (edges,) = [line.split() for line in text.splitlines() if line.split()[:2] == ["edges", "-"]]
    assert edges == ["edges", "-", "-", "2"]
    with (out / "report.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [(r["photograph"], r["effect"]) for r in rows] == [
        (name, effect)
        for name in ("astronaut.png", "chelsea.png")
        for effect in ("grayscale", "sepia", "blur", "edges")
    ]
    assert all(float(r["ssim"]) < 1 for r in rows)
    with Image.open(out / "collage.png") as collage:
        pixels = np.asarray(collage)
    assert collage.size == (8 + 5 * 168, 28 + 2 * 188)
    assert pixels.std() > 30  # pictures, not a blank sheet

    (out / "report.csv").unlink()
    assert pipeline.main([str(photographs), "--output", str(out)]) == 0
    text = capsys.readouterr().out
    assert "2 functions in" in text
    assert "2 results from the store" in text
    assert (out / "report.csv").exists()
