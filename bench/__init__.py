"""Measuring the runtime, and finding the footage it is measured and demonstrated on."""
