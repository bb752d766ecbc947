"""Cropping frames to the face that a pluggable detector finds."""

from collections.abc import Callable
from typing import Any

import numpy as np
from jaxtyping import Float64, UInt8

DETECTION_SIZE = 512  # side in pixels of the frames that a detector sees
FACE_MARGIN = 40  # of these pixels, what a crop keeps around the face, both sides together


def find_faces(
    detect: Callable[[np.ndarray], Any], frames: UInt8[np.ndarray, "V H W 3"]
) -> Float64[np.ndarray, "V 4"]:
    """The largest face of every frame.

    Args:
        detect: takes an RGB frame uint8 `[H, W, 3]` and returns boxes `[N, 4]` of left, top, right,
            bottom in pixels, N = 0 (or None) without a face.
        frames: RGB.

    Returns:
        Left, top, right, bottom in pixels; NaN where no face was found.

    Raises:
        ValueError: the detector returns something else than boxes.
    """
    faces = np.full((len(frames), 4), np.nan)
    for face, frame in zip(faces, frames, strict=True):
        found = detect(frame)
        boxes = np.zeros((0, 4)) if found is None else np.asarray(found, np.float64)
        if not boxes.size:
            continue
        wrong = boxes.ndim != 2 or boxes.shape[1] != 4
        if wrong or not np.isfinite(boxes).all() or (boxes[:, 2:] <= boxes[:, :2]).any():
            raise ValueError(
                f"the face detector returned {boxes.tolist()!s:.80} of shape {boxes.shape}: it "
                "must return boxes [N, 4] of left, top, right, bottom in pixels, with left < right "
                "and top < bottom"
            )
        face[:] = boxes[np.argmax(np.prod(boxes[:, 2:] - boxes[:, :2], axis=1))]
    return faces


def median_box(faces: Float64[np.ndarray, "V 4"]) -> Float64[np.ndarray, " 4"]:
    """The median of boxes, side by side, without the frames that hold none.

    Args:
        faces: left, top, right, bottom in pixels; NaN where no face was found.

    Returns:
        Left, top, right, bottom in pixels; NaN without any face.
    """
    found = faces[~np.isnan(faces[:, 0])]
    return np.median(found, axis=0) if len(found) else np.full(4, np.nan)


def crop_face(
    frames: UInt8[np.ndarray, "V S S 3"], box: Float64[np.ndarray, " 4"], size: int
) -> UInt8[np.ndarray, "V {size} {size} 3"]:
    """Cuts the square around a face out of square frames.

    The longer side of the box takes all but `FACE_MARGIN` of `DETECTION_SIZE` pixels of the crop.
    The square is moved, and if need be made smaller, to lie within the frame.

    Args:
        frames: RGB.
        box: left, top, right, bottom in pixels.
        size: side of the result in pixels.
    """
    from PIL import Image

    whole = frames.shape[1]
    fill = (DETECTION_SIZE - FACE_MARGIN) / DETECTION_SIZE
    side = min(whole, float(max(box[2:] - box[:2])) / fill)
    left, top = np.clip((box[:2] + box[2:] - side) / 2, 0, whole - side).tolist()
    area = (left, top, left + side, top + side)
    images = (Image.fromarray(frame) for frame in frames)
    bilinear = Image.Resampling.BILINEAR
    return np.stack([np.asarray(im.resize((size, size), bilinear, box=area)) for im in images])
