"""Offline converters: published weights of other projects to DiT-Head checkpoints."""
