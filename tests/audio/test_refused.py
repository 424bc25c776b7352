"""What is no audio, or cannot be read, is refused with a reason."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
import torch

from metatasnet_fast.audio import open_audio, read_audio, write_audio
from metatasnet_fast.errors import AudioReadError, EmptyAudioError, MissingDependencyError, NotAudioError

sf = pytest.importorskip("soundfile", reason="soundfile is not installed")

from .support import av, encode, tones  # noqa: E402


@pytest.mark.parametrize("content", [b"not music\n" * 500, bytes(5000), b"\xff\xfb" * 100, os.urandom(3000)])
@pytest.mark.parametrize("name", ["x.txt", "x.wav", "x.flac", "x.mp3", "x.ogg", "x.raw", "x"])
def test_other_content_is_refused_and_no_decoder_writes_about_it(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], name: str, content: bytes
) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(AudioReadError, match="name an audio or video file|fetch or export") as refused:
        read_audio(tmp_path / name)
    assert not isinstance(refused.value, EmptyAudioError)
    assert capfd.readouterr() == ("", "")


def test_a_picture_and_a_silent_film_are_not_audio(tmp_path: Path) -> None:
    with av.open(str(tmp_path / "x.mp4"), "w") as container:
        stream = container.add_stream("mpeg4", rate=5)
        stream.width = stream.height = 32
        stream.pix_fmt = "yuv420p"
        container.mux(stream.encode(av.VideoFrame(32, 32, "yuv420p")))
        container.mux(stream.encode(None))
    with av.open(str(tmp_path / "x.png"), "w", format="image2") as container:
        stream = container.add_stream("png", rate=1)
        stream.width = stream.height = 32
        stream.pix_fmt = "rgb24"
        container.mux(stream.encode(av.VideoFrame(32, 32, "rgb24")))
        container.mux(stream.encode(None))
    for name in ("x.mp4", "x.png"):
        with pytest.raises(NotAudioError, match="no audio"):
            read_audio(tmp_path / name)


def test_audio_that_nothing_here_decodes_is_refused(tmp_path: Path) -> None:
    path = encode(tmp_path / "x.mka", tones(2, 20_000, 44100), 44100, "flac")
    path.write_bytes(path.read_bytes().replace(b"A_FLAC", b"A_XLAC"))
    with pytest.raises(
        AudioReadError, match=r"FFmpeg: no decoder for its codec is installed.*export it as WAV or FLAC, uncompressed"
    ):
        read_audio(path)


def test_a_playlist_opens_nothing_else(tmp_path: Path) -> None:
    inner = encode(tmp_path / "x.aac", tones(2, 48000, 48000), 48000, "aac")
    (tmp_path / "x.m3u8").write_text(f"#EXTM3U\n#EXT-X-TARGETDURATION:10\n#EXTINF:1,\nfile://{inner}\n#EXT-X-ENDLIST\n")
    with pytest.raises(AudioReadError):
        read_audio(tmp_path / "x.m3u8")


def test_both_decoders_give_their_reasons(tmp_path: Path) -> None:
    (tmp_path / "x.wav").write_bytes(b"RIFFnothing that anyone can read")
    with pytest.raises(AudioReadError, match="libsndfile: .+; FFmpeg: .+"):
        read_audio(tmp_path / "x.wav")


def test_missing_files_and_folders_and_pipes(tmp_path: Path) -> None:
    with pytest.raises(AudioReadError, match="no file"):
        read_audio(tmp_path / "x.wav")
    with pytest.raises(AudioReadError, match=r"is a directory; name one audio file\.$"):
        read_audio(tmp_path)
    os.mkfifo(tmp_path / "pipe.wav")
    with pytest.raises(AudioReadError, match=r"not a regular file; store the audio in a file first\.$"):
        read_audio(tmp_path / "pipe.wav")


def test_a_file_that_may_not_be_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_audio(tmp_path / "x.wav", torch.zeros(1, 10), 8000)

    def forbidden(*_: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("metatasnet_fast.audio.read.open", forbidden, raising=False)
    with pytest.raises(AudioReadError, match="permissions"):
        read_audio(tmp_path / "x.wav")


def test_no_samples_are_an_error_of_their_own(tmp_path: Path) -> None:
    (tmp_path / "nothing.wav").touch()
    sf.write(tmp_path / "x.wav", np.zeros((0, 2)), 44100)
    sf.write(tmp_path / "x.ogg", np.zeros((0, 2)), 44100)
    for name in ("nothing.wav", "x.wav", "x.ogg"):
        with pytest.raises(EmptyAudioError):
            open_audio(tmp_path / name)


@pytest.mark.parametrize(("module", "name"), [("soundfile", "x.wav"), ("av", "x.mp3")])
def test_a_missing_package_is_named_with_its_extra(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, module: str, name: str
) -> None:
    write_audio(tmp_path / name, tones(1, 5000, 44100), 44100)
    monkeypatch.setitem(__import__("sys").modules, module, None)
    with pytest.raises(MissingDependencyError, match=f"needs the package {module}; `pip install {module}`"):
        read_audio(tmp_path / name)
