"""Checkpoints on the Hugging Face hub, with a model card. Needs the package huggingface_hub (the extra ``hub``)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from .._extras import require
from ..config import MetaTasNetConfig
from ..errors import CheckpointError
from .store import SETTINGS, WEIGHTS

__all__ = ["download", "model_card", "upload"]


def download(name: str, revision: str | None, offline: bool) -> Path:
    """Return the folder of the hub's local cache that holds a checkpoint, fetched if it is not there.

    Raises:
        CheckpointError: if there is none of this name, or it cannot be fetched.
        MissingDependencyError: without huggingface_hub.
    """
    snapshot_download = require("huggingface_hub", f"Loading {name} from the hub").snapshot_download
    try:
        return Path(
            snapshot_download(name, revision=revision, allow_patterns=[SETTINGS, WEIGHTS], local_files_only=offline)
        )
    except Exception as error:  # the hub client raises many types, from several libraries
        hub = "the hub's local cache does not hold it" if offline else "it cannot be fetched from the hub"
        raise CheckpointError(f"There is no file or folder {name}, and {hub} ({_first_line(error)}).") from error


def upload(folder: Path, name: str, *, private: bool, message: str) -> str:
    """Upload a checkpoint folder with its card, and return its address.

    Raises:
        CheckpointError: if the hub refuses, or cannot be reached.
        MissingDependencyError: without huggingface_hub.
    """
    api = require("huggingface_hub", f"Uploading {name} to the hub").HfApi()
    try:
        address = str(api.create_repo(name, private=private, exist_ok=True))
        api.upload_folder(repo_id=name, folder_path=folder, commit_message=message)
    except Exception as error:  # as above
        raise CheckpointError(
            f"{name} cannot be uploaded ({_first_line(error)}). Log in with `hf auth login`, and check the name."
        ) from error
    return address


def model_card(
    name: str,
    config: MetaTasNetConfig,
    *,
    licence: str,
    scores: Mapping[str, float],
    dataset: str,
    tags: Sequence[str] = (),
    text: str = "",
) -> str:
    """Return a card: front matter that the hub reads, how to use the model, and the scores.

    Args:
        name: ``owner/name``.
        licence: as the hub spells it, such as ``mit`` or ``cc0-1.0``.
        scores: by metric and stem, such as ``{"SDR vocals": 6.4}``, in dB.
        dataset: that the scores were measured on.
        text: of your own, in Markdown: data, training, weaknesses.

    Raises:
        CheckpointError: for scores without a data set.
    """
    if scores and not dataset:
        raise CheckpointError("The scores of a model card need the name of the data set: give dataset.")
    hub = require("huggingface_hub", "A model card")
    results = [
        hub.EvalResult(
            task_type="audio-to-audio",
            task_name="music source separation",
            dataset_type=dataset.lower().replace(" ", "-"),
            dataset_name=dataset,
            metric_type=metric,
            metric_value=round(value, 3),
        )
        for metric, value in scores.items()
    ]
    data = hub.ModelCardData(
        license=licence,
        library_name="metatasnet-fast",
        pipeline_tag="audio-to-audio",
        tags=["music-source-separation", "meta-tasnet", *tags],
        model_name=name.rpartition("/")[2] if results else None,
        eval_results=results or None,
    )
    rows = [f"| {metric} | {value:.2f} |" for metric, value in scores.items()]
    table = ["", f"| on {dataset} | dB |", "|---|---:|", *rows] if rows else []
    return "\n".join(
        [
            "---",
            data.to_yaml(),
            "---",
            f"# {name.rpartition('/')[2]}",
            "",
            f"A Meta-TasNet that separates music into {', '.join(config.instruments)}, at {config.output_rate} Hz.",
            "",
            f"    metatasnet-fast separate song.mp3 --model {name}",
            "",
            "```python",
            "from metatasnet_fast import Separator",
            "",
            f'separation = Separator("{name}").separate_file("song.mp3")',
            "```",
            *table,
            *(["", text.strip()] if text.strip() else []),
            "",
        ]
    )


def _first_line(error: Exception) -> str:
    return next(iter(str(error).strip().splitlines()), type(error).__name__)
