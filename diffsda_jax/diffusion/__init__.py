"""Diffusion as pure functions: preconditioning, noise draw, loss, sigma grids, samplers."""
