"""Training: state, step, optimiser, checkpoints, writers and the loop."""
