from __future__ import annotations

import numpy as np
import pytest
from bench.scores import (
    centre_boxes,
    centres,
    centres75,
    nearest,
    saliency,
    same_label,
    sees_centres,
    sees_salience,
    sees_yolo,
    yolo,
    yolo75,
    yolo_boxes,
)  # fmt: skip

from splitpoint.calibration.measures import open_measure


def raw_yolo(*boxes: tuple[float, float, float, float, int, float]) -> np.ndarray:
    """[1, 4 + 3 classes, places]: centre, size, class, score."""
    raw = np.zeros((1, 7, 5), np.float32)
    for k, (*place, kind, score) in enumerate(boxes):
        raw[0, :4, k] = place
        raw[0, 4 + kind, k] = score
    return raw


def test_yolo_boxes_are_corners_of_what_is_sure_and_not_covered() -> None:
    raw = raw_yolo((50, 40, 20, 10, 1, 0.5), (51, 40, 20, 10, 1, 0.9), (50, 40, 20, 10, 2, 0.4), (9, 9, 4, 4, 0, 0.29))
    found = yolo_boxes(raw)
    np.testing.assert_allclose(found.corners, [[41, 35, 61, 45], [40, 35, 60, 45]])
    np.testing.assert_allclose(found.scores, [0.9, 0.4], rtol=1e-6)
    assert found.classes.tolist() == [1, 2]


def test_yolo_compares_boxes() -> None:
    whole = raw_yolo((50, 40, 20, 10, 1, 0.9), (20, 20, 8, 8, 0, 0.8))
    moved = raw_yolo((54, 40, 20, 10, 1, 0.9), (20, 20, 8, 8, 0, 0.8))  # 16 of 24 shared: IoU 2/3
    assert (yolo(whole, whole), yolo(whole, moved), yolo75(whole, moved)) == (1.0, 1.0, 0.5)
    assert yolo(whole, raw_yolo()) == 0.0
    assert (sees_yolo(whole), sees_yolo(raw_yolo())) == (True, False)
    assert open_measure("bench.scores:yolo_measure", "raw")({"raw": whole}, {"raw": raw_yolo()}) == 0.0


def raw_centres(*peaks: tuple[int, int, int, float]) -> np.ndarray:
    """[1, 84, 8, 8]: class, y, x, score; boxes go 8 to the left, 4 up, 12 right and 16 down."""
    raw = np.zeros((1, 84, 8, 8), np.float32)
    raw[0, 80:] = np.array([8, 4, 12, 16]).reshape(4, 1, 1)
    for kind, y, x, score in peaks:
        raw[0, kind, y, x] = score
    return raw


def test_centres_are_peaks_four_pixels_apart() -> None:
    found = centre_boxes(raw_centres((7, 3, 5, 0.6), (7, 3, 6, 0.5), (2, 0, 0, 0.9), (3, 1, 1, 0.2)))
    np.testing.assert_allclose(found.corners, [[-8, -4, 12, 16], [12, 8, 32, 28]])
    assert found.classes.tolist() == [2, 7]


def test_centres_compares_boxes() -> None:
    whole, other = raw_centres((7, 3, 5, 0.6)), raw_centres((7, 3, 6, 0.6))  # 16 of 24 shared
    assert (centres(whole, other), centres75(whole, other)) == (1.0, 0.0)
    assert centres(whole, raw_centres((6, 3, 5, 0.6))) == 0.0
    assert open_measure("bench.scores:centres_measure", "raw")({"raw": whole}, {"raw": other}) == 1.0
    assert (sees_centres(whole), sees_centres(raw_centres())) == (True, False)


def test_nearest_is_the_same_photo_by_the_cosine() -> None:
    gallery = [np.array([[1.0, 0.0]]), np.array([[0.0, 10.0]])]
    assert nearest(np.array([[5.0, 1.0]]), np.array([[0.3, 0.2]]), gallery) == 1.0
    assert nearest(np.array([[5.0, 1.0]]), np.array([[0.2, 0.3]]), gallery) == 0.0
    # A photo of the gallery is not its own nearest.
    assert nearest(gallery[0], np.array([[9.0, 1.0]]), [*gallery, np.array([[-1.0, 0.0]])]) == 1.0


@pytest.mark.parametrize(
    ("other", "score"), [([0.9, 0.8, 0.1, 0.1], 1.0), ([0.9, 0.7, 0.9, 0.1], 1 / 3), ([0.0] * 4, 0.0)]
)
def test_saliency_is_what_two_maps_share(other: list[float], score: float) -> None:
    whole = np.array([0.85, 0.8, 0.79, 0.0])
    assert saliency(whole, np.array(other)) == pytest.approx(score)
    assert sees_salience(whole)


def test_nothing_salient_in_both_is_the_same() -> None:
    assert saliency(np.zeros(4), np.zeros(4)) == 1.0
    assert not sees_salience(np.zeros(4))


def test_same_label() -> None:
    assert same_label(np.array([[1, 3]]), np.array([[0, 9]])) == 1.0
    assert same_label(np.array([[1, 3]]), np.array([[2, 1]])) == 0.0
