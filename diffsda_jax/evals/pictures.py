"""Pictures of video: swap grids and strips, as arrays, PNG and GIF."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from jaxtyping import Float, UInt8
from PIL import Image, ImageDraw, ImageFont

Picture = UInt8[np.ndarray, "_ _ 3"]

# Smaller frames are enlarged by a whole factor to at least this side.
_STRIP_PIXELS = 48
_ANIMATION_PIXELS = 80
_GAP_PIXELS = 8  # between cells
_FRAME_GAP_PIXELS = 2  # between the frames of one cell
_MARGIN_PIXELS = 28  # for the titles
_BACKGROUND = (255, 255, 255)
_TEXT = (40, 40, 40)
_HEADER_TINT = (214, 226, 240)  # ground of the originals


def to_uint8(frames: Float[np.ndarray, "*batch C"]) -> UInt8[np.ndarray, "*batch 3"]:
    """Frames in [-1, 1] as RGB; one channel becomes grey, more than three keep the first three.

    Raises:
      ValueError: two channels, which have no picture.
    """
    channels = frames.shape[-1]
    if channels == 2:
        raise ValueError("frames have 2 channels; allowed are 1, 3 or more; decode them first.")
    frames = np.repeat(frames, 3, axis=-1) if channels == 1 else frames[..., :3]
    return np.round(np.clip((frames + 1) / 2, 0, 1) * 255).astype(np.uint8)


def enlarge(
    frames: UInt8[np.ndarray, "*batch H W 3"], side: int = _STRIP_PIXELS
) -> UInt8[np.ndarray, "*batch H2 W2 3"]:
    """Nearest-neighbour enlargement by the smallest whole factor that gives at least this side."""
    factor = max(1, -(-side // min(frames.shape[-3:-1])))
    return frames.repeat(factor, axis=-3).repeat(factor, axis=-2)


def swap_grid_image(
    x_static: Float[np.ndarray, "columns V H W C"],
    x_dynamic: Float[np.ndarray, "rows V H W C"],
    x_swap: Float[np.ndarray, "rows columns V H W C"],
    *,
    num_frames: int = 4,
) -> Picture:
    """Every combination of some donors: a column for each static factor, a row for each motion.

    The header row and column show the originals on a tinted ground. Each cell is a strip of
    evenly spaced frames.

    Args:
      x_static: clips that give the static factor, frames in [-1, 1].
      x_dynamic: clips that give the dynamics.
      x_swap: the swaps; ``x_swap[r, c]`` moves like ``x_dynamic[r]`` and looks like
        ``x_static[c]``.
      num_frames: frames shown of each clip.
    """
    chosen = _spread(x_static.shape[1], num_frames)
    return _grid(
        *(
            _strip(enlarge(to_uint8(_take(clips, chosen))))
            for clips in (x_static, x_dynamic, x_swap)
        )
    )


def swap_grid_animation(
    x_static: Float[np.ndarray, "columns V H W C"],
    x_dynamic: Float[np.ndarray, "rows V H W C"],
    x_swap: Float[np.ndarray, "rows columns V H W C"],
) -> list[Picture]:
    """`swap_grid_image` in time: one picture for each frame of the clips."""
    clips = [enlarge(to_uint8(part), _ANIMATION_PIXELS) for part in (x_static, x_dynamic, x_swap)]
    return [
        _grid(*(_take(part, [frame])[..., 0, :, :, :] for part in clips))
        for frame in range(x_static.shape[1])
    ]


def strips_image(
    rows: Sequence[tuple[str, Float[np.ndarray, "columns V H W C"]]],
    *,
    num_frames: int = 4,
    columns: Sequence[str] = (),
) -> Picture:
    """Versions of the same clips below each other, such as original and reconstruction.

    Args:
      rows: (title, clips) of each row; all hold the same number of clips.
      num_frames: frames shown of each clip.
      columns: titles above the clips, or none.
    """
    font = ImageFont.load_default(15)
    chosen = _spread(rows[0][1].shape[1], num_frames)
    cells = [_strip(enlarge(to_uint8(_take(clips, chosen)))) for _, clips in rows]
    height, width = cells[0].shape[1:3]
    left = int(max(font.getlength(title) for title, _ in rows)) + 2 * _GAP_PIXELS
    first = _MARGIN_PIXELS if columns else _GAP_PIXELS
    canvas = Image.new(
        "RGB",
        (
            left + len(cells[0]) * (width + _GAP_PIXELS),
            first + len(rows) * (height + _GAP_PIXELS),
        ),
        _BACKGROUND,
    )
    draw = ImageDraw.Draw(canvas)
    for column, title in enumerate(columns):
        centre = left + column * (width + _GAP_PIXELS) + width / 2
        draw.text((centre, first / 2), title, _TEXT, font, anchor="mm")
    for row, ((title, _), strips) in enumerate(zip(rows, cells, strict=True)):
        top = first + row * (height + _GAP_PIXELS)
        draw.text((left - _GAP_PIXELS, top + height / 2), title, _TEXT, font, anchor="rm")
        for column, strip in enumerate(strips):
            canvas.paste(Image.fromarray(strip), (left + column * (width + _GAP_PIXELS), top))
    return np.asarray(canvas)


def write_png(picture: Picture, path: Path) -> Path:
    """Write a picture and return its path."""
    Image.fromarray(picture).save(path)
    return path


def write_gif(pictures: Sequence[Picture], path: Path, *, fps: float = 6.0) -> Path:
    """Write an endless animation and return its path."""
    first, *others = [Image.fromarray(picture) for picture in pictures]
    first.save(path, save_all=True, append_images=others, duration=round(1000 / fps), loop=0)
    return path


def _spread(num_steps: int, count: int) -> list[int]:
    """Evenly spaced steps, first and last among them."""
    return np.linspace(0, num_steps - 1, min(count, num_steps)).round().astype(int).tolist()


def _take(clips: np.ndarray, frames: list[int]) -> np.ndarray:
    return clips[..., frames, :, :, :]


def _strip(clips: UInt8[np.ndarray, "*batch V H W 3"]) -> UInt8[np.ndarray, "*batch H L 3"]:
    """The frames of each clip side by side with a thin line between them."""
    lead = clips.shape[:-4]
    num_frames, height, width, _ = clips.shape[-4:]
    gap = _FRAME_GAP_PIXELS
    strip = np.full((*lead, height, num_frames * (width + gap) - gap, 3), 128, np.uint8)
    for frame in range(num_frames):
        left = frame * (width + gap)
        strip[..., left : left + width, :] = clips[..., frame, :, :, :]
    return strip


def _grid(
    header: UInt8[np.ndarray, "columns h w 3"],
    side: UInt8[np.ndarray, "rows h w 3"],
    cells: UInt8[np.ndarray, "rows columns h w 3"],
) -> Picture:
    """Cells with the originals above and to the left, and the two titles."""
    rows, columns, height, width = cells.shape[:4]
    step_x, step_y = width + _GAP_PIXELS, height + _GAP_PIXELS
    margin, gap = _MARGIN_PIXELS, _GAP_PIXELS
    origin_x, origin_y = margin + gap + step_x + gap, margin + gap + step_y + gap
    size = (origin_x + columns * step_x, origin_y + rows * step_y)
    canvas = Image.new("RGB", size, _BACKGROUND)
    draw = ImageDraw.Draw(canvas)
    draw.rectangle((origin_x - gap, margin, size[0] - 1, origin_y - gap - 1), fill=_HEADER_TINT)
    draw.rectangle((margin, origin_y - gap, origin_x - gap - 1, size[1] - 1), fill=_HEADER_TINT)
    for column in range(columns):
        place = (origin_x + column * step_x, margin + gap)
        canvas.paste(Image.fromarray(header[column]), place)
    for row in range(rows):
        top = origin_y + row * step_y
        canvas.paste(Image.fromarray(side[row]), (margin + gap, top))
        for column in range(columns):
            place = (origin_x + column * step_x, top)
            canvas.paste(Image.fromarray(cells[row, column]), place)
    font = ImageFont.load_default(15)
    centre_x = (origin_x - gap + size[0]) / 2
    draw.text((centre_x, margin / 2), "static from", _TEXT, font, anchor="mm")
    _draw_upwards(canvas, "dynamics from", (margin / 2, (origin_y - gap + size[1]) / 2), font)
    return np.asarray(canvas)


def _draw_upwards(
    canvas: Image.Image,
    text: str,
    centre: tuple[float, float],
    font: ImageFont.FreeTypeFont | ImageFont.ImageFont,
) -> None:
    """Text that reads from bottom to top, centred on a point."""
    label = Image.new("RGB", (int(font.getlength(text)) + 4, 22), _BACKGROUND)
    ImageDraw.Draw(label).text((label.width / 2, 11), text, _TEXT, font, anchor="mm")
    label = label.rotate(90, expand=True)
    canvas.paste(label, (round(centre[0] - label.width / 2), round(centre[1] - label.height / 2)))
