"""What ``dithead-eval`` is made of: the clips, what is done with them, the measures, the page."""
