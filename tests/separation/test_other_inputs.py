"""Open files, batches and lists go in; stems by name, files and players come out."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import pytest
import torch

from metatasnet_fast import MultiTasNet, Separator
from metatasnet_fast.errors import AudioReadError, AudioWriteError, ConfigError
from metatasnet_fast.precision import Precision

from .conftest import music

sf: Any = pytest.importorskip("soundfile")


@pytest.fixture
def separator(network: MultiTasNet) -> Separator:
    return Separator(network, "cpu", "reference")


def recording(samples: int = 3000, rate: int = 8000) -> io.BytesIO:
    file = io.BytesIO()
    sf.write(file, music(2, samples).T.numpy(), rate, format="WAV", subtype="FLOAT")
    file.seek(0)
    return file


def test_without_a_model_the_bundled_one_separates() -> None:
    separator = Separator(device="cpu")
    assert separator.sources == separator.stems == ("drums", "bass", "other", "vocals")
    assert separator.samplerate == separator.output_rate == 16000
    assert "drums, bass, other, vocals at 16000 Hz" in repr(separator)


def test_an_open_file_is_separated_like_its_samples(separator: Separator, tmp_path: Path) -> None:
    from_file = separator.separate_file(recording())
    from_memory = separator.separate(music(2, 3000), 8000)
    assert all(torch.equal(from_file[stem], from_memory[stem]) for stem in from_memory)
    written = separator.separate_file(recording(), tmp_path)
    assert written.files["vocals"] == tmp_path / "audio" / "vocals.wav"


def test_an_open_file_that_is_no_audio_is_one_sentence(separator: Separator) -> None:
    with pytest.raises(AudioReadError):
        separator.separate_file(io.BytesIO(b"nothing to hear"))


def test_files_are_separated_as_they_are_asked_for(separator: Separator, tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / f"{name}.wav").write_bytes(recording().read())
    found = separator.separate_files(
        [tmp_path / "a.wav", tmp_path / "b.wav", tmp_path / "absent.wav"], tmp_path / "out"
    )
    assert [next(found).files["bass"].parent.name for _ in range(2)] == ["a", "b"]
    with pytest.raises(AudioReadError):
        next(found)


def test_a_batch_has_the_stems_of_its_items(separator: Separator) -> None:
    batch = torch.stack([music(2, 3000), 0.5 * music(2, 3000)])
    stems = separator.separate(batch, 8000)
    assert stems["vocals"].shape == batch.shape
    for item, waveform in enumerate(batch):
        assert torch.allclose(stems["bass"][item], separator.separate(waveform, 8000)["bass"], atol=1e-6)


def test_a_batch_may_have_more_channels_than_a_recording(separator: Separator) -> None:
    batch = music(2, 500).repeat(70, 1, 1)
    separation = separator.separate(batch, 8000)
    assert separation["other"].shape == batch.shape
    assert torch.allclose(separation["other"][0], separation["other"][69], atol=1e-6)
    assert len(separation.gains["other"]) == 140


def test_stems_are_attributes(separator: Separator) -> None:
    separation = separator.separate(music(2, 3000), 8000)
    assert separation.vocals is separation["vocals"]
    with pytest.raises(AttributeError, match="neither an attribute nor a stem 'piano'"):
        separation.piano  # noqa: B018


def test_stems_are_saved(separator: Separator, tmp_path: Path) -> None:
    separation = separator.separate(music(2, 3000), 8000)
    paths = separation.save(tmp_path / "new" / "folder", format="flac")
    assert list(paths) == list(separation)
    samples, rate = sf.read(paths["bass"])
    assert rate == 8000 and samples.shape == (3000, 2)
    mono = separator.separate(music(1, 3000)[0], 8000)
    assert sf.info(mono.save(tmp_path / "mono")["bass"]).channels == 1
    with pytest.raises(AudioWriteError, match="in files already"):
        separator.separate_file(recording(), tmp_path / "x").save(tmp_path / "y")


def test_a_notebook_gets_players(separator: Separator) -> None:
    html = separator.separate(music(2, 3000), 8000)._repr_html_()
    assert html.count('<audio controls src="data:audio/wav;base64,UklGR') == 4


@pytest.mark.parametrize(("short", "name"), [("fp32", "float32"), ("bf16", "bfloat16"), ("fp16", "float16")])
def test_short_names_of_precisions_are_known(short: str, name: str) -> None:
    assert Precision.parse(short) is Precision.parse(name)
    with pytest.raises(ConfigError):
        Precision.parse("fp8")
