"""Training: footage preparation, the two stages of the method, and their evaluation."""
