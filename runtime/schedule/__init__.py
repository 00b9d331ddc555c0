"""Stages side by side: their order, what they hand on, and the CPU or CUDA lanes they work in."""
