"""What ``metatasnet-fast tune`` would time does run, and a configuration changes no result beyond rounding."""

from __future__ import annotations

import pytest
import torch

from metatasnet_fast.kernels.tuned import Sizes, Subject, applied, subjects
from tests.support import assert_parity

SIZES = Sizes(width=8, hidden=8, blocks=1, latents=(16, 32))


@pytest.fixture(scope="module")
def everything() -> list[Subject]:
    torch.manual_seed(0)
    return list(subjects(SIZES, torch.float32, False, torch.device("cpu"), items=2, frames=3))


def test_every_subject_runs_and_its_candidates_agree(everything: list[Subject]) -> None:
    for subject in everything:
        expected = subject.run()
        for options in (subject.candidates[0], subject.candidates[-1]):
            with applied(subject.kernel, options):
                assert_parity(f"{subject.kernel} {subject.sizes} {options}", subject.run(), expected, 1e-5)


def test_every_configurable_kernel_is_a_subject(everything: list[Subject]) -> None:
    found = {subject.kernel for subject in everything}
    assert found == {"pointwise_fwd", "pointwise_dgrad", "pointwise_wgrad", "in_conv_fwd", "depthwise_fwd", "blocks"}
    assert all(set(options) for subject in everything for options in subject.candidates)
