"""Frame autoencoders that make the latents of high-resolution video: VQ and KL, any widths."""
