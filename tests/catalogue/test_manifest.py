"""Manifests of every kind name the same songs, with ids that stay."""

from __future__ import annotations

import errno
import json
import os
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from metatasnet_fast.catalogue.destination import song_folder
from metatasnet_fast.catalogue.inputs import parse_shard, read_manifest
from metatasnet_fast.catalogue.settings import SAFE, Song, derived_id, safe_name
from metatasnet_fast.errors import ConfigError

unhurried = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
"""A busy machine is no failure."""


@pytest.fixture
def album(tmp_path: Path) -> Path:
    folder = tmp_path / "album"
    for name in ("a.wav", "cd 1/b.mp3", "cd 2/b.mp3", ".hidden/c.wav", "notes.txt", "cd 2/.d.wav"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(b"x" * 32_000)
    return folder


def names(songs: list[Song], folder: Path) -> list[str]:
    return [Path(song.uri).relative_to(folder).as_posix() for song in songs]


def test_a_folder_gives_its_audio_files(album: Path) -> None:
    songs = read_manifest(str(album))
    assert names(songs, album) == ["a.wav", "cd 1/b.mp3", "cd 2/b.mp3"]
    assert [song.size for song in songs] == [32_000] * 3
    assert songs[1].expected_seconds() == 1.0


def test_stems_below_the_folder_are_no_songs(album: Path) -> None:
    songs = read_manifest(str(album), exclude=str(album / "cd 2"))
    assert names(songs, album) == ["a.wav", "cd 1/b.mp3"]
    assert names(read_manifest(f"{album}/**/*.mp3", exclude=str(album / "cd 1")), album) == ["cd 2/b.mp3"]


@pytest.mark.parametrize("pattern", ["", "/**/*.wav"])
def test_stems_are_no_songs_by_whatever_way_they_are_reached(tmp_path: Path, pattern: str) -> None:
    music = tmp_path / "real" / "music"
    for name in ("a.wav", "stems/songs/ab/drums.wav"):
        (music / name).parent.mkdir(parents=True, exist_ok=True)
        (music / name).touch()
    (tmp_path / "home").symlink_to("real")
    linked = tmp_path / "home" / "music"
    assert names(read_manifest(f"{linked}{pattern}", exclude=str(music / "stems")), linked) == ["a.wav"]
    assert names(read_manifest(f"{music}{pattern}", exclude=str(linked / "stems")), music) == ["a.wav"]
    (music / "same").symlink_to("stems")
    (music / "inside").symlink_to("stems/songs")
    assert names(read_manifest(f"{music}{pattern}", exclude=str(music / "stems")), music) == ["a.wav"]


def test_folders_behind_links_are_walked_like_others(album: Path, tmp_path: Path) -> None:
    before = read_manifest(str(album))
    elsewhere = tmp_path / "elsewhere" / "b"
    elsewhere.mkdir(parents=True)
    (elsewhere / "e.wav").touch()
    (album / "a link").symlink_to(elsewhere.parent)
    (album / "cd 2" / "link").symlink_to(elsewhere)
    songs = read_manifest(str(album))
    assert songs[: len(before)] == before, "a link changed the songs that were there"
    assert names(songs[len(before) :], album) == ["a link/b/e.wav"]
    assert songs[-1].id == derived_id("a link/b/e.wav")


def test_links_that_lead_round_end(album: Path) -> None:
    before = read_manifest(str(album))
    (album / "cd 1" / "up").symlink_to("..")
    (album / "a").symlink_to("cd 1")
    (album / "round").symlink_to("round")
    assert read_manifest(str(album)) == before


def test_ids_do_not_depend_on_where_the_folder_is(album: Path, tmp_path: Path) -> None:
    before = [song.id for song in read_manifest(str(album))]
    moved = album.rename(tmp_path / "moved")
    assert [song.id for song in read_manifest(f"file://{moved}")] == before


def test_a_pattern_gives_what_matches(album: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(album.parent)
    songs = read_manifest("album/**/*.mp3")
    assert names(songs, album) == ["cd 1/b.mp3", "cd 2/b.mp3"]
    assert songs[0].id != songs[1].id


def test_a_single_file_is_a_catalogue_too(album: Path) -> None:
    assert names(read_manifest(str(album / "a.wav")), album) == ["a.wav"]


ROWS = [{"id": "one", "uri": "a.wav", "duration": 3.5}, {"id": "two", "uri": "memory://x/b.mp3", "bytes": 7}]


def written(folder: Path, kind: str) -> Path:
    path = folder / f"songs.{kind}"
    if kind == "csv":
        path.write_text("\ufeffuri,id,duration,bytes\na.wav,one,3.5,\nmemory://x/b.mp3,two,,7\n", "utf-8")
    elif kind == "tsv":
        path.write_text("uri\tid\tduration\tbytes\na.wav\tone\t3.5\t\nmemory://x/b.mp3\ttwo\t\t7\n", "utf-8")
    elif kind == "jsonl":
        path.write_text("\n".join(json.dumps(row) for row in ROWS) + "\n\n", "utf-8")
    else:
        pyarrow = pytest.importorskip("pyarrow")
        parquet = pytest.importorskip("pyarrow.parquet")
        parquet.write_table(pyarrow.Table.from_pylist(ROWS), path)
    return path


@pytest.mark.parametrize("kind", ["csv", "tsv", "jsonl", "parquet"])
def test_tables_of_all_kinds_say_the_same(tmp_path: Path, kind: str) -> None:
    songs = read_manifest(str(written(tmp_path, kind)))
    if kind == "parquet":  # columns are those of the first row
        songs = [Song(song.id, song.uri, song.duration, {"two": 7}.get(song.id)) for song in songs]
    assert songs == [Song("one", str(tmp_path / "a.wav"), 3.5), Song("two", "memory://x/b.mp3", None, 7)]


@pytest.mark.parametrize("ending", ["\n", "\r\n", "\r"])
@pytest.mark.parametrize("name", ["songs.csv", "songs.txt", "songs.jsonl"])
def test_lines_end_as_on_any_system(tmp_path: Path, name: str, ending: str) -> None:
    lines = {
        "csv": ["uri", "a.wav", "b.wav"],
        "txt": ["a.wav", "b.wav"],
        "jsonl": ['{"uri": "a.wav"}', '{"uri": "b.wav"}'],
    }
    (tmp_path / name).write_bytes(b"\xef\xbb\xbf" + ending.join([*lines[name.split(".")[1]], ""]).encode())
    assert names(read_manifest(str(tmp_path / name)), tmp_path) == ["a.wav", "b.wav"]


def test_odd_characters_in_names_end_no_line(tmp_path: Path) -> None:
    odd = [f"a{sign}b.wav" for sign in ("\u2028", "\u2029", "\x85", "\x0b", "\x0c", "\x1c")]
    (tmp_path / "songs.txt").write_text("\n".join(odd), "utf-8")
    assert names(read_manifest(str(tmp_path / "songs.txt")), tmp_path) == odd
    rows = [json.dumps({"uri": name}, ensure_ascii=False) for name in odd]
    (tmp_path / "songs.jsonl").write_text("\n".join(rows), "utf-8")
    assert names(read_manifest(str(tmp_path / "songs.jsonl")), tmp_path) == odd


def test_a_text_lists_addresses(tmp_path: Path) -> None:
    (tmp_path / "songs.txt").write_text("# mine\n\nsub/a b.wav\n/else/where.mp3\ns3://bucket/c.flac\n")
    songs = read_manifest(str(tmp_path / "songs.txt"))
    assert [song.uri for song in songs] == [str(tmp_path / "sub/a b.wav"), "/else/where.mp3", "s3://bucket/c.flac"]
    assert songs[0].id == derived_id("sub/a b.wav")


def test_manifests_and_folders_in_object_stores() -> None:
    fsspec = pytest.importorskip("fsspec")
    store = fsspec.filesystem("memory")
    store.pipe({"/m/album/a.wav": b"1", "/m/album/x/b.mp3": b"22", "/m/list.txt": b"album/a.wav\n"})
    try:
        songs = read_manifest("memory://m/album")
        assert [(song.uri, song.size) for song in songs] == [
            ("memory:///m/album/a.wav", 1),
            ("memory:///m/album/x/b.mp3", 2),
        ]
        assert len(read_manifest("memory://m/album", exclude="memory://m/album/x")) == 1
        assert [song.uri for song in read_manifest("memory://m/album/*/*.mp3")] == ["memory:///m/album/x/b.mp3"]
        assert [song.uri for song in read_manifest("memory://m/list.txt")] == ["memory://m/album/a.wav"]
    finally:
        store.rm("/m", recursive=True)


def test_a_row_that_is_there_twice_counts_once(tmp_path: Path) -> None:
    (tmp_path / "songs.txt").write_text("a.wav\na.wav\n")
    assert len(read_manifest(str(tmp_path / "songs.txt"))) == 1


@pytest.mark.parametrize(
    ("name", "content", "reason"),
    [
        ("songs.csv", "id,path\n1,a.wav\n", "no uri: .* in a column of that name"),
        ("songs.csv", "id,uri\n1,a.wav\n1,b.wav\n", "twice"),
        ("songs.csv", "id,uri\nSong,a.wav\nsong,b.wav\n", "differ in case only"),
        ("songs.csv", "id,uri,duration\n1,a.wav,long\n", "no number"),
        ("songs.csv", "id,uri,duration\n1,a.wav,-3\n", "duration '-3', which is no number from 0 on"),
        ("songs.jsonl", '{"uri": "a.wav", "bytes": 1e999}', "bytes inf, which is no number"),
        ("songs.jsonl", '{"uri": "a.wav", "id": "\\ud800"}', "half a character"),
        ("songs.jsonl", '{"uri": "\\ud800.wav"}', "half a character"),
        ("songs.csv", "id,uri\n1,\n", "Row 1 .* has no uri"),
        ("songs.csv", 'uri\na.wav\n"b.wav\nc.wav\nd.wav\n', "Line 3 .* cannot be read .*: check its quotes"),
        ("songs.csv", 'uri,id\n"a.wav"x,1\n', "Line 2 .* cannot be read .*: check its quotes"),
        ("songs.csv", f"uri,{'x' * 200_000}\na.wav,1\n", "Line 1 .* cannot be read"),
        ("songs.jsonl", "{}\nnothing\n", "Row 1"),
        ("songs.jsonl", '{"uri": "a"}\nnothing\n', "Line 2"),
        ("songs.jsonl", "[1]\n", "no JSON object"),
        ("songs.jsonl", "[" * 100_000, "Line 1 .* is no JSON"),
        ("songs.txt", "# nothing\n", "names no songs"),
        ("songs.pdf", "x", "A manifest is"),
        ("songs.parquet", "x", "no Parquet file, or damaged"),
    ],
)
def test_a_manifest_that_cannot_be_used_says_why(tmp_path: Path, name: str, content: str, reason: str) -> None:
    if name.endswith("parquet"):
        pytest.importorskip("pyarrow")
    (tmp_path / name).write_text(content)
    with pytest.raises(ConfigError, match=reason):
        read_manifest(str(tmp_path / name))


def test_tables_made_from_data_frames_have_holes_and_floats(tmp_path: Path) -> None:
    (tmp_path / "songs.csv").write_text("uri,duration,bytes\na.wav,NaN,882044.0\nb.wav,2.5,nan\n")
    (tmp_path / "songs.jsonl").write_text('{"uri": "a.wav", "id": NaN, "duration": NaN}\n')
    songs = read_manifest(str(tmp_path / "songs.csv"))
    assert [(song.duration, song.size) for song in songs] == [(None, 882044), (2.5, None)]
    assert read_manifest(str(tmp_path / "songs.jsonl"))[0].id == derived_id("a.wav")


def test_a_parquet_file_that_is_damaged_inside_says_so(tmp_path: Path) -> None:
    pyarrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    path = tmp_path / "songs.parquet"
    parquet.write_table(pyarrow.table({"uri": [f"{i}.wav" for i in range(6000)]}), path)
    content = bytearray(path.read_bytes())
    content[4 : len(content) // 2] = bytes(byte ^ 0x5A for byte in content[4 : len(content) // 2])
    path.write_bytes(content)
    with pytest.raises(ConfigError, match="or damaged"):
        read_manifest(str(path))


def test_a_folder_that_may_not_be_read_is_not_left_out(album: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    scan = os.scandir

    def refusing(path: str) -> object:
        if Path(path).name == "cd 2":
            raise PermissionError(errno.EACCES, "Permission denied", str(path))
        return scan(path)

    monkeypatch.setattr(os, "scandir", refusing)
    with pytest.raises(ConfigError, match="cd 2 cannot be read"):
        read_manifest(str(album))


@pytest.mark.parametrize("missing", ["nowhere", "nowhere/*.wav", "nowhere.csv"])
def test_a_manifest_that_is_not_there_says_so(tmp_path: Path, missing: str) -> None:
    with pytest.raises(ConfigError, match="no manifest|names no songs"):
        read_manifest(str(tmp_path / missing))


@unhurried
@given(st.integers(1, 7), st.lists(st.text(min_size=1, max_size=6), unique_by=lambda id: safe_name(id).casefold()))
def test_shards_share_the_songs_among_them(count: int, ids: list[str]) -> None:
    import tempfile

    if not ids:
        return
    with tempfile.TemporaryDirectory() as folder:
        table = Path(folder, "songs.jsonl")
        table.write_text("".join(json.dumps({"id": id, "uri": "a.wav"}) + "\n" for id in ids), "utf-8")
        parts = [read_manifest(str(table), (index, count)) for index in range(1, count + 1)]
    assert sorted(song.id for part in parts for song in part) == sorted(ids)


@pytest.mark.parametrize("text", ["0/4", "5/4", "1", "a/b", "-1/2", "1/0", "\N{SUPERSCRIPT THREE}/4"])
def test_a_shard_that_is_none_is_refused(text: str) -> None:
    with pytest.raises(ConfigError, match="i/n"):
        parse_shard(text)


@unhurried
@given(st.text(max_size=300))
def test_every_id_names_a_folder(id: str) -> None:
    name = safe_name(id)
    assert SAFE.fullmatch(name.replace("~", "_")) and name not in (".", "..") and len(name) <= 120
    assert song_folder(id).count("/") == 3
    assert SAFE.fullmatch(derived_id(id))


@unhurried
@given(st.text(max_size=20), st.text(max_size=20))
def test_different_ids_have_different_names(one: str, other: str) -> None:
    assert (safe_name(one) == safe_name(other)) == (one == other)
