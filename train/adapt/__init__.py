"""Fits a checkpoint to one person's own footage in a few minutes.

The denoiser learns, by low-rank changes, how this mouth moves with these sounds; then the decoder
learns the person's picture. Meanwhile the denoiser goes on practising sounds that the footage may
not have: for other speech, its lips must take the shape that the checkpoint gives them (as in
learning without forgetting, arXiv 1606.09282), and general footage can be mixed in.
"""

from dithead.train.adapt.cached import adapted_to
from dithead.train.adapt.gain import Gain
from dithead.train.adapt.run import adapt
from dithead.train.adapt.settings import Adaptation

__all__ = ["Adaptation", "Gain", "adapt", "adapted_to"]
