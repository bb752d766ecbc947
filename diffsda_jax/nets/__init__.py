"""Linen layers: U-Nets, per-step MLPs, recurrences, and the encoder and denoiser made of them."""
