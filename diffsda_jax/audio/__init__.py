"""Sound: decoding, spectrograms and back."""
