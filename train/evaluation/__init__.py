"""The parts of ``dithead-eval``: the clips, what is done with them, the measures, the page."""
