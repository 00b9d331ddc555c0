"""Streaming: reading media, scheduling the graphs frame by frame, and writing the result."""
