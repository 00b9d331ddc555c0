"""Offline converters: other projects' published weights to DiT-Head checkpoints."""
