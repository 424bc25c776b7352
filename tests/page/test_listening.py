"""A page plays its stems together to the sample, isolates what is soloed, and is usable on a phone and with a keyboard."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from metatasnet_fast.errors import OutputError
from metatasnet_fast.page import Listening, listen_to, write_page

from .browser import Browser

pytest.importorskip("soundfile")

RATE = 44100
SECONDS = 4
TONES = {"vocals": 440.0, "drums": 1320.0, "bass": 110.0}
READY = "typeof play !== 'undefined' && !play.disabled"


def signals() -> dict[str, Tensor]:
    t = torch.arange(SECONDS * RATE) / RATE
    stems = {name: 0.2 * torch.sin(2 * np.pi * hertz * t).expand(2, -1) for name, hertz in TONES.items()}
    return {"recording": torch.stack(list(stems.values())).sum(0), **stems}


@pytest.fixture
def page(tmp_path: Path) -> Path:
    references = {"vocals": 0.5 * signals()["vocals"]}
    write_page(Listening(signals(), RATE, "A song", references=references), tmp_path / "song.html")
    return tmp_path / "song.html"


@pytest.fixture
def browser() -> Iterator[Browser]:
    with Browser() as opened:
        yield opened


RENDER = """(async () => {
  // What the page would play from here on, rendered without a device: levels of a few tones in dB.
  const offline = new OfflineAudioContext(1, context.sampleRate, context.sampleRate);
  for (const { voices } of tracks) for (const voice of voices) {
    if (!voice) continue;
    const node = offline.createBufferSource(), gain = offline.createGain();
    node.buffer = voice.buffer;
    gain.gain.value = voice.gain.gain.value;
    node.connect(gain).connect(offline.destination);
    node.start(0, 1);
  }
  const heard = (await offline.startRendering()).getChannelData(0);
  return TONES.map(hertz => {
    let re = 0, im = 0;
    heard.forEach((x, n) => {
      const phase = 2 * Math.PI * hertz * n / context.sampleRate;
      re += x * Math.cos(phase);
      im += x * Math.sin(phase);
    });
    return 20 * Math.log10(2 * Math.hypot(re, im) / heard.length + 1e-9);
  });
})()""".replace("TONES", str(list(TONES.values())))


def levels(browser: Browser) -> dict[str, float]:
    """What is heard, in dB, once the gains have settled."""
    browser.run("new Promise(done => setTimeout(done, 200))")
    return dict(zip(TONES, browser.run(RENDER), strict=True))


def test_the_clock_advances_and_stops(browser: Browser, page: Path) -> None:
    browser.open(page)
    browser.wait(READY)
    browser.press(" ")
    browser.wait("position() > 0.5")
    browser.press(" ")
    at = browser.run("position()")
    browser.run("new Promise(done => setTimeout(done, 200))")
    assert browser.run("position()") == at < SECONDS
    assert browser.run("play.textContent") == "Play"


def test_all_signals_start_at_one_sample(browser: Browser, page: Path) -> None:
    browser.open(page)
    browser.wait(READY)
    starts = browser.run(
        """(() => {
          const starts = [], start = AudioBufferSourceNode.prototype.start;
          AudioBufferSourceNode.prototype.start = function (...when) { starts.push(when); start.apply(this, when); };
          go(1.5); play.click();
          return new Promise(done => setTimeout(() => done(starts), 100));
        })()"""
    )
    assert len(starts) == 5  # the recording, three stems, one true stem
    assert {tuple(start) for start in starts} == {tuple(starts[0])} and starts[0][1] == 1.5
    assert len(set(browser.run("tracks.map(track => track.voices[0].buffer.length)"))) == 1


def test_solo_isolates_mute_silences_and_volume_scales(browser: Browser, page: Path) -> None:
    browser.open(page)
    browser.wait(READY)
    together = levels(browser)
    assert all(abs(level + 14) < 1 for level in together.values())
    browser.press("1")
    soloed = levels(browser)
    assert abs(soloed["vocals"] + 14) < 1 and soloed["drums"] < -60 and soloed["bass"] < -60
    browser.press("1")
    browser.run("stems[1].mute.click()")
    muted = levels(browser)
    assert muted["drums"] < -60 and abs(muted["bass"] + 14) < 1
    browser.run("stems[2].volume.value = -6; stems[2].volume.dispatchEvent(new Event('input'))")
    assert levels(browser)["bass"] - muted["bass"] == pytest.approx(-6, abs=0.2)


def test_the_recording_and_the_true_stem_take_the_place_of_the_stems(browser: Browser, page: Path) -> None:
    browser.open(page)
    browser.wait(READY)
    browser.press("o")
    assert all(abs(level + 14) < 1 for level in levels(browser).values())
    assert browser.run("status.textContent") == "Heard: recording"
    browser.press("o")
    browser.run("stems[0].reference.click(); stems[0].solo.click()")
    assert levels(browser)["vocals"] == pytest.approx(-20, abs=1)
    assert browser.run("status.textContent") == "Heard: true vocals"


def test_a_loop_goes_round(browser: Browser, page: Path) -> None:
    browser.open(page)
    browser.wait(READY)
    browser.run("region = [1, 1.4]; loop.click(); go(1); play.click()")
    browser.wait("context.currentTime - startedAt > 1")
    assert 1 <= browser.run("position()") <= 1.4


def test_zoom_shows_a_part_around_the_position_and_the_keys_move_it(browser: Browser, page: Path) -> None:
    browser.open(page)
    browser.wait(READY)
    browser.run("go(3)")
    browser.press("+")
    low, high = browser.run("view")
    assert high - low == pytest.approx(SECONDS / 2) and low <= 3 <= high
    browser.press("ArrowLeft")
    assert browser.run("position()") == 0
    browser.press("-")
    assert browser.run("view") == [0, SECONDS]


@pytest.mark.parametrize("width", [390, 1280])
def test_nothing_is_wider_than_the_screen_and_every_control_has_a_name(page: Path, width: int) -> None:
    with Browser(width, 900) as opened:
        opened.open(page)
        opened.wait(READY)
        assert opened.run("document.documentElement.scrollWidth") <= width
        named = """[...document.querySelectorAll("button, input, a")].every(
          e => e.getAttribute("aria-label") || e.textContent.trim() || e.labels?.[0]?.textContent.trim())"""
        assert opened.run(named)
        ids = opened.run("[...document.querySelectorAll('[id]')].map(element => element.id)")
        assert len(ids) == len(set(ids))


def test_a_page_in_files_plays_from_a_disk(browser: Browser, tmp_path: Path) -> None:
    write_page(Listening(signals(), RATE, "A song"), tmp_path / "song.html", in_files=True)
    assert len(list((tmp_path / "song-sounds").iterdir())) == 4
    assert (tmp_path / "song.html").stat().st_size < 400_000
    browser.open(tmp_path / "song.html")
    browser.wait(READY)
    assert abs(levels(browser)["bass"] + 14) < 1


def test_the_page_needs_nothing_else_and_shows_names_as_they_are(tmp_path: Path) -> None:
    title, stem = "<script>alert(1)</script> & “co”", 'a "quoted" </script> stem'
    found = {"recording": signals()["recording"], stem: signals()["bass"]}
    write_page(Listening(found, RATE, title, {"<b>": "</style>"}), tmp_path / "song.html")
    text = (tmp_path / "song.html").read_text("utf-8")
    assert "<script>alert" not in text and "&lt;script&gt;alert(1)" in text
    assert text.count("<script") == text.count("</script>") == 3
    assert not re.search(r"https?://|<link|@import", re.sub(r'"data:[^"]*"', "", text))


def test_a_page_of_files_saves_the_files(tmp_path: Path) -> None:
    from metatasnet_fast.audio import write_audio

    for name, signal in signals().items():
        write_audio(tmp_path / f"{name} 1.wav", signal, RATE)
    stems = {name: tmp_path / f"{name} 1.wav" for name in TONES}
    page = listen_to(tmp_path / "recording 1.wav", stems, "100 % song", {"Model": "none"})
    assert page == tmp_path / "100 % song.html"
    assert 'href="vocals%201.wav" download="vocals 1.wav"' in page.read_text("utf-8")


def test_a_page_of_signals_shows_their_scores_beside_the_true_stems(tmp_path: Path) -> None:
    found = signals()
    recording, stems = found.pop("recording"), found
    scores = {"vocals": {"SDR": -5.914, "SI-SDR": float("nan")}, "drums": {"SDR": 3.0}}
    page = listen_to(
        recording,
        stems,
        "A song",
        path=tmp_path / "a.html",
        references={"vocals": 0.5 * stems["vocals"]},
        scores=scores,
        sample_rate=RATE,
    )
    text = page.read_text("utf-8")
    assert page == tmp_path / "a.html"
    assert re.findall("<dt>(.*?)</dt><dd>(.*?)</dd>", text) == [
        ("SDR", "\N{MINUS SIGN}5.91"), ("SI-SDR", "none"), ("SDR", "3.00")
    ]  # fmt: skip
    assert text.count('data-do="reference"') == 1


def test_a_page_of_signals_needs_a_path_and_a_rate(tmp_path: Path) -> None:
    found = signals()
    for given in ({"sample_rate": RATE}, {"path": tmp_path / "a.html"}):
        with pytest.raises(OutputError, match="path of the page and their sample rate"):
            listen_to(found["recording"], {"bass": found["bass"]}, "A song", **given)
    assert not list(tmp_path.iterdir())


def test_a_folder_that_cannot_be_written_is_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(OutputError, match="cannot be written"):
        write_page(Listening(signals(), RATE, "A song"), tmp_path / "file" / "song.html")


def test_silence_has_a_page(tmp_path: Path) -> None:
    write_page(
        Listening({"recording": torch.zeros(1, 100), "a": torch.zeros(1, 100)}, RATE, "Silence"), tmp_path / "s.html"
    )
    assert "silent" in (tmp_path / "s.html").read_text("utf-8")
