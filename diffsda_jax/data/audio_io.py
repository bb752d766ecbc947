"""Headers, samples and slices of audio files, mixed to mono and resampled.

Files of wav, flac, mp3, ogg and NIST SPHERE (TIMIT's `.WAV`) go through soundfile (extra `audio`),
which tells them apart by what they hold and not by their names. What it takes without a word, a
file cut off in the middle, is checked here.
"""

import math
import os
import re
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from jaxtyping import Float32

from diffsda_jax.data.sources.base import BrokenItemError

AUDIO_SUFFIXES = (".wav", ".flac", ".mp3", ".ogg")
SILENT_PEAK = 1e-4  # a file without a sample above it is silent
CLIPPED_SHARE = 0.01  # a file with more of its samples at full scale is clipped

_FULL_SCALE = 0.9999  # the largest 16-bit sample is 0.99997
_SPHERE_HEAD = 4096  # bytes; longer headers exist only in name
_STREAMED = 0x7FFF0000  # data sizes from here on are what programs write that do not know the size
_ENDLESS = 2**48  # samples; libsndfile states more where a header leaves the length open
_FILTER_REACH = 10  # half-length of the filter of `scipy.signal.resample_poly`, in slower samples
_LOSSY = ("MP3", "OGG")
# Samples before a slice, after which a decoder has recovered from the jump. Fewer do for MP3, but
# a jump near the end of an OGG file of quiet sound lands elsewhere than it should.
_LOSSY_MARGIN = 131072


def audio_info(path: Path) -> tuple[int, int]:
    """Number of samples per channel and sample rate in Hz, decoding nothing.

    Raises:
        BrokenItemError: an empty file, one of no known format, or one shorter than its header says.
        ImportError: soundfile is missing.
    """
    with _opened(path) as file:
        declared = _declared_samples(path)
        if declared is not None and declared > file.frames:
            raise BrokenItemError(
                f"truncated: the header states {declared} samples, the file holds {file.frames}"
            )
        return file.frames, file.samplerate


def read_audio(path: Path) -> tuple[Float32[np.ndarray, "N"], int]:
    """Decodes a whole file.

    Args:
        path: a file of any format named above.

    Returns:
        The mean of the channels, in [-1, 1], and the sample rate in Hz.

    Raises:
        BrokenItemError: a file that is empty, cut off, silent, not finite or in no known format.
        ImportError: soundfile is missing.
    """
    num_samples, sample_rate_hz = audio_info(path)
    with _opened(path) as file:
        samples = _decode(file, 0, num_samples)
    if is_silent(samples):
        raise BrokenItemError(f"silent: no sample is above {SILENT_PEAK:g}")
    return samples, sample_rate_hz


def read_slice(path: Path, start: int, count: int, sample_rate_hz: int) -> Float32[np.ndarray, "N"]:
    """Decodes a part of a file, resampled as if it were cut out of the whole resampled file.

    A silent part is no error: speech has pauses.

    Args:
        path: a file of any format named above.
        start: first sample at `sample_rate_hz`.
        count: number of samples at `sample_rate_hz`; fewer come back where the file ends.
        sample_rate_hz: the wanted rate.

    Raises:
        BrokenItemError: a sample is missing, cannot be decoded or is not finite.
        ImportError: soundfile is missing.
        ValueError: a rate below 1 Hz.
    """
    with _opened(path) as file:
        up, down = _ratio(file.samplerate, sample_rate_hz)
        margin = 0 if up == down else _FILTER_REACH * max(up, down) // up + 1
        # From a sample that both rates share, so that the filter meets the same samples.
        first = max(0, (start * down // up - margin) // down) * down
        last = min(file.frames, math.ceil((start + count) * down / up) + margin)
        if first >= last:
            raise BrokenItemError(f"truncated: ends before sample {start} at {sample_rate_hz} Hz")
        samples = _decode(file, first, last - first)
        offset = start - first * up // down
        return resample(samples, file.samplerate, sample_rate_hz)[offset : offset + count]


def resample(
    samples: Float32[np.ndarray, "N"], from_hz: int, to_hz: int
) -> Float32[np.ndarray, "M"]:
    """Changes the sample rate with a polyphase filter (Kaiser window), staying in [-1, 1].

    Args:
        samples: a waveform in [-1, 1].
        from_hz: its sample rate.
        to_hz: the wanted one.

    Returns:
        `resampled_length(N, from_hz, to_hz)` samples.

    Raises:
        ValueError: a rate below 1 Hz.
    """
    up, down = _ratio(from_hz, to_hz)
    if up == down or not samples.size:
        return samples
    from scipy.signal import resample_poly

    return np.clip(resample_poly(samples, up, down), -1.0, 1.0).astype(np.float32, copy=False)


def resampled_length(num_samples: int, from_hz: int, to_hz: int) -> int:
    """Number of samples after `resample`.

    Raises:
        ValueError: a rate below 1 Hz.
    """
    up, down = _ratio(from_hz, to_hz)
    return -(-num_samples * up // down)


def is_silent(samples: Float32[np.ndarray, "N"]) -> bool:
    """Whether no sample is above `SILENT_PEAK`."""
    return not samples.size or float(np.abs(samples).max()) < SILENT_PEAK


def is_clipped(samples: Float32[np.ndarray, "N"]) -> bool:
    """Whether more than `CLIPPED_SHARE` of the samples are at full scale."""
    return samples.size > 0 and float((np.abs(samples) >= _FULL_SCALE).mean()) > CLIPPED_SHARE


def import_soundfile() -> Any:
    """The package soundfile.

    Raises:
        ImportError: it is missing; the error says how to get it.
    """
    try:
        import soundfile
    except (ImportError, OSError):  # OSError: the package is there, its library is not
        raise ImportError(
            'reading and writing audio files needs soundfile: pip install "diffsda_jax[audio]"'
        ) from None
    return soundfile


def _ratio(from_hz: int, to_hz: int) -> tuple[int, int]:
    """The ratio of two rates as `up / down` in lowest terms."""
    if from_hz < 1 or to_hz < 1:
        raise ValueError(f"sample rates of {from_hz} and {to_hz} Hz: use 1 or more")
    common = math.gcd(from_hz, to_hz)
    return to_hz // common, from_hz // common


@contextmanager
def _opened(path: Path) -> Iterator[Any]:
    """A file as soundfile opens it; what cannot be opened or decoded raises BrokenItemError."""
    soundfile = import_soundfile()
    try:
        if not path.stat().st_size:
            raise BrokenItemError("empty: the file has 0 bytes")
        with soundfile.SoundFile(path) as file:
            if not 0 < file.frames < _ENDLESS:
                reason = "holds no samples" if not file.frames else "its header states no length"
                raise BrokenItemError(f"empty or of unknown length: {reason}")
            yield file
    except (OSError, RuntimeError) as error:  # soundfile's own errors are RuntimeErrors
        coding = _sphere_field(_head(path), b"sample_coding") if path.is_file() else None
        if coding not in (None, "pcm"):
            raise BrokenItemError(
                f"SPHERE file with sample_coding {coding!r}, which is not read: unpack it with "
                "`sph2pipe -p -f wav IN OUT`"
            ) from error
        reason = " ".join(getattr(error, "error_string", str(error)).split())[:120]
        raise BrokenItemError(f"cannot be decoded: {reason}") from error


def _decode(file: Any, first: int, count: int) -> Float32[np.ndarray, "N"]:
    """Mono samples `first` to `first + count`."""
    start = max(0, first - _LOSSY_MARGIN) if file.format in _LOSSY else first
    file.seek(start)
    samples = file.read(first - start + count, dtype="float32", always_2d=True)[first - start :]
    if len(samples) < count:
        raise BrokenItemError(
            f"truncated: sample {first + len(samples)} of {file.frames} cannot be read"
        )
    mono = samples.mean(axis=1)
    if not np.isfinite(mono).all():
        place = first + int(np.argmin(np.isfinite(mono)))
        raise BrokenItemError(f"sample {place} is not finite")
    # Decoders of lossy formats and files of floats go beyond full scale.
    return np.clip(mono, -1.0, 1.0)


def _head(path: Path) -> bytes:
    with path.open("rb") as file:
        return file.read(_SPHERE_HEAD)


def _sphere_field(head: bytes, name: bytes) -> str | None:
    """Value of a field of a SPHERE header, lines of `name -type value`; None where it is not."""
    if not head.startswith(b"NIST_1A"):
        return None
    found = re.search(rb"^%s\s+-\w+\s+(\S+)" % name, head, re.MULTILINE)
    return None if found is None else found.group(1).decode("ascii", "replace")


def _declared_samples(path: Path) -> int | None:
    """Samples per channel that a SPHERE or RIFF header states; None where it states none.

    For these formats libsndfile goes by the size of the file instead.
    """
    with path.open("rb") as file:
        head = file.read(_SPHERE_HEAD)
        count = _sphere_field(head, b"sample_count")
        if count is not None:
            return int(count) if count.isdigit() else None
        if head[:4] != b"RIFF" or head[8:12] != b"WAVE":
            return None
        return _declared_riff_samples(file)


def _declared_riff_samples(file: BinaryIO) -> int | None:
    """Samples per channel by the size of the data chunk and of a block of the format chunk."""
    end = file.seek(0, os.SEEK_END)
    place, block_bytes = 12, 0
    while place + 8 <= end:
        file.seek(place)
        kind, size = struct.unpack("<4sI", file.read(8))
        if kind == b"fmt ":
            coding, _, _, _, block_bytes = struct.unpack("<HHIIH", file.read(14).ljust(14, b"\0"))
            # A block holds one sample of each channel in PCM, floats and "extensible" only.
            block_bytes = block_bytes if coding in (1, 3, 0xFFFE) else 0
        if kind == b"data":
            return size // block_bytes if block_bytes and size < _STREAMED else None
        place += 8 + size + size % 2
    return None
