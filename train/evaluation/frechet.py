"""The Frechet distance between two sets of features, each taken for a Gaussian.

Source: Heusel et al., "GANs Trained by a Two Time-Scale Update Rule Converge to a Local Nash
Equilibrium", arXiv 1706.08500, equation 6. All of it is in float64.
"""

from __future__ import annotations

import numpy as np


class Moments:
    """Number, mean and covariance of features that come in parts; memory does not grow with them.

    Args:
        width: numbers in a feature.
    """

    def __init__(self, width: int) -> None:
        self.count = 0
        self._total = np.zeros(width)
        self._products = np.zeros((width, width))

    def add(self, features: np.ndarray) -> None:
        """Take in features (N, width)."""
        wide = features.astype(np.float64)
        self.count += len(wide)
        self._total += wide.sum(0)
        self._products += wide.T @ wide

    @property
    def mean(self) -> np.ndarray:
        """(width,)."""
        return self._total / self.count

    @property
    def covariance(self) -> np.ndarray:
        """(width, width), unbiased; of two features or more."""
        spread = self._products - self.count * np.outer(self.mean, self.mean)
        return spread / (self.count - 1)


def frechet_distance(a: Moments, b: Moments) -> float:
    """Squared Frechet distance of two Gaussians: that of the means, and tr(A + B - 2 (A B)^1/2) of
    the covariances A and B.

    The last trace is taken as that of (A^1/2 B A^1/2)^1/2, which has the same eigenvalues. That
    matrix is symmetric, so they stay real and no root is taken of a negative one, however singular
    A and B are.
    """
    first, second = a.covariance, b.covariance
    values, vectors = np.linalg.eigh(first)
    root = (vectors * np.sqrt(values.clip(0))) @ vectors.T
    shared = np.sqrt(np.linalg.eigvalsh(root @ second @ root).clip(0)).sum()
    between = np.square(a.mean - b.mean).sum()
    return float(between + np.trace(first) + np.trace(second) - 2 * shared)
