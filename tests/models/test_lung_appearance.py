"""Tests of the lung appearance model on phantoms."""

import numpy as np


def test_appearance_model_detects_haze_but_not_exposure() -> None:
    from cxr_tf.anomaly.fitting import fit_appearance_model
    from cxr_tf.data.sources.phantoms import phantom

    drawn = [phantom("normal", seed=8, patient=i, size=128) for i in range(48)]
    healthy = np.stack([p.image for p in drawn])[..., None]
    lungs = np.stack([p.lungs for p in drawn])[..., None]
    appearance = fit_appearance_model(healthy[:40])
    held_out = healthy[40:].astype(np.float32)
    errors = np.asarray(appearance(held_out))
    outside = np.asarray(appearance.region).reshape(16, 16) == 0
    assert outside.any() and not errors[:, outside].any()
    # Invariant to a linear change of the grey levels.
    np.testing.assert_allclose(appearance(0.6 * held_out + 20), errors, atol=0.3)
    hazy = np.where(lungs[40:], 0.5 * held_out + 70, held_out)
    rise = (np.asarray(appearance(hazy)) - errors)[:, ~outside].mean(axis=(0, 1))
    assert (rise > 0.5).all(), rise  # brighter, with less fine and coarse detail
