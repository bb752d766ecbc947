"""Which part of a frame a network sees, and what its answers are in the frame: plain geometry.

A map is a matrix ``[2, 3]`` that takes (x, y, 1) in pixels of a network's input to (x, y) in
pixels of the frame. Pixel centres are at whole numbers, so a frame of width W reaches from -0.5
to W - 0.5.
"""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Bool, Float

Maps = Float[np.ndarray, "N 2 3"]
Points = Float[np.ndarray, "N K 2"]
Found = Bool[np.ndarray, " N"]

# Where ArcFace was trained to have both eyes, the tip of the nose and both corners of the mouth:
# (x, y) in a picture of 112 x 112 pixels.
_ARCFACE_SIDE_PIXELS = 112
_ARCFACE_POINTS = (
    (38.2946, 51.6963),
    (73.5318, 51.5014),
    (56.0252, 71.7366),
    (41.5493, 92.3655),
    (70.7299, 92.2041),
)
# Which points of usual mark-ups are these five, the eyes as means: five points themselves, 68 of
# iBUG 300-W, 98 of WFLW and 106 of InsightFace.
_FIVE_OF = {
    5: ((0,), (1,), (2,), (3,), (4,)),
    68: (tuple(range(36, 42)), tuple(range(42, 48)), (30,), (48,), (54,)),
    98: ((96,), (97,), (54,), (76,), (82,)),
    106: ((38,), (88,), (86,), (52,), (61,)),
}
_BLACK = -1.0


def box_map(
    box: Sequence[float | int], frame_size: tuple[int, int], input_size: tuple[int, int]
) -> Float[np.ndarray, "2 3"]:
    """The map of a box that fills the input.

    Args:
      box: left, top, right, bottom as shares of the frame.
      frame_size: height and width of the frame in pixels.
      input_size: height and width of the input in pixels.

    Returns:
      The map from pixels of the input to pixels of the frame.
    """
    low, high = np.array(box[:2], np.float64), np.array(box[2:], np.float64)
    frame, side = np.array(frame_size[::-1]), np.array(input_size[::-1])
    scale = (high - low) * frame / side
    shift = low * frame + (scale - 1.0) / 2.0
    return np.concatenate([np.diag(scale), shift[:, None]], axis=1)


def fit_similarity(
    points: Points, target: Float[np.ndarray, "K 2"]
) -> tuple[Float[np.ndarray, "N 2 3"], Found]:
    """The rotation, scale and shift that bring points nearest to a target, by least squares.

    In the plane, with points and target as complex numbers p and q about their means, these are
    one factor ``a = sum conj(p) q / sum |p|^2``; a reflection is never part of it.

    Args:
      points: ``[N, K, 2]``, finite.
      target: where they should come to lie.

    Returns:
      ``(maps, found)``: maps from the plane of ``points`` to that of ``target``; found is False
      where all points coincide or no rotation is better than another.

    References:
      Umeyama, Least-squares estimation of transformation parameters, PAMI 1991 (any dimension).
    """
    p = points[..., 0] + 1j * points[..., 1]
    q = target[None, :, 0] + 1j * target[None, :, 1]
    p_mean, q_mean = p.mean(1, keepdims=True), q.mean(1, keepdims=True)
    spread = np.square(np.abs(p - p_mean)).sum(1)
    product = (np.conj(p - p_mean) * (q - q_mean)).sum(1)
    found = (spread > 0) & (np.abs(product) > 0)
    a = np.where(found, product, 1.0) / np.where(found, spread, 1.0)
    b = q_mean[:, 0] - a * p_mean[:, 0]
    rows = [[a.real, -a.imag, b.real], [a.imag, a.real, b.imag]]
    return np.moveaxis(np.array(rows), -1, 0), found


def face_maps(points: Points, found: Found, input_size: tuple[int, int]) -> tuple[Maps, Found]:
    """Maps that put eyes, nose and mouth where ArcFace was trained to have them.

    Args:
      points: of each frame: 5 (eyes, nose, corners of the mouth), 68, 98 or 106 of a face.
      found: whether there are any; frames without, or without one of the five, get a map of no
        meaning.
      input_size: height and width of the input in pixels.

    Returns:
      ``(maps, found)``.

    Raises:
      ValueError: another number of points.
    """
    if points.shape[1] not in _FIVE_OF:
        raise ValueError(
            f"alignment='landmarks5' got {points.shape[1]} points of a face; allowed are "
            f"{', '.join(map(str, _FIVE_OF))}; use another network for landmarks, or none or crop."
        )
    groups = _FIVE_OF[points.shape[1]]
    five = np.stack([points[:, group].mean(1) for group in groups], 1).astype(np.float64)
    sides = np.array(input_size[::-1], np.float64)
    # Kept in proportion and centred in an input that is not square.
    scale = sides.min() / _ARCFACE_SIDE_PIXELS
    template = (np.array(_ARCFACE_POINTS) + 0.5) * scale - 0.5
    template = template + (sides - sides.min()) / 2.0
    found = found & np.isfinite(five).all((1, 2))
    maps, fits = fit_similarity(np.where(found[:, None, None], five, template), template)
    # From the frame to the input: its inverse is wanted.
    turn = np.linalg.inv(maps[:, :, :2])
    return np.concatenate([turn, -turn @ maps[:, :, 2:]], axis=2), found & fits


def warp(
    frames: Float[np.ndarray, "N H W 3"], maps: Maps, input_size: tuple[int, int]
) -> Float[np.ndarray, "N h w 3"]:
    """What a network sees: frames under maps, black (-1) beyond their edges.

    Linear interpolation of the four nearest pixels, without a filter before shrinking: as the
    pictures were made that published networks were trained on.
    """
    height, width = frames.shape[1:3]
    rows, columns = np.mgrid[: input_size[0], : input_size[1]]
    grid = np.stack([columns, rows, np.ones_like(rows)], -1).astype(np.float64)
    place = np.einsum("nij,hwj->nhwi", maps, grid)
    edge = np.array([width, height]) - 0.5
    inside = ((place > -0.5 - 1e-6) & (place < edge + 1e-6)).all(-1)
    place = np.clip(place, 0, edge - 0.5)
    low = place.astype(np.int64)
    high = np.minimum(low + 1, np.array([width, height]) - 1)
    weight = (place - low).astype(np.float32)[..., None]
    number = np.arange(len(frames))[:, None, None]

    def blend(row: np.ndarray) -> np.ndarray:
        left, right = frames[number, row, low[..., 0]], frames[number, row, high[..., 0]]
        return left + (right - left) * weight[..., 0, :]

    top, bottom = blend(low[..., 1]), blend(high[..., 1])
    return np.where(inside[..., None], top + (bottom - top) * weight[..., 1, :], _BLACK)


def move_points(points: Points, maps: Maps) -> Points:
    """Points in pixels of the input, in pixels of the frame."""
    return np.einsum("nij,nkj->nki", maps[:, :, :2], points) + maps[:, None, :, 2]


def find_peaks(
    heatmaps: Float[np.ndarray, "N K h w"], input_size: tuple[int, int]
) -> tuple[Points, Float[np.ndarray, "N K"]]:
    """Highest places of heatmaps in pixels of the input, and the values there.

    A peak is moved by a quarter of a cell towards the higher of its two neighbours along each
    axis, as stacked hourglass networks are read (Newell et al., ECCV 2016).
    """
    num, count, height, width = heatmaps.shape
    flat = heatmaps.reshape(num, count, -1)
    best = np.argmax(flat, -1)
    peak = np.take_along_axis(flat, best[..., None], -1)[..., 0]
    row, column = np.divmod(best, width)
    # Beyond the edges nothing is higher, so a peak there is not moved across them.
    padded = np.pad(heatmaps, ((0, 0), (0, 0), (1, 1), (1, 1)), mode="edge")
    n, k = np.arange(num)[:, None], np.arange(count)[None]
    across = padded[n, k, row + 1, column + 2] - padded[n, k, row + 1, column]
    along = padded[n, k, row + 2, column + 1] - padded[n, k, row, column + 1]
    cell = np.stack([column + 0.25 * np.sign(across), row + 0.25 * np.sign(along)], -1)
    scale = np.array(input_size[::-1]) / np.array([width, height])
    return (cell + 0.5) * scale - 0.5, peak
