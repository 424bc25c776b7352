"""The way of one song: is it done? -> fetch -> decode and resample -> separate -> encode -> publish.

Each song has a thread that takes it all the way; what songs share, the device and the cores, is handed out by the batcher and
the stages. So a song holds back those behind it wherever it waits, and nothing can pile up.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from .. import __version__
from .._io import sha256_file
from ..audio import AudioStream, open_audio
from ..errors import AudioReadError, NotAudioError
from ..separation.fast_mode import separate_in_windows
from ..separation.outputs import StemFiles
from ..separation.progress import Reporter
from ..separation.recording import Recording
from ..separation.unscaled import Unscaled
from .batcher import SongRunner
from .cores import Place, SongBudget
from .destination import Destination, song_folder
from .failures import SongError, classify, unreadable
from .machinery import Machinery
from .outcome import Failure, Outcome, Status
from .result import Result, StemFile
from .song import Song, safe_name
from .source import Source
from .staging import Claims, Staging
from .storage import LocalStorage, local_path
from .trip import Trip, Twins, utc_now

__all__ = ["Walker"]

LEAST_BYTES = 1 / 8
"""Bytes of a compressed stem for each sample and channel, at least; only silence takes less, 16 times as much is 16 bits."""

PAUSE = 0.25
"""Seconds before the second attempt; four times as long before each one after it."""


class Walker:
    """Takes songs all the way, each in the thread that calls; with ``discard``, up to their stems, which no one gets."""

    def __init__(
        self,
        machinery: Machinery,
        destination: Destination,
        staging: Staging,
        stop: threading.Event,
        discard: bool = False,
    ) -> None:
        self._machinery = machinery
        self._settings = machinery.settings
        self._key = machinery.identity.key
        self._destination = destination
        self._staging = staging
        self._claims = Claims(destination.storage, stop)
        self._twins = Twins(destination, self._key)
        self._stop = stop
        self._discard = discard

    @torch.no_grad()
    def walk(self, song: Song, begin: Callable[[], object], wait: Callable[[], bool]) -> Outcome | None:
        """Never raises for what is wrong with a song. None if it was left: the run is being stopped, or the device is lost.

        Or another run has it in hand, and ``wait``, asked then, says not to wait. ``begin`` is called when it is ours.
        """
        attempt = 1
        while True:
            trip = Trip(song, self._key, attempt)
            try:
                self._destination.check()
                with self._claims.claim(safe_name(song.id), wait) as claimed:
                    if not claimed:
                        return None
                    begin()
                    return self._attempt(trip)
            except Exception as error:
                if self._machinery.batcher.is_lost(error):
                    return None
                failure, message = classify(error)
                if trip.copy is not None:
                    # The copy of a remote file is gone by now; its address says where it came from.
                    message = message.replace(str(trip.copy), song.uri)
                if not failure.worth_retrying or attempt >= self._settings.attempts or self._stop.is_set():
                    return trip.outcome(Status.failed, failure, message)
            self._stop.wait(PAUSE * 4 ** (attempt - 1))
            attempt += 1

    def _attempt(self, trip: Trip) -> Outcome:
        song, source = trip.song, Source(trip.song.uri)
        trip.is_new = self._settings.overwrite or not self._destination.listed(song.id).name
        if not trip.is_new:
            result = self._destination.done(song, self._key, source)
            if result is not None:
                trip.remember(result)
                self._twins.remember(result.content, song.id)
                return trip.outcome(Status.skipped)
        trip.stamp = source.stamp()
        if trip.stamp.size == 0:
            raise SongError(Failure.empty, f"{song.uri} is an empty file.")
        with contextlib.ExitStack() as stack:
            staged = stack.enter_context(self._staged(song))
            made = self._separate(trip, source, stack, staged)
            if local_path(song.uri) is not None and source.stamp().size != trip.stamp.size:
                raise SongError(Failure.unknown, f"{song.uri} changed while it was read.")
            if self._discard and not isinstance(made, Result):
                self._make_and_drop(trip, made[0])
                return trip.outcome(Status.done)
            result = made if isinstance(made, Result) else self._write(trip, *made)
            _write_durably(staged / result.name, result.to_json())
            began = time.perf_counter()
            self._publish(staged, song, result.name)
            trip.seconds["publish"] = time.perf_counter() - began
            self._twins.remember(result.content, song.id)
        return trip.outcome(Status.done)

    def _separate(
        self, trip: Trip, source: Source, stack: contextlib.ExitStack, staged: Path
    ) -> tuple[Unscaled, StemFiles] | Result:
        """Separate a song up to the stems before their gains; their memory is given back when ``stack`` unwinds.

        Or, if a song with the same content is done, its stems copied to ``staged``.
        """
        machinery, settings = self._machinery, self._settings
        separating: list[Place] = []
        with contextlib.ExitStack() as stages:
            reading = stages.enter_context(machinery.read.enter())
            began = time.perf_counter()
            path = stages.enter_context(source.local(self._staging.path))
            trip.copy = None if local_path(trip.song.uri) else path
            trip.content, trip.bytes_in = sha256_file(path), path.stat().st_size
            trip.seconds["fetch"] = time.perf_counter() - began
            self._refuse_if_taken(trip)
            if not settings.overwrite:
                while (other := self._twins.begin(trip.content)) is not None:
                    reading.leave()
                    other.wait()
                stack.callback(self._twins.end, trip.content)
                if reading.left:
                    reading = stages.enter_context(machinery.read.enter())
            twin = None if settings.overwrite else self._twins.copy(trip.content, staged)
            if twin is not None:
                trip.remember(twin)
                codec = twin.input["codec"]
                return replace(
                    twin,
                    id=trip.song.id,
                    uri=trip.song.uri,
                    input=trip.input(codec),
                    seconds=trip.seconds,
                    finished=utc_now(),
                )
            stream = stages.enter_context(_open(path))
            recording = self._recording(stream)
            files = StemFiles.plan(staged, "{stem}", "", settings.recipe, recording, settings.format, settings.subtype)
            self._refuse_if_full(recording)
            home, budget = machinery.home(recording, trip.attempt)
            if isinstance(budget, SongBudget):
                stack.callback(budget.close)

            def begin() -> None:
                reading.leave()
                stages.enter_context(machinery.room.enter(machinery.working_memory(recording)))
                separating.append(stages.enter_context(machinery.separate.enter()))

            unscaled = separate_in_windows(
                machinery.engine,
                SongRunner(machinery.batcher, begin),
                machinery.window,
                recording,
                machinery.device,
                home,
                budget,
                Reporter(None),
            )
        trip.seconds["read"] = reading.seconds - trip.seconds["fetch"]
        trip.seconds["separate"] = sum(place.seconds for place in separating)
        trip.warnings += [*stream.warnings, *recording.warnings()]
        trip.codec, trip.channels, trip.sample_rate = stream.codec, recording.channels, recording.sample_rate
        trip.samples = unscaled.mixture.length
        trip.duration = trip.samples / trip.sample_rate
        return unscaled, files

    def _refuse_if_taken(self, trip: Trip) -> None:
        """Folders built alike give their songs the same ids; none takes another's place unasked."""
        if trip.is_new:
            return
        before = self._destination.from_elsewhere(trip.song)
        if before is not None and before.content != trip.content:
            raise SongError(
                Failure.taken,
                f"{self._destination.uri} already holds another song under the id {before.id}, from {before.uri}.",
            )

    def _refuse_if_full(self, recording: Recording) -> None:
        """Before the work, where it is plain that the stems will not fit."""
        storage = self._destination.storage
        if isinstance(storage, LocalStorage) and recording.samples is not None:
            size = LEAST_BYTES * recording.samples * recording.channels * len(self._settings.recipe)
            if shutil.disk_usage(storage.path).free < (16 * size if self._settings.format == "wav" else size):
                raise SongError(Failure.write, f"{self._destination.uri} has no room left for the stems of a song.")

    def _recording(self, stream: AudioStream) -> Recording:
        """The open file, which is refused when it turns out to be too long: when it says so, or when it goes on and on."""
        most = int(self._settings.max_hours * 3600 * stream.sample_rate)
        if (stream.frames or 0) > most:
            raise _too_long(stream, self._settings.max_hours)
        recording = Recording.from_stream(stream)
        blocks = recording.blocks

        def counted() -> Iterator[Tensor]:
            for block in blocks():
                if stream.frames_read > most:
                    raise _too_long(stream, self._settings.max_hours)
                yield block

        recording.blocks = counted
        return recording

    def _make_and_drop(self, trip: Trip, unscaled: Unscaled) -> None:
        """The stems with their gains, as far as the CPU's memory."""
        settings = self._settings
        with self._machinery.write.enter() as writing:
            for blocks in unscaled.outputs(settings.recipe, settings.mixture_consistency):
                for block in blocks.values():
                    block.cpu()
            unscaled.mixture.close()
        trip.seconds["write"] = writing.seconds

    def _write(self, trip: Trip, unscaled: Unscaled, files: StemFiles) -> Result:
        """Encode the stems into the staging folder, and say what they are."""
        settings, machinery = self._settings, self._machinery
        with machinery.write.enter() as writing:
            trip.warnings += files.write(
                unscaled, settings.recipe, settings.mixture_consistency, trip.sample_rate, Reporter(None)
            )
            unscaled.mixture.close()
            stems = {
                stem: StemFile(path.name, path.stat().st_size, sha256_file(path), files.writers[stem].clipped_samples)
                for stem, path in files.paths.items()
            }
        trip.seconds["write"] = writing.seconds
        trip.bytes_out = sum(file.bytes for file in stems.values())
        return Result(
            id=trip.song.id,
            uri=trip.song.uri,
            input=trip.input(trip.codec),
            identity=machinery.identity,
            audio={
                "duration": trip.duration,
                "sample_rate": trip.sample_rate,
                "channels": trip.channels,
                "samples": trip.samples,
            },
            files=stems,
            gains=unscaled.gains_by_name(),
            seconds={name: round(value, 4) for name, value in trip.seconds.items()},
            made_by={"version": __version__, **machinery.made_by},
            warnings=list(trip.warnings),
            finished=utc_now(),
        )

    def _publish(self, staged: Path, song: Song, result: str) -> None:
        """Publish what is staged; that alone is tried again, and not the separation."""
        for attempt in range(1, self._settings.attempts + 1):
            self._destination.check()
            try:
                self._destination.storage.publish(staged, song_folder(song.id), result)
                return
            except Exception as error:  # whatever the object store's client raises
                if attempt == self._settings.attempts or self._stop.is_set():
                    raise SongError(
                        Failure.write, f"The stems of {song.id} cannot be put to {self._destination.uri} ({error})."
                    ) from error
            self._stop.wait(PAUSE * 4 ** (attempt - 1))

    @contextlib.contextmanager
    def _staged(self, song: Song) -> Iterator[Path]:
        try:
            folder = self._staging.folder(safe_name(song.id))
        except OSError as error:
            raise SongError(Failure.write, f"Nothing can be written to {self._destination.uri} ({error}).") from error
        try:
            yield folder
        finally:
            shutil.rmtree(folder, ignore_errors=True)


def _write_durably(path: Path, text: str) -> None:
    with open(path, "w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())


def _open(path: Path) -> AudioStream:
    try:
        return open_audio(path)
    except NotAudioError:
        raise
    except AudioReadError as error:
        raise unreadable(path, error) from error


def _too_long(stream: AudioStream, hours: float) -> SongError:
    return SongError(Failure.too_long, f"{stream.path} lasts longer than {hours:g} hours.")
