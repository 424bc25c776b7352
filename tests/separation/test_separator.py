"""What a user of the Separator may rely on."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

from metatasnet_fast import INSTRUMENTS, MultiTasNet, Separator
from metatasnet_fast.errors import (
    BackendUnavailableError,
    CheckpointError,
    ConfigError,
    EmptyAudioError,
    MetaTasNetError,
    ShapeError,
    UnknownStemError,
)
from metatasnet_fast.model.engine import Engine
from metatasnet_fast.reference import network as oracle
from metatasnet_fast.separation import Progress, two_stems
from metatasnet_fast.separation.fast_mode import WindowShape, receptive_frames
from tests.support import GOLDEN

from .conftest import SMALL, PointwiseEngine, music

RATES = [8000, 11025, 16000, 22050, 32000, 44100, 48000, 96000, 192000]


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    channels=st.integers(1, 6),
    seconds=st.floats(0, 0.7),
    rate=st.sampled_from(RATES),
    consistent=st.booleans(),
    extra=st.integers(1, 3),
)
def test_stems_have_the_recordings_channels_and_exact_length(
    separator: Separator, channels: int, seconds: float, rate: int, consistent: bool, extra: int
) -> None:
    waveform = music(channels, int(seconds * rate) + extra, rate)
    separator.mixture_consistency = consistent
    separation = separator.separate(waveform, rate)
    assert tuple(separation) == INSTRUMENTS
    for stem in separation.values():
        assert stem.shape == waveform.shape and stem.dtype == torch.float32
        assert stem.isfinite().all()
    if consistent:
        torch.testing.assert_close(sum(separation.values()), waveform, rtol=0, atol=1e-6)


@pytest.mark.parametrize("samples", [1, 2, 5, 300, 4001])
@pytest.mark.parametrize("rate", [8000, 44100])
def test_reference_mode_has_the_exact_length_too(network: MultiTasNet, samples: int, rate: int) -> None:
    waveform = music(2, samples, rate)
    separation = Separator(network, "cpu", "reference", mode="reference").separate(waveform, rate)
    for stem in separation.values():
        assert stem.shape == waveform.shape and stem.isfinite().all()


@pytest.mark.parametrize("mode", ["fast", "reference"])
@pytest.mark.parametrize("level", [0.0, 1e-40])
def test_silence_stays_silence(network: MultiTasNet, mode: Any, level: float) -> None:
    waveform = torch.full((2, 5000), level)
    separator = Separator(network, "cpu", "reference", mode=mode, mixture_consistency=True)
    for stem in separator.separate(waveform, 44100).values():
        assert (stem == 0).all()


@pytest.mark.parametrize("mode", ["fast", "reference"])
def test_a_silent_channel_is_silent_and_changes_no_other(network: MultiTasNet, mode: Any) -> None:
    waveform = music(3, 9000)
    waveform[1] = 0
    separator = Separator(network, "cpu", "reference", mode=mode)
    separation, alone = separator.separate(waveform, 44100), separator.separate(waveform[2], 44100)
    for name, stem in separation.items():
        assert (stem[1] == 0).all() and separation.gains[name][1] == 0
        assert stem[0].abs().max() > 0
        torch.testing.assert_close(stem[2], alone[name], rtol=0, atol=1e-5)


@pytest.mark.parametrize("mode", ["fast", "reference"])
@pytest.mark.parametrize("rate", [32000, 44100])
def test_a_constant_gives_finite_stems(network: MultiTasNet, mode: Any, rate: int) -> None:
    separation = Separator(network, "cpu", "reference", mode=mode).separate(torch.full((1, 20000), 0.5), rate)
    assert all(stem.isfinite().all() for stem in separation.values())


@pytest.mark.parametrize("batch_size", [1, 2, 64])
def test_the_batch_size_changes_nothing(separator: Separator, batch_size: int) -> None:
    waveform = music(2, 60000)
    expected = separator.separate(waveform, 44100)
    separator.batch_size = batch_size
    for name, stem in separator.separate(waveform, 44100).items():
        torch.testing.assert_close(stem, expected[name], rtol=0, atol=1e-5)


def test_windows_are_the_whole_for_an_engine_without_memory(
    separator: Separator, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each stem is then a multiple of the mixture, whose gains are those of the whole, band-limited."""
    monkeypatch.setattr(Engine, "separate", lambda self, mixes, wanted: PointwiseEngine().separate(mixes, wanted))
    waveform = music(2, 50000, 32000)
    separation = separator.separate(waveform, 32000)
    for stem in separation.values():
        torch.testing.assert_close(stem, waveform / 4, rtol=0, atol=1e-6)


@pytest.mark.parametrize(("share", "equal"), [(1.0, True), (0.02, False)])
def test_context_as_long_as_the_receptive_field_makes_windows_the_whole(
    network: MultiTasNet, monkeypatch: pytest.MonkeyPatch, share: float, equal: bool
) -> None:
    """Once nothing else sees the whole window: neither group norms, nor the spectrogram, which is stretched to fit it."""

    def affine(x: Tensor, weights: Any) -> Tensor:
        return x * weights.scale[..., None] + weights.shift[..., None]

    monkeypatch.setattr(oracle, "group_norm", affine)
    local = copy.deepcopy(network)
    for stage in local.stages:
        stage.encoder.spectrogram.mel_transform.weight.data.zero_()
    needed = receptive_frames(local.config)
    whole, cut = (Separator(local, "cpu", "reference") for _ in range(2))
    cut.window = WindowShape(4 * needed, int(share * needed), 4)
    waveform = music(1, 50 * needed * 20 * 4, 32000)
    a, b = whole.separate(waveform, 32000), cut.separate(waveform, 32000)
    errors = [float((a[name] - b[name]).norm() / a[name].norm()) for name in INSTRUMENTS]
    assert (max(errors) < 1e-5) == equal, errors


@pytest.mark.parametrize("kind", ["slice", "int16", "int32", "float64", "reversed", "read-only", "big-endian"])
def test_any_array_will_do(separator: Separator, kind: str) -> None:
    steps = (music(2, 3000) * 2**14).round()
    waveform, array = steps / 2**15, steps.numpy().astype(np.int16)
    given_: Any = {
        "slice": waveform.unsqueeze(0)[0],
        "int16": torch.from_numpy(array),
        "int32": array.astype(np.int32) * 2**16,
        "float64": waveform.double().numpy(),
        "reversed": waveform.numpy()[:, ::-1].copy()[:, ::-1],
        "read-only": np.frombuffer(waveform.numpy().tobytes(), np.float32).reshape(2, -1),
        "big-endian": waveform.numpy().astype(">f4"),
    }[kind]
    expected = separator.separate(waveform, 44100)
    for name, stem in separator.separate(given_, 44100).items():
        assert torch.equal(stem, expected[name])


def test_one_dimension_in_one_dimension_out(separator: Separator) -> None:
    waveform = music(1, 3000)
    flat, deep = separator.separate(waveform[0], 44100), separator.separate(waveform, 44100)
    for name in INSTRUMENTS:
        assert flat[name].shape == (3000,) and torch.equal(flat[name], deep[name][0])


def test_the_waveform_is_left_alone(separator: Separator) -> None:
    waveform = music(2, 3000)
    waveform[0, 5] = float("nan")
    before = waveform.clone()
    separator.separate(waveform, 44100)
    assert torch.equal(waveform.nan_to_num(7), before.nan_to_num(7))


def test_broken_samples_count_as_zero_and_are_reported(separator: Separator) -> None:
    clean = music(2, 3000)
    clean[0, 10:12] = 0
    broken = clean.clone()
    broken[0, 10], broken[0, 11] = float("nan"), float("-inf")
    separation, expected = separator.separate(broken, 44100), separator.separate(clean, 44100)
    assert all(torch.equal(separation[name], expected[name]) for name in INSTRUMENTS)
    assert separation.warnings == ("2 samples were NaN or infinite and count as 0.",)
    assert expected.warnings == ()


@pytest.mark.parametrize(
    ("waveform", "rate", "error"),
    [
        (torch.zeros(2, 0), 44100, EmptyAudioError),
        (torch.zeros(0, 5), 44100, EmptyAudioError),
        (torch.zeros(()), 44100, ShapeError),
        (torch.zeros(1, 1, 2, 3), 44100, ShapeError),
        (torch.zeros(2, 0, 5), 44100, EmptyAudioError),
        (torch.zeros(3, 2, 0), 44100, EmptyAudioError),
        (torch.zeros(5000, 2), 44100, ShapeError),
        (torch.zeros(2, 5, dtype=torch.int64), 44100, ShapeError),
        (np.zeros((2, 5), np.complex64), 44100, ShapeError),
        (np.zeros((2, 5), np.uint16), 44100, ShapeError),
        (torch.zeros(2, 5), 0, ShapeError),
        (torch.zeros(2, 5), 44100.5, ShapeError),
        (torch.zeros(2, 5), None, ShapeError),
        (torch.zeros(2, 5), float("nan"), ShapeError),
        (torch.zeros(2, 5), float("inf"), ShapeError),
        ([[0.0] * 5] * 2, 44100, ShapeError),
        ("song.wav", 44100, ShapeError),
        (None, 44100, ShapeError),
        (torch.zeros(2, 5).to_sparse(), 44100, ShapeError),
        (torch.zeros(2, 5, device="meta"), 44100, ShapeError),
    ],
)
def test_what_cannot_be_separated_is_a_typed_error(separator: Separator, waveform: Any, rate: Any, error: type) -> None:
    with pytest.raises(error):
        separator.separate(waveform, rate)


def test_stems_can_be_chosen_and_summed(separator: Separator) -> None:
    waveform = music(2, 5000)
    everything = separator.separate(waveform, 44100)
    assert list(separator.separate(waveform, 44100, ["vocals", "bass"])) == ["vocals", "bass"]
    assert torch.equal(separator.separate(waveform, 44100, "bass")["bass"], everything["bass"])
    pair = separator.separate(waveform, 44100, two_stems("vocals"))
    assert list(pair) == ["vocals", "no_vocals"]
    expected = everything.two_stems("vocals")
    for name in pair:
        torch.testing.assert_close(pair[name], expected[name], rtol=0, atol=1e-7)
    both = everything.aggregate({"rhythm": ["drums", "bass"]})
    torch.testing.assert_close(both["rhythm"], everything["drums"] + everything["bass"])


@pytest.mark.parametrize("stems", [["guitar"], {"a": ["drums", "piano"]}, [], {"a": []}, [1], 3])
def test_unknown_stems_are_refused(separator: Separator, stems: Any) -> None:
    with pytest.raises(UnknownStemError):
        separator.separate(torch.zeros(1, 10), 44100, stems)


def test_sums_need_the_stems_that_are_here(separator: Separator) -> None:
    separation = separator.separate(music(1, 3000), 44100, ["vocals"])
    with pytest.raises(UnknownStemError, match="drums"):
        separation.two_stems("vocals")


@pytest.mark.parametrize("mode", ["fast", "reference"])
def test_progress_never_falls_and_ends_at_one(network: MultiTasNet, mode: Any) -> None:
    steps: list[Progress] = []
    separator = Separator(network, "cpu", "reference", mode=mode, progress=steps.append)
    separator.window = SMALL
    separator.separate(music(2, 50000), 44100)
    fractions = [step.fraction for step in steps]
    assert fractions == sorted(fractions) and fractions[-1] == 1.0 and fractions.count(1.0) == 1
    assert [s for i, s in enumerate(p.stage for p in steps) if i == 0 or steps[i - 1].stage != s] == [
        "read",
        "separate",
        "write",
    ]
    assert steps[-1].seconds_total == pytest.approx(50000 / 44100)


def test_out_of_memory_is_survived_remembered_and_reported(
    separator: Separator, monkeypatch: pytest.MonkeyPatch
) -> None:
    waveform = music(2, 40000)
    expected, real, sizes = separator.separate(waveform, 44100), Engine.separate, []

    def separate(self: Engine, mixes: Any, wanted: Any) -> Any:
        sizes.append(len(mixes[0]))
        if len(mixes[0]) > 1:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return real(self, mixes, wanted)

    monkeypatch.setattr(Engine, "separate", separate)
    separation = separator.separate(waveform, 44100)
    for name, stem in separation.items():
        torch.testing.assert_close(stem, expected[name], rtol=0, atol=1e-5)
    assert separation.warnings == ("Memory ran out with 3 windows at once; went on with 1.",)
    assert sizes[0] == 3 and separator.batch_size == 1


def test_a_network_that_overflows_is_an_error(network: MultiTasNet) -> None:
    broken = copy.deepcopy(network)
    broken.stages[2].decoder.filters[0].weight.data.fill_(float("inf"))
    with pytest.raises(MetaTasNetError, match="not finite"):
        Separator(broken, "cpu", "reference").separate(music(1, 5000), 44100)


@pytest.mark.parametrize("config", [{"stages_num": 1}, {"stages_num": 2}, {"stages_num": 2, "sampling_rate": 11025}])
@pytest.mark.parametrize("mode", ["fast", "reference"])
def test_networks_of_other_rates_and_depths(network: MultiTasNet, config: dict[str, int], mode: Any) -> None:
    settings_ = {**network.config.to_dict(), **config}
    other = MultiTasNet(type(network.config).from_dict(settings_))
    separator = Separator(other, "cpu", "reference", mode=mode)
    assert separator.output_rate == settings_["sampling_rate"] * 2 ** (settings_["stages_num"] - 1)
    waveform = music(2, 7001)
    assert all(stem.shape == waveform.shape for stem in separator.separate(waveform, 44100).values())


def test_the_separator_says_what_serves(network: MultiTasNet) -> None:
    separator = Separator(network, "cpu", "reference")
    assert separator.describe() == "backend reference, device cpu, float32, fast mode"
    separation = separator.separate(music(1, 2000), 8000)
    assert (separation.backend, separation.device, separation.precision, separation.mode) == (
        "reference",
        "cpu",
        "float32",
        "fast",
    )
    assert separation.duration == 0.25
    assert separation.real_time_factor == pytest.approx(0.25 / separation.seconds)
    assert "0.25 s at 8000 Hz" in repr(separation) and separation.report()["warnings"] == []


def test_a_checkpoint_file_will_do() -> None:
    separator = Separator(GOLDEN / "original_checkpoint.pt", "cpu", "reference")
    assert separator.network.config.B == 16
    with pytest.raises(CheckpointError):
        Separator(GOLDEN / "absent.pt")


def test_impossible_wishes_are_refused(network: MultiTasNet) -> None:
    with pytest.raises(ConfigError, match="mode"):
        Separator(network, mode="slow")  # type: ignore[arg-type]
    wrong: Any
    for wrong in (0, 1.5, "2"):
        with pytest.raises(ConfigError, match="batch_size must be a whole number"):
            Separator(network, batch_size=wrong)
    for wrong in ("abacus", None):
        with pytest.raises(ConfigError, match="Unknown device"):
            Separator(network, device=wrong)
    with pytest.raises(ConfigError, match="dtype"):
        Separator(network, dtype="int4")
    with pytest.raises(BackendUnavailableError, match="backend"):
        Separator(network, backend="abacus")


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a CUDA device")
def test_an_absent_gpu_is_refused(network: MultiTasNet) -> None:
    with pytest.raises(BackendUnavailableError, match="no CUDA device"):
        Separator(network, device="cuda")


def test_a_change_of_the_network_is_noticed(network: MultiTasNet) -> None:
    own = copy.deepcopy(network)
    separator, waveform = Separator(own, "cpu", "reference"), music(1, 4000)
    before = separator.separate(waveform, 44100)
    own.stages[0].encoder.bottleneck[0].weight.data.mul_(-1)
    assert not torch.equal(separator.separate(waveform, 44100)["bass"], before["bass"])
