"""``metatasnet-fast demo``: the excerpt that comes with the package, separated, on a page to listen to."""

from __future__ import annotations

import argparse
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING

from .. import __version__
from .options import add_engine_options, add_json_option, make_separator
from .outputs import check_writable
from .report import ProgressDisplay, print_result

if TYPE_CHECKING:
    from ..page import Listening
    from ..separation import Separation, Separator

__all__ = ["add_arguments"]

FOLDER = "assets/demo"
EXCERPT = f"{FOLDER}/sodium-excerpt.ogg"
TITLE = "“sodium” in four stems"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.description = "Separate 25 s of CC0 music into OUT/*.wav, and write OUT/index.html to listen to them."
    parser.add_argument(
        "-o", "--output", default="demo", metavar="OUT", help="folder for stems and page (default: demo)"
    )
    parser.add_argument(
        "--picture", metavar="PNG", help="write a picture of the spectrograms too (needs the extra plots)"
    )
    add_json_option(parser, "one JSON object (model, files, page, picture, speed)")
    add_engine_options(parser)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
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
    with resources.as_file(resources.files("metatasnet_fast").joinpath(FOLDER)) as folder:
        found = {name: folder / f"sodium-{name}.ogg" for name in separation.files}
        references = {name: read_audio(path).samples for name, path in found.items() if path.exists()}
    references = {name: x for name, x in references.items() if x.shape == signals[name].shape}
    return Listening(signals, separation.sample_rate, TITLE, facts, note, references)
