"""Checkpoints of both formats load, convert and round-trip; what is wrong with one is said in a sentence."""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import pickle
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from metatasnet_fast import MultiTasNet, convert, load_checkpoint
from metatasnet_fast.errors import CheckpointError
from metatasnet_fast.model.checkpoints import read_original
from tests.support import GOLDEN, TINY

ORIGINAL = GOLDEN / "original_checkpoint.pt"


def same(a: Any, b: Any) -> bool:
    """Equal in structure, types and bits."""
    if isinstance(a, torch.Tensor):
        return isinstance(b, torch.Tensor) and a.dtype == b.dtype and torch.equal(a, b)
    if isinstance(a, dict):
        return isinstance(b, dict) and list(a) == list(b) and all(same(a[k], b[k]) for k in a)
    if isinstance(a, (list, tuple)):
        return type(a) is type(b) and len(a) == len(b) and all(map(same, a, b))
    if isinstance(a, argparse.Namespace):
        return isinstance(b, argparse.Namespace) and same(dict(sorted(vars(a).items())), dict(sorted(vars(b).items())))
    return type(a) is type(b) and bool(a == b)


def test_names_and_order_are_the_originals() -> None:
    checkpoint = read_original(ORIGINAL)
    network = MultiTasNet(checkpoint.args)
    assert list(network.state_dict()) == list(checkpoint.state_dict)
    # The optimiser's state goes by position among the trainable parameters.
    assert checkpoint.optimizer is not None
    trainable = [p for p in network.parameters() if p.requires_grad]
    for index, state in checkpoint.optimizer["state"].items():
        assert state["exp_avg"].shape == trainable[index].shape


def test_both_containers_hold_the_same() -> None:
    modern, legacy = read_original(ORIGINAL), read_original(GOLDEN / "original_checkpoint_legacy.pt")
    assert same(modern.state_dict, legacy.state_dict)


def test_converting_there_and_back_is_exact(tmp_path: Path) -> None:
    convert(ORIGINAL, tmp_path / "folder")
    convert(tmp_path / "folder", tmp_path / "back.pt")
    before, after = read_original(ORIGINAL), read_original(tmp_path / "back.pt")
    for part in ("state_dict", "args", "optimizer", "epoch", "steps", "extra"):
        left, right = getattr(before, part), getattr(after, part)
        if part == "optimizer":
            assert left.keys() == right.keys()
            assert same(left["param_groups"], right["param_groups"])
            assert all(
                same(dict(sorted(v.items())), dict(sorted(right["state"][k].items()))) for k, v in left["state"].items()
            )
        elif part == "state_dict":
            assert left.keys() == right.keys() and all(same(left[k], right[k]) for k in left)
        else:
            assert same(left, right), part


def test_what_is_saved_loads_again_bit_for_bit(tmp_path: Path) -> None:
    network = MultiTasNet(TINY)
    network.save_pretrained(tmp_path / "tiny")
    again = MultiTasNet.from_pretrained(tmp_path / "tiny")
    assert not again.training
    assert again.config == TINY
    assert all(torch.equal(value, again.state_dict()[name]) for name, value in network.state_dict().items())


def test_what_is_saved_can_be_read_by_others(tmp_path: Path) -> None:
    before = os.umask(0o022)
    try:
        MultiTasNet(TINY).save_pretrained(tmp_path / "tiny")
    finally:
        os.umask(before)
    assert {oct(file.stat().st_mode & 0o777) for file in (tmp_path / "tiny").iterdir()} == {"0o644"}


def test_a_folder_in_half_precision_has_no_optimiser(tmp_path: Path) -> None:
    convert(ORIGINAL, tmp_path / "folder", half=True)
    assert sorted(file.name for file in (tmp_path / "folder").iterdir()) == ["config.json", "model.safetensors"]
    assert MultiTasNet.from_pretrained(tmp_path / "folder").config == MultiTasNet(read_original(ORIGINAL).args).config


def test_half_precision_is_rounded_once_and_spares_the_statistics(tmp_path: Path) -> None:
    network = MultiTasNet(TINY)
    network.save_pretrained(tmp_path / "tiny", half=True)
    for name, value in MultiTasNet.from_pretrained(tmp_path / "tiny").state_dict().items():
        stored = network.state_dict()[name]
        fixed = name.endswith((".window", ".mean", ".std"))
        assert value.dtype == torch.float32
        assert torch.equal(value, stored if fixed else stored.half().float())


def test_half_precision_that_overflows_is_refused_and_spares_what_was_there(tmp_path: Path) -> None:
    network = MultiTasNet(TINY)
    network.save_pretrained(tmp_path / "tiny")
    network.get_parameter("stages.0.decoder.filters.0.weight").data[0] = 1e5
    with pytest.raises(CheckpointError, match="stages.0.decoder.filters.0.weight"):
        network.save_pretrained(tmp_path / "tiny", half=True)
    assert load_checkpoint(tmp_path / "tiny")


def test_the_original_reads_what_is_written_here(tmp_path: Path) -> None:
    MultiTasNet(TINY).save_pretrained(tmp_path / "tiny")
    convert(tmp_path / "tiny", tmp_path / "tiny.pt")
    content = torch.load(tmp_path / "tiny.pt", weights_only=False)
    assert isinstance(content["args"], argparse.Namespace)
    assert content["args"].N == TINY.N
    assert content["state_dict"].keys() == MultiTasNet(TINY).state_dict().keys()


class Malice:
    def __reduce__(self) -> Any:
        return os.system, ("exit 0",)


def damaged(kind: str, folder: Path) -> Path:
    """A file or folder with one thing wrong."""
    path = folder / f"{kind}.pt"
    content = torch.load(ORIGINAL, weights_only=False)
    state = content["state_dict"]
    name = "stages.1.decoder.filters.0.weight"
    if kind == "absent":
        return path
    if kind == "text":
        path.write_text("no checkpoint")
        return path
    if kind == "truncated":
        path.write_bytes(ORIGINAL.read_bytes()[:100_000])
        return path
    if kind == "code":
        path.write_bytes(pickle.dumps({"state_dict": Malice(), "args": Malice()}, protocol=2))
        return path
    if kind == "another":
        content = {"model": state}
    elif kind == "missing":
        del state[name]
    elif kind == "unknown":
        state["stages.9.bias"] = torch.zeros(1)
    elif kind == "misshapen":
        state[name] = state[name][:-1]
    elif kind == "nan":
        state[name] = state[name] * float("nan")
    elif kind == "integers":
        state[name] = state[name].long()
    elif kind == "complex":
        state[name] = state[name].to(torch.complex64)
    elif kind == "sparse":
        state[name] = state[name].to_sparse()
    elif kind == "without contents":
        state[name] = state[name].to("meta")
    elif kind == "numbered weights":
        content["state_dict"] = dict(enumerate(state.values()))
    elif kind == "numbered args":
        content["args"] = {1: 2}
    elif kind == "incomplete":
        del content["args"].num_mels
    torch.save(content, path)
    return path


@pytest.mark.parametrize(
    ("kind", "said"),
    [
        ("absent", "no checkpoint"),
        ("text", r"no checkpoint that can be loaded safely \(\w+Error: "),
        ("truncated", "no checkpoint"),
        ("code", "safely"),
        ("another", "state_dict and args"),
        ("missing", "1 weights are missing .*stages.1.decoder.filters.0.weight"),
        ("unknown", "1 are unknown .*stages.9.bias"),
        ("misshapen", "stages.1.decoder.filters.0.weight is"),
        ("nan", "not finite"),
        ("integers", "no plain floating-point numbers: stages.1.decoder.filters.0.weight is torch.int64"),
        ("complex", "no plain floating-point numbers: stages.1.decoder.filters.0.weight is torch.complex64"),
        ("sparse", "no plain floating-point numbers: stages.1.decoder.filters.0.weight .* torch.sparse_coo"),
        ("without contents", "no plain floating-point numbers: stages.1.decoder.filters.0.weight .* on meta"),
        ("numbered weights", "state_dict does not map names"),
        ("numbered args", "args do not map names"),
        ("incomplete", "num_mels"),
    ],
)
def test_what_is_wrong_with_a_file_is_said(kind: str, said: str, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=said) as caught:
        load_checkpoint(damaged(kind, tmp_path))
    assert "\n" not in str(caught.value)


def test_a_folder_is_checked_against_its_checksum(tmp_path: Path) -> None:
    MultiTasNet(TINY).save_pretrained(tmp_path)
    weights = tmp_path / "model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    with pytest.raises(CheckpointError, match="SHA-256"):
        load_checkpoint(tmp_path)


def test_a_pinned_checksum_is_verified(tmp_path: Path) -> None:
    MultiTasNet(TINY).save_pretrained(tmp_path)
    with pytest.raises(CheckpointError, match="expected 00"):
        MultiTasNet.from_pretrained(tmp_path, sha256="00")


def test_a_pinned_checksum_of_an_original_file_is_verified() -> None:
    load_checkpoint(ORIGINAL, sha256=hashlib.sha256(ORIGINAL.read_bytes()).hexdigest())
    with pytest.raises(CheckpointError, match="expected 00"):
        load_checkpoint(ORIGINAL, sha256="00")


def test_a_newer_format_asks_for_an_upgrade(tmp_path: Path) -> None:
    MultiTasNet(TINY).save_pretrained(tmp_path)
    settings = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**settings, "format_version": 99}))
    with pytest.raises(CheckpointError, match="upgrade"):
        load_checkpoint(tmp_path)


def test_a_newer_format_may_have_settings_that_are_unknown_here(tmp_path: Path) -> None:
    MultiTasNet(TINY).save_pretrained(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps({"format_version": 99, "config": {"new": 1}}))
    with pytest.raises(CheckpointError, match="upgrade"):
        load_checkpoint(tmp_path)


@pytest.mark.parametrize(
    "wrong",
    [
        {"format_version": "1"},
        {"format_version": None},
        {"training": None},
        {"training": []},
        {"training": {"args": None}},
        {"training": {"args": [1]}},
        {"config": None},
    ],
    ids=str,
)
def test_settings_of_wrong_types_are_one_sentence(tmp_path: Path, wrong: dict[str, Any]) -> None:
    MultiTasNet(TINY).save_pretrained(tmp_path)
    settings = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**settings, **wrong}))
    with pytest.raises(CheckpointError, match="config.json does not describe"):
        load_checkpoint(tmp_path)


def test_settings_that_are_nested_without_end_are_one_sentence(tmp_path: Path) -> None:
    MultiTasNet(TINY).save_pretrained(tmp_path)
    (tmp_path / "config.json").write_text("[" * 100_000)
    with pytest.raises(CheckpointError, match="config.json does not describe"):
        load_checkpoint(tmp_path)


@pytest.mark.parametrize(
    "wrong", [None, 3, {}, {"scalars": {"x": 1}, "param_groups": []}, {"scalars": {}, "param_groups": [3]}], ids=str
)
def test_an_optimiser_that_does_not_fit_its_settings_is_one_sentence(tmp_path: Path, wrong: Any) -> None:
    convert(ORIGINAL, tmp_path / "folder")
    path = tmp_path / "folder/config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "optimizer": wrong}))
    with pytest.raises(CheckpointError, match=r"does not fit optimizer\.safetensors"):
        load_checkpoint(tmp_path / "folder")


def test_unknown_names_list_what_there_is() -> None:
    with pytest.raises(CheckpointError, match="no-such-model"):
        load_checkpoint("no-such-model")


def test_a_hub_model_that_is_not_cached_is_not_found_offline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(CheckpointError, match="somebody/something"):
        MultiTasNet.from_pretrained("somebody/something", offline=True)


def test_a_hub_model_is_taken_from_the_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    network = MultiTasNet(TINY)
    asked: dict[str, Any] = {}

    def snapshot_download(name: str, **options: Any) -> str:
        asked.update(options, name=name)
        network.save_pretrained(tmp_path / "snapshot")
        return str(tmp_path / "snapshot")

    hub = pytest.importorskip("huggingface_hub")
    monkeypatch.setattr(hub, "snapshot_download", snapshot_download)
    again = MultiTasNet.from_pretrained("somebody/something", revision="v2", offline=True)
    assert asked["name"] == "somebody/something"
    assert asked["revision"] == "v2"
    assert asked["local_files_only"] is True
    assert torch.equal(*(n.state_dict()["stages.0.instrument_embedding.weight"] for n in (network, again)))


class FakeHub:
    """Keeps what is uploaded in a folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def create_repo(self, name: str, private: bool, exist_ok: bool) -> str:
        return f"https://hub/{name}"

    def upload_folder(self, repo_id: str, folder_path: Path, commit_message: str) -> None:
        shutil.copytree(folder_path, self.folder / repo_id)


def test_a_network_goes_to_the_hub_with_a_card_and_comes_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hub = pytest.importorskip("huggingface_hub")
    monkeypatch.setattr(hub, "HfApi", lambda: FakeHub(tmp_path))
    network = MultiTasNet(TINY)
    address = network.push_to_hub(
        "somebody/tiny", licence="cc0-1.0", scores={"SDR vocals": 1.2345}, dataset="MUSDB18", text="Not trained."
    )
    assert address == "https://hub/somebody/tiny"
    again = MultiTasNet.from_pretrained(tmp_path / "somebody/tiny")
    assert all(map(torch.equal, network.state_dict().values(), again.state_dict().values()))
    card = hub.ModelCard.load(tmp_path / "somebody/tiny/README.md")
    assert (card.data.license, card.data.library_name) == ("cc0-1.0", "metatasnet-fast")
    assert card.data.pipeline_tag == "audio-to-audio"
    (score,) = card.data.eval_results
    assert (score.metric_type, score.metric_value, score.dataset_name) == ("SDR vocals", 1.234, "MUSDB18")
    assert "metatasnet-fast separate song.mp3 --model somebody/tiny" in card.text and "Not trained." in card.text


def test_scores_of_a_card_need_the_data_set_and_a_refusal_of_the_hub_is_one_sentence(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    hub = pytest.importorskip("huggingface_hub")
    network = MultiTasNet(TINY)
    with pytest.raises(CheckpointError, match="data set"):
        network.push_to_hub("somebody/tiny", licence="mit", scores={"SDR": 1.0})

    def refuse() -> Any:
        raise OSError("401 Client Error\nmore")

    monkeypatch.setattr(FakeHub, "create_repo", lambda *_, **__: refuse())
    monkeypatch.setattr(hub, "HfApi", lambda: FakeHub(Path()))
    with pytest.raises(CheckpointError, match=r"somebody/tiny cannot be uploaded \(401 Client Error\)\. Log in"):
        network.push_to_hub("somebody/tiny", licence="mit")


def test_a_network_loaded_in_inference_mode_can_be_trained_outside_it(tmp_path: Path) -> None:
    MultiTasNet(TINY).save_pretrained(tmp_path / "folder")
    with torch.inference_mode():
        networks = [load_checkpoint(tmp_path / "folder"), load_checkpoint(ORIGINAL)]
    for network in networks:
        assert not any(tensor.is_inference() for tensor in network.state_dict().values())


@pytest.mark.parametrize("name", [None, 3])
def test_what_names_no_checkpoint_is_one_sentence(name: Any) -> None:
    for load in (load_checkpoint, MultiTasNet.from_pretrained):
        with pytest.raises(CheckpointError, match="a file, a folder or a name"):
            load(name)


def test_what_the_system_refuses_is_one_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(CheckpointError, match=r"cannot be read \(File name too long\)"):
        load_checkpoint(tmp_path / ("x" * 300))
    MultiTasNet(TINY).save_pretrained(tmp_path)
    read = Path.open

    def refusing(path: Path, *args: Any, **options: Any) -> Any:
        if path.name == "model.safetensors":
            raise PermissionError(13, "Permission denied", str(path))
        return read(path, *args, **options)

    monkeypatch.setattr(Path, "open", refusing)
    for load in (load_checkpoint, MultiTasNet.from_pretrained):
        with pytest.raises(CheckpointError, match=r"cannot be read \(Permission denied\)"):
            load(tmp_path)


def test_an_unwritable_target_is_one_error_and_leaves_nothing(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(CheckpointError):
        MultiTasNet(TINY).save_pretrained(tmp_path / "file" / "model")
    with pytest.raises(CheckpointError):
        convert(ORIGINAL, tmp_path / "absent" / "x.pt")
    assert [p.name for p in tmp_path.iterdir()] == ["file"]
