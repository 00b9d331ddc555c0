"""Converts the graphs of a checkpoint into files that other engines run."""
