"""IntraQ's fine-tuning: the published weights and schedule, and nothing of its own."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from datafree.training import Dream
from datafree.training.intraq import IntraQ
from networks import captured, images


def test_labels_and_twenty_times_the_divergence() -> None:
    x, asked = images(8, 1), torch.arange(8) % 5
    expected = captured("Tiny")(x).detach()
    own = torch.randn(8, 5, generator=torch.Generator().manual_seed(0))
    terms = IntraQ().student_terms(own, Dream(x, asked, expected, [], [], 0, torch.Generator()))
    p, q = (F.log_softmax(value / 20, 1) for value in (expected, own))
    divergence = F.kl_div(q, p, reduction="batchmean", log_target=True)
    torch.testing.assert_close(terms["distillation"], 20 * 400 * divergence)
    torch.testing.assert_close(terms["classes"], F.cross_entropy(own, asked))


def test_rates_fall_at_epochs_20_40_and_60_of_151() -> None:
    """Of which the first four, that set ranges in the code, are no steps here."""
    method = IntraQ()
    assert method.iterations == (151 - 4) * 200
    for epoch, factor in ((19, 1.0), (21, 0.1), (39, 0.1), (41, 0.01), (59, 0.01), (61, 0.001)):
        rate = method.rate("student", (epoch - 4) / 147, tuning=True)
        assert abs(rate - factor) < 1e-9, epoch
