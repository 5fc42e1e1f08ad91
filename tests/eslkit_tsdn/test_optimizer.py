"""The paper's learning rate: 300 epochs at 1e-4, half from 150, a tenth from 250."""

from __future__ import annotations

import pytest
from torch import nn

from eslkit_tsdn.optimizer import learning_rate_factor, make_optimizer


@pytest.mark.parametrize(
    "epoch, rate", [(0, 1e-4), (149, 1e-4), (150, 5e-5), (249, 5e-5), (250, 1e-5), (299, 1e-5)]
)
def test_the_papers_epochs(epoch, rate):
    assert 1e-4 * learning_rate_factor(epoch / 300) == pytest.approx(rate)


def test_every_update_has_its_rate():
    network = nn.Conv2d(1, 1, 1)
    optimizer, scheduler = make_optimizer(network, lr=0.1, iterations=12)
    rates = []
    for _ in range(12):
        optimizer.step()
        rates.append(optimizer.param_groups[0]["lr"])
        scheduler.step()
    assert rates == pytest.approx([0.1] * 6 + [0.05] * 4 + [0.01] * 2)
