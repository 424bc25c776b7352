"""Take one song through its steps: is it done? -> fetch -> decode and resample -> separate -> encode -> publish.

Each song has a thread that takes it through all steps. The batcher shares the device between songs, and the stages
share the cores. A song that waits holds back the songs behind it, so no queue can grow without limit.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from .. import __version__
from .._io import sha256_file, write_atomically
from ..audio import open_audio
from ..separation.fast_mode import resample, separate_resampled
from ..separation.outputs import StemFiles
from ..separation.recording import Recording
from ..separation.result import Reporter
from .destination import claim
from .events import SongEnded, SongStarted
from .inputs import Source
from .outcome import Failure, Outcome, Result, SongError, Status, StemFile, classify, utc_now
from .settings import Song, song_folder
from .storage import ContestedError, LocalStorage, local_path

if TYPE_CHECKING:
    from .worker import Worker

__all__ = ["SongPipeline"]

LEAST_BYTES = 1 / 8
"""Bytes per sample and channel that a compressed stem takes at least, unless it is silent. 16 bits are 16 times as
much."""

PAUSE = 0.25
"""Seconds before the second attempt. The pause before each further attempt is four times as long as the one before."""

CONTESTED_SECONDS = 120.0
"""Seconds that another run may take to put all files of a song, once it has begun to."""


class SongPipeline:
    """The steps of a worker's songs. Each song runs in the thread that calls :meth:`run`."""

    def __init__(self, worker: Worker) -> None:
        self.worker, self.settings, self.key = worker, worker.settings, worker.identity.key
        self.destination, self.contents = worker.destination, worker.contents

    @torch.no_grad()
    def run(self, song: Song, defer: Callable[[Song], object]) -> Outcome | None:
        """Separate a song; its failure is an outcome, not an exception.

        Args:
            defer: function that takes the song back if another run is working on it.

        Returns:
            the outcome; None if the song was deferred, the run is being stopped, or the device is lost.
        """
        try:
            self.destination.check()
            with claim(self.destination.storage, song.id) as claimed:
                if not claimed:
                    defer(song)
                    return None
                self.worker.listen(SongStarted(song.id, song.uri, self.worker.number))
                outcome = self._try(song)
        except Exception as error:  # the destination or the claim has raised it
            outcome = self._failed(song, error, 1)
        if outcome is not None:
            self.worker.listen(SongEnded(outcome, self.worker.number))
        return outcome

    def _try(self, song: Song) -> Outcome | None:
        """Return the outcome of the last attempt; None if the device is lost."""
        for attempt in self._attempts():
            source = Source(song.uri)
            try:
                return self._attempt(song, source, attempt)
            except Exception as error:
                if self.worker.batcher.is_lost(error):
                    return None
                outcome = self._failed(song, error, attempt, source)
            if outcome.failure is not None and not outcome.failure.worth_retrying:
                break
        return outcome

    def _attempts(self, least: int = 1) -> Iterator[int]:
        """Yield the number of each attempt, with growing pauses between attempts; stop if the run is being stopped."""
        yield 1
        for attempt in range(2, max(self.settings.attempts, least) + 1):
            if self.worker.stop.wait(PAUSE * 4 ** (attempt - 2)):
                return
            yield attempt

    def _failed(self, song: Song, error: Exception, attempt: int, source: Source | None = None) -> Outcome:
        failure, message = classify(error)
        if source is not None and source.copy is not None:
            # The copy of a remote file is removed by now: name the remote address instead.
            message = message.replace(str(source.copy), song.uri)
        stamp = source.seen.text if source is not None and source.seen else None
        return Outcome(song.id, song.uri, Status.failed, self.key, failure, message, attempt, stamp=stamp)

    def _attempt(self, song: Song, source: Source, attempt: int) -> Outcome:
        overwrite = self.settings.overwrite
        before, whole = (None, False) if overwrite else self.destination.found(song_folder(song.id))
        done = before if whole and before is not None and before.key == self.key else None
        stamp = source.stamp()
        if done is not None and stamp.proves(done.input["stamp"]):
            return self._skipped(song, done)
        if stamp.size == 0:
            raise SongError(Failure.empty, f"{song.uri} is an empty file.")
        with contextlib.ExitStack() as stack:
            staged = stack.enter_context(self.worker.staging.folder(song.id))
            with contextlib.ExitStack() as fetched:
                with self.worker.read.enter() as fetching:
                    path = fetched.enter_context(source.local(self.worker.staging.path))
                    content, size = sha256_file(path), path.stat().st_size
                if done is not None and done.content == content:
                    return self._skipped(song, done)
                if before is not None and before.content != content:
                    self._refuse_if_taken(song, before)
                folder = None if overwrite else stack.enter_context(self.contents.hold(content))
                input = {"sha256": content, "stamp": stamp.text, "bytes": size}
                result = None if folder is None else self._copied(folder, song, input, staged)
                result = result or self._separated(song, input, path, staged, attempt, fetched)
            result = replace(result, seconds={"fetch": round(fetching.seconds, 4), **result.seconds})
            if local_path(song.uri) is not None and source.stamp().size != stamp.size:
                raise SongError(Failure.unknown, f"{song.uri} changed while it was read.")
            write_atomically(staged / result.name, result.to_json())
            began = time.perf_counter()
            other = self._publish(staged, song, result.name)
            if other is not None:
                return self._skipped(song, other, attempt)
            self.contents.add(result)
        row = result.outcome(Status.done, attempt)
        return replace(row, seconds={**row.seconds, "publish": round(time.perf_counter() - began, 4)})

    def _skipped(self, song: Song, done: Result, attempt: int = 1) -> Outcome:
        self.contents.add(done)
        return replace(done, uri=song.uri).outcome(Status.skipped, attempt)

    def _separated(
        self, song: Song, input: dict[str, Any], path: Path, staged: Path, attempt: int, fetched: contextlib.ExitStack
    ) -> Result:
        """Separate a song, encode its stems into the folder ``staged``, and return their result."""
        worker, settings, device = self.worker, self.settings, self.worker.device
        with contextlib.ExitStack() as stack:
            with worker.read.enter() as reading, open_audio(path, partial=settings.partial) as stream:
                self._refuse_if_longer((stream.frames or 0) / stream.sample_rate, song)
                recording = Recording.from_stream(stream)
                rate, channels = recording.sample_rate, recording.channels
                files = StemFiles.plan(
                    staged, "{stem}", "", worker.recipe, recording, settings.format, settings.subtype
                )
                self._refuse_if_full(recording)
                home, budget = worker.home(recording, attempt)
                stack.callback(budget.close)
                reporter = Reporter(lambda progress: self._refuse_if_longer(progress.seconds_done, song))
                source = resample(worker.engine, recording, device, home, budget, reporter)
            fetched.close()  # a copy of the input is not needed any more
            with worker.separate.enter(worker.working_memory(recording)) as separating:
                unscaled = separate_resampled(
                    worker.engine, worker.batcher, worker.window, source, device, Reporter(None)
                )
            warnings, samples = [*stream.warnings, *recording.warnings()], unscaled.mixture.length
            with worker.write.enter() as writing:
                warnings += files.write(unscaled, worker.recipe, settings.mixture_consistency, rate, Reporter(None))
                unscaled.mixture.close()
                stems = {
                    name: StemFile(
                        file.name, file.stat().st_size, sha256_file(file), files.writers[name].clipped_samples
                    )
                    for name, file in files.paths.items()
                }
        places = {"read": reading, "separate": separating, "write": writing}
        return Result(
            id=song.id,
            uri=song.uri,
            input={**input, "codec": stream.codec},
            identity=worker.identity,
            audio={"duration": samples / rate, "sample_rate": rate, "channels": channels, "samples": samples},
            files=stems,
            gains=unscaled.gains_by_name(),
            seconds={name: round(place.seconds, 4) for name, place in places.items()},
            made_by={"version": __version__, **worker.made_by},
            warnings=warnings,
        )

    def _copied(self, folder: str, song: Song, input: dict[str, Any], staged: Path) -> Result | None:
        """Copy the stems of another song of equal content into ``staged``, and return the result of this song.

        Args:
            folder: folder of the other song at the destination.
            input: the entry ``input`` of the result, without ``codec``.

        Returns:
            None if the contents differ, or the other song's stems cannot be used.
        """
        found = self.destination.result(folder)
        if found is None or found.key != self.key or found.content != input["sha256"]:
            return None
        try:
            for file in found.files.values():
                with self.destination.storage.local(f"{folder}/{file.path}") as path:
                    shutil.copyfile(path, staged / file.path)
                if sha256_file(staged / file.path) != file.sha256:
                    return None
        except OSError:  # the folder is gone or cannot be read: separate the song
            return None
        input = {**input, "codec": found.input["codec"]}
        return replace(found, id=song.id, uri=song.uri, input=input, seconds={}, finished=utc_now())

    def _refuse_if_taken(self, song: Song, before: Result) -> None:
        """Raise :class:`SongError` if the result ``before`` is that of another song with the same id.

        Two folders with equal file names, for example, give two songs the same id.
        """
        # Local files are compared by their real paths, so that links and other spellings of a path do not matter.
        paths = {uri: local_path(uri) for uri in (song.uri, before.uri)}
        if len({uri if path is None else os.path.realpath(path) for uri, path in paths.items()}) > 1:
            text = f"{self.destination.uri} already holds another song under the id {before.id}, from {before.uri}."
            raise SongError(Failure.taken, text)

    def _refuse_if_full(self, recording: Recording) -> None:
        """Raise :class:`SongError`, before the work begins, if the stems certainly do not fit on a local
        destination."""
        storage = self.destination.storage
        if isinstance(storage, LocalStorage) and recording.samples is not None:
            size = LEAST_BYTES * recording.samples * recording.channels * len(self.worker.recipe)
            if shutil.disk_usage(storage.path).free < (16 * size if self.settings.format == "wav" else size):
                raise SongError(Failure.write, f"{self.destination.uri} has no room left for the stems of a song.")

    def _refuse_if_longer(self, seconds: float, song: Song) -> None:
        """Raise :class:`SongError` if a song is longer than ``max_hours``.

        ``seconds`` is the length that the file declares, or the length that is decoded so far.
        """
        if seconds > 3600 * self.settings.max_hours:
            raise SongError(Failure.too_long, f"{song.uri} lasts longer than {self.settings.max_hours:g} hours.")

    def _publish(self, staged: Path, song: Song, result: str) -> Result | None:
        """Publish the staged files. If that fails, only the publishing is tried again, not the separation.

        Returns:
            the result of another run that published the same song at the same time; None if there was no such run.
        """
        for _ in self._attempts(least=2):  # the second attempt may replace what a killed run left
            self.destination.check()
            try:
                self.destination.storage.publish(staged, song_folder(song.id), result)
                return None
            except ContestedError as error:
                refused: Exception = error
                other = self._other(song)
                if other is not None:
                    return other
            except Exception as error:  # whatever the object store's client raises
                refused = error
        text = f"The stems of {song.id} cannot be put to {self.destination.uri} ({refused})."
        raise SongError(Failure.write, text) from refused

    def _other(self, song: Song) -> Result | None:
        """Wait, at most CONTESTED_SECONDS, for the result of another run that is publishing this song, and return it.

        Return None if no result for the same model and settings came: the other run may have been killed, or this
        worker is stopping.
        """
        deadline = time.monotonic() + CONTESTED_SECONDS
        while time.monotonic() < deadline and not self.worker.stop.wait(CONTESTED_SECONDS / 60):
            found = self.destination.result(song_folder(song.id))
            if found is not None and found.key == self.key:
                return found
        return None
