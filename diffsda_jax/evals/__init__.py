"""Evaluation on plain arrays and any model that encodes and samples."""
