"""Pictures that are kept from training: what a published model's training says of them."""

import json

import numpy as np
import pytest
from test_published import ROWS, get_config, pictures  # noqa: F401

from realcustom_jax.data.batches import BucketBatches
from realcustom_jax.training.published import run as published

from mini_bundle import write_mini_bundle


@pytest.mark.slow
@pytest.mark.parametrize("precomputed", [False, True])
def test_the_loss_of_held_out_rows_is_logged_and_none_of_them_is_trained_on(
        pictures, tmp_path, monkeypatch, precomputed):  # noqa: F811
    made = []

    class Noted(BucketBatches):
        def __init__(self, *args, **options):
            super().__init__(*args, **options)
            made.append(set(self.order.shown.tolist()))

    monkeypatch.setattr(published, "BucketBatches", Noted)
    config = get_config("sdxl", write_mini_bundle(tmp_path / "model", "sdxl"), pictures)
    config.train.precomputed = precomputed
    config.train.data.held_out = 0.4
    config.train.optimization.update(steps=2, evaluate_every=1, sample_every=0)
    published.train_adapter(config, tmp_path / "run")
    trained, held_out = made
    assert trained and held_out and not trained & held_out and trained | held_out == set(range(ROWS))
    records = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    losses = [record["held_out/loss"] for record in records if "held_out/loss" in record]
    assert len(losses) == 2 and np.isfinite(losses).all() and losses[0] != losses[1]
