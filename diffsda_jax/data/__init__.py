"""Sequences from disk to batches: sources, transforms and the Grain pipeline (numpy only)."""
