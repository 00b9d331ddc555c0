"""The Frechet distance against other ways to compute it."""

from __future__ import annotations

import numpy as np
import pytest

from dithead.train.evaluation.frechet import Moments, frechet_distance


def moments(features: np.ndarray, parts: int = 1) -> Moments:
    """Of features (N, width), taken in as so many parts."""
    taken = Moments(features.shape[1])
    for part in np.array_split(features, parts):
        taken.add(part)
    return taken


def drawn(seed: int, count: int, width: int) -> np.ndarray:
    """Features that hang together, off zero as Inception's are."""
    generator = np.random.default_rng(seed)
    mixed = generator.normal(size=(count, width)) @ generator.normal(size=(width, width))
    return (mixed + generator.uniform(0, 5, width)).astype(np.float32)


def test_moments_are_those_of_all_parts_together() -> None:
    features = drawn(1, 50, 7)
    taken = moments(features, 4)
    wide = features.astype(np.float64)
    assert taken.count == 50
    assert np.allclose(taken.mean, wide.mean(0), rtol=1e-12, atol=0)
    assert np.allclose(taken.covariance, np.cov(wide, rowvar=False), rtol=1e-11, atol=1e-11)


def test_gaussians_without_correlations_have_a_closed_form() -> None:
    width = 6
    signs = np.array(np.meshgrid(*[[-1.0, 1.0]] * width)).reshape(width, -1).T  # uncorrelated
    spread_a, spread_b = np.arange(1.0, 7), np.array([3.0, 0.0, 2.0, 9.0, 0.5, 6.0])
    shift = np.linspace(-2, 2, width)
    a, b = moments(signs * spread_a), moments(signs * spread_b + shift)
    unbiased = len(signs) / (len(signs) - 1)
    expected = np.square(shift).sum() + unbiased * np.square(spread_a - spread_b).sum()
    assert frechet_distance(a, b) == pytest.approx(expected, rel=1e-7)  # a root of rounding errors


@pytest.mark.parametrize("count", [300, 12])  # the second gives singular covariances
def test_it_equals_that_with_a_general_matrix_root(count: int) -> None:
    linalg = pytest.importorskip("scipy.linalg", reason="an independent matrix square root")
    first, second = drawn(2, count, 20), drawn(3, count + 5, 20)
    a, b = moments(first), moments(second, 3)
    covariances = [np.cov(x.astype(np.float64), rowvar=False) for x in (first, second)]
    # The general root does not exist for singular products; a trace of this size is lost in the
    # distance's thousands.
    regular = [c + 1e-9 * np.eye(20) for c in covariances]
    root = linalg.sqrtm(regular[0] @ regular[1])
    means = first.mean(0, np.float64) - second.mean(0, np.float64)
    expected = means @ means + sum(np.trace(c) for c in covariances) - 2 * np.trace(root).real
    found = frechet_distance(a, b)
    assert found == pytest.approx(expected, rel=1e-5)
    assert found == pytest.approx(frechet_distance(b, a), rel=1e-9)


def test_features_are_at_no_distance_from_themselves() -> None:
    features = drawn(4, 30, 64)  # singular
    size = np.trace(moments(features).covariance)
    assert abs(frechet_distance(moments(features), moments(features[::-1], 2))) < 1e-6 * size
