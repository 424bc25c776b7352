"""The log of a run: no full disk and no damaged line costs more than itself."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from metatasnet_fast.training.journal import Journal, read_journal


class Disk:
    """A file that takes ``room`` bytes more, and may say what happens when it is closed."""

    def __init__(self, file: Any, room: int) -> None:
        self.file, self.room = file, room

    def write(self, data: bytes) -> int:
        if self.room == 0:
            raise OSError(28, "No space left on device")
        taken = self.file.write(data[: self.room])
        self.room -= taken
        return int(taken)

    def close(self) -> None:
        self.file.close()


def test_lines_that_a_full_disk_refused_are_written_later(tmp_path: Path) -> None:
    notes: list[str] = []
    with Journal(tmp_path, 0, note=notes.append) as journal:
        journal._file = disk = Disk(journal._file, room=20)  # type: ignore[assignment]
        for step in (1, 2, 3):
            journal.write(step, "train", loss=1.5)
        assert read_journal(tmp_path) == []
        disk.room = 10_000
        journal.write(4, "train", loss=1.5)
        assert [entry["step"] for entry in read_journal(tmp_path)] == [1, 2, 3, 4]
        disk.room = 0
        journal.write(5, "train", loss=1.5)
        disk.room = 10_000
    assert [entry["step"] for entry in read_journal(tmp_path)] == [1, 2, 3, 4, 5]
    assert len(notes) == 2 and all("No space left on device" in note for note in notes)


def test_lines_that_cannot_be_written_at_the_end_are_said_to_be_lost(tmp_path: Path) -> None:
    notes: list[str] = []
    with Journal(tmp_path, 0, note=notes.append) as journal:
        journal._file = Disk(journal._file, room=0)  # type: ignore[assignment]
        journal.write(1, "train", loss=1.5)
        journal.write(2, "train", loss=1.5)
    assert len(notes) == 2 and "lacks its last 2 lines" in notes[1]


@pytest.mark.parametrize(
    "line", ["[1]", '{"a": 1}', '{"step": "1", "kind": "train"}', '{"step": 1}', "3", '{"st', "\x00"]
)
def test_a_line_that_is_no_entry_is_left_out(tmp_path: Path, line: str) -> None:
    good = json.dumps({"step": 2, "kind": "train", "loss": 1.0})
    (tmp_path / "log.jsonl").write_bytes(b"\xff\n" + f"{line}\n{good}\n".encode())
    assert [entry["step"] for entry in read_journal(tmp_path)] == [2]
    with Journal(tmp_path, 2):
        pass
    assert (tmp_path / "log.jsonl").read_text() == good + "\n"


def test_an_entry_that_lacks_values_is_drawn_as_far_as_it_goes(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    from metatasnet_fast.training.journal import plot_run

    lines = [
        '{"step": 1, "kind": "train"}',
        '{"step": 2, "kind": "valid", "sdr": [1]}',
        '{"step": 3, "kind": "train", "loss": "?"}',
    ]
    (tmp_path / "log.jsonl").write_text("\n".join(lines))
    assert plot_run(tmp_path, tmp_path / "run.png").exists()
