"""Waveforms as WAV files."""

import io
import wave

import numpy as np
from jaxtyping import Float

_FULL_SCALE = 32767


def encode_wav(samples: Float[np.ndarray, " N"], sample_rate_hz: int) -> bytes:
    """A mono waveform as a 16-bit WAV file; what is outside [-1, 1] is clipped."""
    pcm = np.round(np.clip(samples, -1.0, 1.0) * _FULL_SCALE).astype("<i2")
    buffer = io.BytesIO()
    with wave.open(buffer, "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(sample_rate_hz)
        file.writeframes(pcm.tobytes())
    return buffer.getvalue()
