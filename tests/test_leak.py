"""The mask must not tell how far the mouth is open (docs/architecture.md, "The mask")."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from dithead.config import preset
from dithead.train.data import Footage
from dithead.train.leak import leak_correlation
from dithead.train.prepare import list_folder, prepare


@pytest.mark.slow
def test_opening_cannot_be_read_off_masked_crops(shared_footage: Path, tmp_path: Path) -> None:
    config = preset("tiny")
    sources = list_folder(shared_footage / "grid_s1" / "clips", "s1", 15)[:75]
    prepare(sources, tmp_path, config)
    footage = Footage(tmp_path)
    train, held_out = footage.split("train"), footage.split("validation")
    assert len(train) >= 55
    assert len(held_out) >= 12
    # The mean of three regressors: one alone differs from another by 0.03.
    secret = np.mean(
        [leak_correlation(footage, train, held_out, config.face, seed=seed) for seed in range(3)]
    )
    control = leak_correlation(footage, train, held_out, config.face, masked=False)
    told = leak_correlation(footage, train, held_out, replace(config.face, mask="paper"))
    assert control >= 0.6, "the regressor is too weak to prove anything"
    assert secret <= 0.3
    assert told >= 0.6, "the paper's mask is expected to tell"
