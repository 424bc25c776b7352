"""What ``metatasnet-fast separate`` writes, keeps and says."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile as sf

from metatasnet_fast.config import INSTRUMENTS
from metatasnet_fast.separation import separator
from tests.cli.conftest import RATE, Command


def stems(folder: Path) -> list[str]:
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("[!.]*") if path.is_file())


def test_every_stem_has_its_file_below_model_and_track(separate: Command, song: Path, tmp_path: Path) -> None:
    outcome = separate(song, "-o", "out")
    assert (outcome.code, outcome.err) == (0, "")
    assert stems(tmp_path / "out") == sorted(f"tiny/song/{stem}.wav" for stem in INSTRUMENTS)
    assert "x real time" in outcome.out and "float32" in outcome.out and "device cpu" in outcome.out
    info = sf.info(tmp_path / "out/tiny/song/bass.wav")
    assert (info.samplerate, info.channels, info.frames, info.subtype) == (RATE, 2, int(0.4 * RATE), "PCM_16")


def test_the_default_folder_is_separated(separate: Command, song: Path, tmp_path: Path) -> None:
    assert separate(song, "--stems", "bass").code == 0
    assert stems(tmp_path / "separated") == ["tiny/song/bass.wav"]


@pytest.mark.parametrize(
    ("options", "ending", "subtype"),
    [
        (["--int24"], "wav", "PCM_24"),
        (["--float32"], "wav", "FLOAT"),
        (["--format", "flac"], "flac", "PCM_16"),
        (["--format", "FLAC", "--int24"], "flac", "PCM_24"),
        (["--format", "ogg"], "ogg", "VORBIS"),
        (["--format", "mp3"], "mp3", "MPEG_LAYER_III"),
    ],
)
def test_formats(separate: Command, song: Path, tmp_path: Path, options: list[str], ending: str, subtype: str) -> None:
    assert separate(song, "--stems", "drums", *options).code == 0
    assert sf.info(tmp_path / f"separated/tiny/song/drums.{ending}").subtype == subtype


def test_two_stems_are_one_and_the_sum_of_the_others(separate: Command, song: Path, tmp_path: Path) -> None:
    assert separate(song, "--two-stems", "vocals", "--float32").code == 0
    assert separate(song, "--stems", "drums, bass,other", "--float32").code == 0
    folder = tmp_path / "separated/tiny/song"
    others = sum(sf.read(folder / f"{stem}.wav")[0] for stem in ("drums", "bass", "other"))
    rest = sf.read(folder / "no_vocals.wav")[0]
    assert (folder / "vocals.wav").exists()
    assert np.abs(rest - others).max() <= 1e-6 * np.abs(others).max()


def test_mixture_consistency_makes_the_stems_sum_to_the_recording(
    separate: Command, song: Path, sound: np.ndarray, tmp_path: Path
) -> None:
    assert separate(song, "--mixture-consistency", "--float32").code == 0
    total = sum(sf.read(tmp_path / f"separated/tiny/song/{stem}.wav")[0] for stem in INSTRUMENTS)
    assert np.abs(total - sound).max() < 1e-6


def test_the_reference_mode_is_named(separate: Command, song: Path) -> None:
    (entry,) = separate(song, "--mode", "reference", "--stems", "bass", "--json").entries
    assert entry["mode"] == "reference"


def test_json_says_everything_and_nothing_else_is_printed(separate: Command, song: Path) -> None:
    outcome = separate(song, "missing.wav", "--json")
    done, failed = outcome.entries
    assert outcome.code == 3
    assert done["status"] == "done" and done["error"] is None and done["track"] == "song" and done["kept"] == []
    assert (done["device"], done["precision"]) == ("cpu", "float32") and done["backend"]
    assert done["duration"] == pytest.approx(0.4)
    assert done["real_time_factor"] == pytest.approx(done["duration"] / done["seconds"])
    assert set(done["gains"]) == set(INSTRUMENTS) and all(len(gains) == 2 for gains in done["gains"].values())
    assert all(Path(path).is_file() for path in done["files"].values()) and len(done["files"]) == 4
    assert failed["status"] == "failed" and "no file missing.wav" in failed["error"]


def test_clipping_is_a_warning(separate: Command, song: Path, sound: np.ndarray) -> None:
    sf.write(song, 40 * sound, RATE, subtype="FLOAT")
    outcome = separate(song, "--mixture-consistency", "--json")
    assert outcome.code == 0 and "were clipped" in outcome.err
    assert any("were clipped" in warning for warning in outcome.entries[0]["warnings"])


def test_stems_that_are_there_are_kept(separate: Command, song: Path, tmp_path: Path) -> None:
    assert separate(song, "--stems", "drums,bass").code == 0
    kept = tmp_path / "separated/tiny/song/drums.wav"
    kept.write_bytes(b"mine")
    again = separate(song, "--stems", "drums,bass")
    assert again.code == 0 and "song.wav: skipped" in again.out and kept.read_bytes() == b"mine"
    (entry,) = separate(song, "--json").entries
    assert entry["status"] == "done" and entry["kept"] == ["drums", "bass"] and kept.read_bytes() == b"mine"
    assert stems(kept.parent) == sorted(f"{stem}.wav" for stem in INSTRUMENTS)
    (entry,) = separate(song, "--json").entries
    assert entry["status"] == "skipped" and set(entry["files"]) == set(INSTRUMENTS)
    assert separate(song, "--overwrite").code == 0
    assert sf.info(kept).frames == int(0.4 * RATE)


def test_folders_are_searched_and_their_stems_mirror_them(separate: Command, song: Path, tmp_path: Path) -> None:
    for name in ("one/a.wav", "two/deep/a.WAV", "two/.hidden.wav", "notes.txt"):
        (tmp_path / "album" / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(song, tmp_path / "album" / name)
    command = ["album", "album/one/a.wav", "-o", "album/stems", "--stems", "bass", "--json"]
    first, again = separate(*command), separate(*command)
    assert [entry["track"] for entry in first.entries] == ["one/a", "two/deep/a"]
    assert {entry["status"] for entry in again.entries} == {"skipped"}
    assert stems(tmp_path / "album/stems") == ["tiny/one/a/bass.wav", "tiny/two/deep/a/bass.wav"]


def test_names_follow_the_template(separate: Command, song: Path, tmp_path: Path) -> None:
    odd = song.rename(tmp_path / "a {stem} & {b}.live.wav")
    assert separate(odd, "--stems", "bass", "--filename", "{{x}}-{stem}/{track}.{ext}").code == 0
    assert stems(tmp_path / "separated/tiny") == ["{x}-bass/a {stem} & {b}.live.wav"]


def test_the_rest_is_done_when_one_file_fails(separate: Command, song: Path, tmp_path: Path) -> None:
    (tmp_path / "text.wav").write_text("no audio at all")
    outcome = separate("text.wav", song, "--stems", "bass")
    assert outcome.code == 3 and "text.wav cannot be read as audio" in outcome.one_sentence()
    assert "1 done, 0 skipped, 1 failed" in outcome.out
    assert stems(tmp_path / "separated") == ["tiny/song/bass.wav"]


def test_a_file_for_which_memory_does_not_suffice_fails_alone(
    separate: Command, song: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copy(song, tmp_path / "long.wav")
    separated_as_evaluated = separator.separate_as_evaluated

    def separate_as_evaluated(engine: Any, recording: Any, *more: Any) -> Any:
        if not finished:
            finished.append(recording)
            raise RuntimeError("[enforce fail at alloc_cpu.cpp:117] DefaultCPUAllocator: can't allocate memory")
        return separated_as_evaluated(engine, recording, *more)

    finished: list[Any] = []
    monkeypatch.setattr(separator, "separate_as_evaluated", separate_as_evaluated)
    outcome = separate("long.wav", song, "--stems", "bass", "--mode", "reference")
    assert outcome.code == 3 and "long.wav: use fast mode" in outcome.one_sentence() and "1 done" in outcome.out
    assert stems(tmp_path / "separated") == ["tiny/song/bass.wav"]


def test_a_page_is_written_beside_the_stems(separate: Command, song: Path, tmp_path: Path) -> None:
    outcome = separate(song, "-o", tmp_path / "out", "--page")
    page = tmp_path / "out/tiny/song/song.html"
    assert outcome.code == 0 and f"open {page} to listen" in outcome.out
    assert 'href="vocals.wav"' in page.read_text("utf-8")
    again = separate(song, "-o", tmp_path / "out", "--page-files")
    assert again.code == 0 and "skipped" in again.out
    assert sorted(path.suffix for path in (page.parent / "song-sounds").iterdir()) == [".js"] * 5
