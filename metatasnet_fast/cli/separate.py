"""Separate files and folders into stems: ``metatasnet-fast separate``.

``demo`` separates the excerpt that comes with the package, and writes a page to listen to the stems.
"""

from __future__ import annotations

import argparse
import contextlib
import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING

from .. import __version__
from ..errors import ConfigError
from .common import (
    ProgressDisplay,
    Report,
    add_engine_options,
    add_json_option,
    add_page_options,
    check_writable,
    make_separator,
    names,
    print_result,
    sentence_of,
)
from .files import (
    Model,
    Origin,
    Template,
    Track,
    check_origins,
    find_tracks,
    note_origins,
    plan_outputs,
    split_tracks,
    tell_apart,
)

if TYPE_CHECKING:
    from ..page import Listening
    from ..separation import Separation, Separator
    from ..separation.result import Recipe

__all__ = ["add_arguments"]

EPILOG = """
Stems go to OUTPUT/<model>/<track>/<stem>.wav. A track is called as its file is, without suffix; one found in a folder, by
its path in that folder; those that would have the same name, by their whole names or paths. A recording on standard input
(INPUT is -) is called stdin. Stems that are there already are kept, and not made again without --overwrite.
A hidden file beside them, .stems.json, says of which recording they are and by which model: for another one the file fails.

exit codes: 0 all done; 2 the command cannot be carried out, nothing was done; 3 some files failed, the rest is done;
130 interrupted. No stem is ever half-written.

  metatasnet-fast separate song.mp3
  metatasnet-fast separate song.mp3 --page
  metatasnet-fast separate album/ --two-stems vocals --format flac
  metatasnet-fast separate *.wav --json > results.jsonl
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.description = "Separate recordings into stems of the same sample rate, channels and length."
    parser.epilog = EPILOG
    parser.add_argument(
        "inputs", nargs="+", metavar="INPUT", help="an audio or video file, a folder of audio files, or -"
    )
    parser.add_argument(
        "-o", "--output", default="separated", metavar="OUT", help="folder for the stems (default: separated)"
    )
    parser.add_argument("--overwrite", action="store_true", help="make stems again that are there already")
    add_json_option(parser, "one JSON object per file")
    parser.add_argument(
        "--audio-track",
        type=_track_number,
        metavar="N",
        help="number of the audio track in each file, from 1, or all (default: the one that the file calls its default)",
    )
    parser.add_argument(
        "--partial", action="store_true", help="separate what is there of files that are damaged or cut off"
    )
    add_engine_options(parser)

    stems = parser.add_argument_group("stems")
    which = stems.add_mutually_exclusive_group()
    which.add_argument("--stems", type=names, metavar="A,B", help="only these of the model's stems")
    which.add_argument("--two-stems", metavar="STEM", help="STEM, and no_STEM: the sum of the others")
    stems.add_argument(
        "--mixture-consistency",
        action="store_true",
        help="distribute over the stems what their sum leaves of the recording",
    )

    files = parser.add_argument_group("files")
    files.add_argument("--format", default="wav", help="wav, flac, ogg or mp3 (default: wav)")
    depth = files.add_mutually_exclusive_group()
    depth.add_argument(
        "--depth",
        dest="subtype",
        choices=("int16", "int24", "int32", "float32", "same"),
        metavar="D",
        help="how samples are stored: int16, int24, int32, float32, or same as in the input (default: int16)",
    )
    depth.add_argument("--int24", dest="subtype", action="store_const", const="int24", help="the same as --depth int24")
    depth.add_argument(
        "--float32",
        dest="subtype",
        action="store_const",
        const="float32",
        help="the same as --depth float32: nothing is ever clipped",
    )
    files.add_argument(
        "--no-tags", action="store_true", help="leave title, artist, cover and other tags out of the stems"
    )
    files.add_argument(
        "--filename",
        default="{track}/{stem}.{ext}",
        metavar="NAME",
        help="of each stem, below OUT/<model> (default: {track}/{stem}.{ext})",
    )
    add_page_options(files, "TRACK.html beside the stems")
    parser.set_defaults(run=run)


def _track_number(text: str) -> int | str:
    if text == "all" or (text.isdecimal() and int(text) >= 1):
        return text if text == "all" else int(text)
    raise argparse.ArgumentTypeError(f"{text!r} is neither a number from 1 on nor all")


def run(args: argparse.Namespace) -> int:
    """Check the options and outputs before any work; then separate one file after the other, even if some fail."""
    if not args.output:
        raise ConfigError("--output is empty: name a folder for the stems, `.` for this one.")
    _check_format(args)
    template = Template.parse(args.filename, args.format)
    separator, name = make_separator(args, args.mixture_consistency)
    recipe = _recipe(args, separator.stems)
    folder = Path(args.output) / name
    with contextlib.ExitStack() as stack:
        tracks = find_tracks(args.inputs, [Path(args.output), folder], stack)
        if args.audio_track == "all":
            tracks = split_tracks(tracks)
        elif args.audio_track is not None:
            tracks = [replace(track, number=args.audio_track) for track in tracks]
        tracks, renamed = tell_apart(tracks)
        plan = plan_outputs(tracks, template, folder, list(recipe))
        check_writable(folder)

        report = Report(args.json)
        report.say(f"{name}: {separator.describe()}")
        if renamed:
            examples = ", ".join(track.name for track in renamed[:3])
            report.warn(f"{len(renamed)} tracks would have a name like others; they are called {examples} and so on.")
        job = _Job(args, separator, _identify(args.model or name, separator), folder, template, recipe)
        for track, files in plan:
            job.run(track, files, report)
        report.finish(separator.describe())
        return report.exit_code


@dataclass(frozen=True)
class _Job:
    """The settings that apply to every track."""

    args: argparse.Namespace
    separator: Separator
    model: Model
    folder: Path
    template: Template
    recipe: Recipe

    def run(self, track: Track, files: dict[str, Path], report: Report) -> None:
        """Separate a track and report the result; an error is reported, not raised."""
        if track.problem:
            report.failed(track, track.problem)
            return
        try:
            separation = self.separate(track, files)
        except Exception as error:
            report.failed(track, sentence_of(error).replace(str(track.path), track.input or str(track.path)))
            return
        if separation is None:
            report.skipped(track, files)
        else:
            report.done(track, separation, files)
        if self.args.page is not None:
            self.write_page(track, files, report)

    def write_page(self, track: Track, files: dict[str, Path], report: Report) -> None:
        """Write the page of a track, from its files. A failure is only a warning, since the stems are complete."""
        from ..page import listen_to

        try:
            page = listen_to(
                track.path,
                files,
                Path(track.name).name,
                {"Model": self.folder.name, "Engine": self.separator.describe()},
                in_files=self.args.page == "folder",
                track=track.number,
            )
        except Exception as error:
            report.warn(f"{track.label}: there is no page to listen to. {sentence_of(error)}")
        else:
            report.say(f"{track.label}: open {page} to listen")

    def separate(self, track: Track, files: dict[str, Path]) -> Separation | None:
        """Make the missing stems; return None if no stem is missing. With ``--overwrite``, make all stems.

        Raises:
            MetaTasNetError: if a stem cannot be made, or if existing stems come from another recording or model.
        """
        record = self.template.record(self.folder, track.name)
        there = [] if self.args.overwrite else [stem for stem, path in files.items() if os.path.exists(path)]
        check_origins(record, [files[stem] for stem in there], track.path, self.model)
        recipe = {stem: parts for stem, parts in self.recipe.items() if stem not in there}
        if not recipe:
            return None
        origin = Origin.of(track.path, self.model, track.input)
        with ProgressDisplay(track.input or track.path.name) as self.separator.progress:
            separation = self.separator.separate_file(
                track.path,
                self.folder,
                recipe,
                name=self.template.pattern(track.name),
                format=self.args.format,
                subtype=self.args.subtype,
                track=track.number,
                partial=self.args.partial,
                tags=not self.args.no_tags,
            )
        note_origins(record, separation.files.values(), origin)
        return separation


def _identify(model: str, separator: Separator) -> Model:
    from .._io import model_checksum
    from ..model.pretrained import means_bundled

    local = os.path.exists(model) and not means_bundled(model)
    checksum = model_checksum(separator.network.config, separator.network.state_dict())
    return Model(os.path.abspath(model) if local else model, checksum)


def _recipe(args: argparse.Namespace, instruments: Sequence[str]) -> Recipe:
    from ..separation.result import parse_stems, two_stems

    if args.two_stems is not None:
        return parse_stems(two_stems(args.two_stems), instruments)
    return parse_stems(args.stems, instruments)


def _check_format(args: argparse.Namespace) -> None:
    """Check that the format can hold the samples, and that its library is installed; no file is opened."""
    from ..audio import AudioWriter

    args.format = args.format.lower()
    AudioWriter("stem", 44100, 1, format=args.format, subtype=None if args.subtype == "same" else args.subtype)


DEMO = "assets/demo"
EXCERPT = f"{DEMO}/sodium-excerpt.ogg"
TITLE = "“sodium” in four stems"


def add_demo_arguments(parser: argparse.ArgumentParser) -> None:
    parser.description = "Separate 25 s of CC0 music into OUT/*.wav, and write OUT/index.html to listen to them."
    parser.add_argument(
        "-o", "--output", default="demo", metavar="OUT", help="folder for stems and page (default: demo)"
    )
    parser.add_argument(
        "--picture", metavar="PNG", help="write a picture of the spectrograms too (needs the extra plots)"
    )
    add_json_option(parser, "one JSON object (model, files, page, picture, speed)")
    add_engine_options(parser)
    parser.set_defaults(run=run_demo)


def run_demo(args: argparse.Namespace) -> int:
    from ..page import write_page, write_picture

    folder = Path(args.output)
    separator, model = make_separator(args)
    check_writable(folder)
    with (
        resources.as_file(resources.files("metatasnet_fast").joinpath(EXCERPT)) as excerpt,
        ProgressDisplay(excerpt.name) as separator.progress,
    ):
        separation = separator.separate_file(excerpt, folder, name="{stem}")
        listening = _listening(excerpt, separation, separator, model, bundled=args.model is None)
    page = folder / "index.html"
    write_page(listening, page)
    if args.picture:
        write_picture(listening, Path(args.picture))
    lines = [
        *map(str, separation.files.values()),
        f"{model}: {separation.duration:.1f} s of audio in {separation.seconds:.1f} s, "
        f"{separation.real_time_factor:.1f} x real time ({separator.describe()})",
        f"open {page} to listen",
        *([args.picture] if args.picture else []),
    ]
    places = {"page": str(page), "picture": args.picture}
    print_result(args, "\n".join(lines), **{**separation.report(), "model": model, **places})
    return 0


def _listening(excerpt: Path, separation: Separation, separator: Separator, model: str, bundled: bool) -> Listening:
    from ..audio import read_audio
    from ..page import Listening

    signals = {name: read_audio(path).samples for name, path in {"mixture": excerpt, **separation.files}.items()}
    facts = {
        "Music": "Software-Entwicklungskit, “Everything is Free”, CC0",
        "Model": model,
        "Speed": f"{separation.duration:.1f} s in {separation.seconds:.1f} s, {separation.real_time_factor:.1f} × real time",
        "Engine": separator.describe(),
    }
    note = f"The model works at {separator.output_rate / 1000:g} kHz, so its stems end at {separator.output_rate / 2000:g} kHz."
    if bundled:
        note = f"The bundled model is a small one, for trying the library. {note}"
    note = (
        f"Made by metatasnet-fast {__version__}. {note} The parts of the song are among those that the model does well."
    )
    with resources.as_file(resources.files("metatasnet_fast").joinpath(DEMO)) as folder:
        found = {name: folder / f"sodium-{name}.ogg" for name in separation.files}
        references = {name: read_audio(path).samples for name, path in found.items() if path.exists()}
    references = {name: x for name, x in references.items() if x.shape == signals[name].shape}
    return Listening(signals, separation.sample_rate, TITLE, facts, note, references)
