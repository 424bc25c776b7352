"""Run the job of one step in a process of its own, and write each of the job's rows as soon as it is known.

    python -m bench.gpu.work inference --device cuda --seconds 90 --out FILE

Exit code 1 if one of our own backends has no times, or a result is not finite.
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
import multiprocessing
import os
import re
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, profile

from metatasnet_fast import use_backend
from metatasnet_fast.backends import Request, available_backends, get_backend
from metatasnet_fast.backends.graphs import GRAPHS
from metatasnet_fast.backends.triton import TritonBackend
from metatasnet_fast.benchmark import Effort, Participants, Row, synthetic
from metatasnet_fast.benchmark.cases import COMPILED, EAGER, Call, Case
from metatasnet_fast.benchmark.results import text_table
from metatasnet_fast.benchmark.suite import TINY, measure_all
from metatasnet_fast.benchmark.workloads import inference_case, training_case
from metatasnet_fast.config import MetaTasNetConfig
from metatasnet_fast.model import MultiTasNet
from metatasnet_fast.precision import Precision
from tests import support

from .steps import ROOT

WINDOW_SECONDS, SONG_WINDOWS = 24.0, 22
"""Length of a window in seconds, and number of windows into which the separator cuts a stereo song of four minutes."""
ITEM_SECONDS, ITEMS, ITEMS_BESIDE_EAGER = 8.0, 12, 4
"""Seconds of an item; items of the authors' training step; and fewer items, for runs beside eager PyTorch in float32,
which needs 8 GB per item."""
LOW, FULL = Precision.bfloat16, Precision.float32
PROFILED_ROUNDS = 3
SMALL = MetaTasNetConfig(N=48, B=16, H=48, layers=2, stack=2, num_mels=24, stages_num=2)
"""A network whose widths select the smallest tiles. With 24 mel bands and 149 frames, every tile is partly empty."""
SMALL_FRAMES = 149

TRAINED = ("train_generated", "train_independent", "train_residual_bias")
PRECISIONS = (Precision.bfloat16, Precision.float32, Precision.float64)
"""Recordings of training steps, and the precisions in which recordings are compared, in their order."""

Rows = Iterator[dict[str, Any]]

APART = ("cuda-wgmma",)
"""Backends that run only in a step of their own: a wait in a kernel that no GPU has run yet may never end."""


class WithoutGraphs(TritonBackend):
    """The backend ``triton`` without CUDA graphs: Python starts each kernel."""

    def prepare(self, *arguments: Any, **options: Any) -> Any:
        with mock.patch.dict(os.environ, {GRAPHS: "0"}):
            return super().prepare(*arguments, **options)


def together(device: torch.device, precisions: Sequence[Precision], compiled: bool = False) -> Participants:
    """Return all backends of this machine except those in APART."""
    found = Participants.of(device, compiled, precisions)
    return replace(found, backends=[name for name in found.backends if name not in APART])


def participants(device: torch.device, precisions: Sequence[Precision], compiled: bool = False) -> Participants:
    """Return all backends of this machine except those in APART, and on a GPU also ``triton`` without graphs."""
    found = together(device, precisions, compiled)
    if "triton" in found.backends and device.type == "cuda":
        found.extra["triton, no graphs"] = WithoutGraphs()
    return found


def cases(job: str, network: MultiTasNet, device: torch.device, tiny: bool) -> Iterator[Case]:
    """Yield the cases of a job, the most important first. Eager PyTorch runs in each case as the baseline."""
    if job == "inference":
        for windows, precisions in ((1, (LOW, FULL)), (SONG_WINDOWS, (LOW,)), (4, (LOW, FULL, Precision.tf32))):
            size = (1, 0.4) if tiny else (windows, WINDOW_SECONDS)
            served = [p for p in precisions if p is not Precision.tf32 or device.type == "cuda"]
            yield inference_case(network, participants(device, served), *size)
    elif job == "training":
        for items, precisions in ((ITEMS_BESIDE_EAGER, (LOW, FULL)), (ITEMS, (LOW,))):
            size = (2, 0.4) if tiny else (items, ITEM_SECONDS)
            yield training_case(network, Participants.of(device, False, precisions), *size)
    else:
        size = (1, 0.4) if tiny else (4, WINDOW_SECONDS)
        yield inference_case(network, participants(device, (LOW,), compiled=True), *size)


def timings(
    job: str, device: torch.device, tiny: bool, until: float, write: Callable[[Sequence[Row]], None]
) -> list[Row]:
    network = synthetic.network(TINY if tiny else MetaTasNetConfig())
    effort = Effort(0.1, 3, 3, until) if tiny else Effort(4, 3, 20, until)
    return measure_all(cases(job, network, device, tiny), device, (LOW, FULL), tiny, effort, write)


def ready_calls(
    kind: str, network: MultiTasNet, device: torch.device, size: tuple[int, float], taking_part: Participants
) -> Iterator[tuple[str, Call]]:
    """Yield a call for each of our backends that take part. If no backend can run here, yield one for eager PyTorch, so
    that this script is tested anyway."""
    case = (inference_case if kind == "inference" else training_case)(network, taking_part, *size)
    own = [implementation for implementation in case.implementations if implementation.name != EAGER]
    for implementation in own or case.implementations:
        yield implementation.name, implementation.make()


def warm_one(kind: str, device: str, precision: Precision, tiny: bool) -> str:
    """Compile every kernel by running it once, on the shortest possible items; other lengths need no new compilation.

    Return the names of the backends, or of the launches.
    """
    if kind == "launches":
        return ", ".join(row["text"] for row in launches(torch.device(device), False))
    network = synthetic.network(TINY if tiny else MetaTasNetConfig())
    names = []
    on = torch.device(device)
    for name, call in ready_calls(kind, network, on, (2, 0.0), together(on, [precision])):
        call()
        names.append(name)
    return ", ".join(names)


def warm(device: torch.device, tiny: bool) -> Rows:
    """Fill Triton's cache from several processes; yield a row for each of their jobs that is done."""
    jobs = [("inference", LOW), ("training", LOW), ("inference", FULL), ("training", FULL), ("launches", LOW)]
    workers = min(len(jobs), os.cpu_count() or 1)
    with ProcessPoolExecutor(workers, multiprocessing.get_context("spawn")) as pool:
        due = {
            pool.submit(warm_one, kind, str(device), precision, tiny): f"{kind} {precision.value}"
            for kind, precision in jobs
        }
        for done in as_completed(due):
            yield {"text": f"{due[done]}: {done.result()}"}


def predictions(gpu: str) -> dict[tuple[str, str, str], dict[str, Any]]:
    """Return the lines of each backend's newest recorded ledger for a GPU, by backend, kind and kernel.

    ``gpu`` is the GPU's full name, which contains the ledger's short name.
    """
    found: dict[tuple[str, str, str], dict[str, Any]] = {}
    for path in sorted((ROOT / "bench" / "results" / "ledger").glob("*.json")):
        lines = [line for line in json.loads(path.read_text(encoding="utf-8")) if line["gpu"] in gpu]
        recorded = {line["backend"] for line in lines}
        found = {key: line for key, line in found.items() if key[0] not in recorded}
        found.update({(line["backend"], line["kind"], line["kernel"]): line for line in lines})
    return found


def kernel_name(name: str) -> str:
    """Return the name that the ledger gives to a profiled kernel: for example ``Depthwise Bfloat16`` (CUDA) or
    ``depthwise_fwd`` (Triton); ``memset`` for a clearing of memory, ``torch`` for all other kernels."""
    if found := re.search(r"cuda::kernel<(.*)>\s*\(", name):
        return " ".join(re.findall(r"\w+", re.sub(r"\w+::|\(int\)", "", found[1])))
    if found := re.fullmatch(r"(\w+)_kernel", name):
        return found[1]
    return "memset" if name.startswith("Memset") else "torch"


def kernels(device: torch.device, tiny: bool) -> Rows:
    """Yield the milliseconds of each kernel in one call, with the ledger's prediction."""
    yield from _kernels(device, tiny, together(device, [LOW]), ("inference", "training"))


def wgmma(device: torch.device, tiny: bool) -> Rows:
    """Yield the rows of :func:`kernels` for the backend ``cuda-wgmma`` alone, or the reason why it cannot run here."""
    if reason := available_backends()["cuda-wgmma"].reason:
        yield {"text": f"left out: {reason}"}
        return
    yield from _kernels(device, tiny, Participants(device, [LOW], ["cuda-wgmma"], compiled=False), ("inference",))


def _kernels(device: torch.device, tiny: bool, taking_part: Participants, kinds: Sequence[str]) -> Rows:
    network = synthetic.network(TINY if tiny else MetaTasNetConfig())
    known = predictions(torch.cuda.get_device_name(device) if device.type == "cuda" else "")
    sizes = {"inference": (SONG_WINDOWS, WINDOW_SECONDS), "training": (ITEMS, ITEM_SECONDS)}
    for kind in kinds:
        size = (1, 0.4) if tiny else sizes[kind]
        for backend, call in ready_calls(kind, network, device, size, taking_part):
            call()
            activities = [ProfilerActivity.CUDA if device.type == "cuda" else ProfilerActivity.CPU]
            with profile(activities=activities) as profiled:
                for _ in range(PROFILED_ROUNDS):
                    call()
                if device.type == "cuda":
                    torch.cuda.synchronize(device)
            found: dict[str, tuple[float, float]] = {}
            for event in profiled.key_averages():
                on_device = event.device_type is DeviceType.CUDA
                if on_device != (device.type == "cuda"):
                    continue
                name = kernel_name(event.key) if on_device else event.key
                time_of = event.self_device_time_total if on_device else event.self_cpu_time_total
                launched, spent = found.get(name, (0.0, 0.0))
                found[name] = launched + event.count / PROFILED_ROUNDS, spent + time_of / 1e3 / PROFILED_ROUNDS
            longest = sorted(found.items(), key=lambda item: -item[1][1])
            for name, (launched, spent) in longest if device.type == "cuda" else longest[:5]:
                yield kernel_row(backend, kind, name, launched, spent, known.get((backend, kind, name)))


def kernel_row(
    backend: str, kind: str, name: str, launched: float, spent: float, line: dict[str, Any] | None
) -> dict[str, Any]:
    row: dict[str, Any] = {
        "backend": backend,
        "kind": kind,
        "kernel": name,
        "launches": launched,
        "milliseconds": round(spent, 4),
    }
    if line and spent:
        row["predicted_ms"] = round(line["seconds"] * 1e3, 4)
        row["over_predicted"] = round(spent / (line["seconds"] * 1e3), 3)
        row["gb_per_s"], row["tflop_per_s"] = round(line["hbm"] / spent / 1e6, 1), round(line["flops"] / spent / 1e9, 1)
    times = f"{row['over_predicted']:6.2f} x predicted" if "over_predicted" in row else ""
    row["text"] = f"{backend:<10}{kind:<10}{name:<40}{launched:7.0f}{spent:10.3f} ms {times}".rstrip()
    return row


def launches(device: torch.device, tiny: bool) -> Rows:
    """Run each of our backends once on a small network in every precision, in inference and training, for tools that
    find errors in kernels. Yield a row for each run; it is wrong if a result is not finite."""
    torch.manual_seed(0)
    network = synthetic.network(SMALL).to(device)
    sources = [torch.randn(2, 4, 1, SMALL_FRAMES * stage.W, device=device) for stage in SMALL.stages]
    mixes = [source.sum(1) for source in sources]
    masks = [torch.ones(2, 4, 1, device=device) for _ in sources]
    for name, there in available_backends().items():
        for precision in (FULL, Precision.tf32, LOW):
            for training in (False, True):
                request = Request(device, precision, training, SMALL)
                if name in (EAGER, *APART) or not there.available or get_backend(name).supports(request) is not None:
                    continue
                network.zero_grad(set_to_none=True)
                with use_backend(name, precision.value), torch.set_grad_enabled(training):
                    if training:
                        loss, _ = network.train()(mixes, sources, masks)
                        loss.sum().backward()
                        values = [loss, *(p.grad for p in network.parameters() if p.grad is not None)]
                    else:
                        values = network.eval().inference(mixes, n_chunks=1)
                finite = all(bool(value.isfinite().all()) for value in values)
                yield {"text": f"{name} {request}: {'finite' if finite else 'NOT FINITE'}", "wrong": not finite}


def window(device: torch.device, tiny: bool) -> Rows:
    """Separate one window in bfloat16 with each of our backends, for a profiler of single kernels."""
    network = synthetic.network(TINY if tiny else MetaTasNetConfig())
    size = (1, 0.4 if tiny else WINDOW_SECONDS)
    for name, call in ready_calls("inference", network, device, size, together(device, [LOW])):
        call()
        yield {"text": name}


def inference_errors(case: str, backend: str, precision: Precision, device: torch.device) -> list[dict[str, Any]]:
    """Separate the mixtures of a recording; return a row for every stage, with its error and the allowed error."""
    recording = support.golden(case)
    dtype = torch.float64 if precision is Precision.float64 else torch.float32
    network = recording.network(dtype).to(device)
    mixes = [mix[:1].to(device) for mix in recording.mixes(dtype)]
    with torch.no_grad(), use_backend(backend, precision.value):
        outputs = network.inference(mixes, n_chunks=1)
    stride = recording.meta["stride"]
    return [
        {
            "output": f"separation, stage {s}",
            "error": support.relative_error(output[..., ::stride].cpu(), recording[f"infer/stage{s}"]),
            "allowed": support.allowed(case, precision.value, "infer", s),
        }
        for s, output in enumerate(outputs)
    ]


def training_errors(case: str, backend: str, precision: Precision, device: torch.device) -> list[dict[str, Any]]:
    """Do the training step of a recording; return rows for its loss, statistics and gradients, each with its error and
    the allowed error.

    In bfloat16, loss and statistics share one row, and there is no row for the gradients, which are mostly noise.
    """
    recording = support.golden(case)
    dtype = torch.float64 if precision is Precision.float64 else torch.float32
    network = recording.network(dtype).to(device).train()
    stems = [stem.to(device) for stem in recording.sources(dtype)]
    sounds = [(stem.abs().amax(-1) > 0).to(dtype) for stem in stems]
    with use_backend(backend, precision.value):
        loss, stats = network([mix.to(device) for mix in recording.mixes(dtype)], stems, sounds)
        loss.sum().backward()
    own = {"loss": loss.detach().cpu(), "stats": stats.detach().cpu()}
    wanted = {name: recording[name] for name in own}
    times = 10.0 if precision is Precision.float32 else None
    limits = {name: support.allowed(case, precision.value, name, times=times) for name in own}
    rows = [
        {"output": name, "error": support.relative_error(own[name], wanted[name]), "allowed": limits[name]}
        for name in own
    ]
    if precision is Precision.bfloat16:
        # A single number can be right by luck: in train_generated the authors' loss agrees a hundred times better than
        # its summands do. So loss and summands are checked together, against the authors' error in all these numbers.
        both = math.hypot(*(limits[name] * wanted[name].norm().item() for name in own))
        size = math.hypot(*(wanted[name].norm().item() for name in own))
        error = support.relative_error(list(own.values()), list(wanted.values()))
        rows = [{"output": "loss and stats", "error": error, "allowed": both / size}]
    if precision is not Precision.bfloat16:
        recorded = recording.under("grad/")
        ours = {name: p.grad.cpu() for name, p in network.named_parameters() if p.grad is not None}
        error = support.relative_error([ours[name] for name in recorded], list(recorded.values()))
        limit = support.allowed(case, precision.value, "grad_all", times=times)
        rows.append({"output": "gradients", "error": error, "allowed": limit})
    return rows


def golden(device: torch.device, tiny: bool) -> Rows:
    """Yield the errors of each backend on the recordings of the authors' program: inference before training, the slow
    float64 last.

    ``wrong`` says whether the error is larger than the parity rule allows. If ``tiny``, only one recording is used.
    """
    for precision, training in itertools.product(PRECISIONS, (False, True)):
        measured = training_errors if training else inference_errors
        for name, entry in available_backends().items():
            if not entry.available or get_backend(name).supports(Request(device, precision, training)):
                continue
            for case in TRAINED[:1] if tiny else TRAINED if training else (*TRAINED, "full_size"):
                for row in measured(case, name, precision, device):
                    wrong = not row["error"] <= row["allowed"]
                    title = f"{name} {precision.value}, {case}, {row['output']}"
                    figures = f"{row['error']:.1e}  allowed {row['allowed']:.1e}  {'FAILED' if wrong else 'passed'}"
                    found = {"backend": name, "precision": precision.value, "recording": case, **row, "wrong": wrong}
                    yield {**found, "text": f"{title:<70} {figures}"}


JOBS: dict[str, Callable[[torch.device, bool], Rows]] = {
    "golden": golden,
    "warm": warm,
    "kernels": kernels,
    "launches": launches,
    "window": window,
    "wgmma": wgmma,
}
TIMINGS = ("inference", "training", "compiled")


def write_lines(rows: Iterable[dict[str, Any]], out: Path | None) -> int:
    """Print each row and append it to the file; return 1 if a row is wrong or there is none, else 0."""
    wrong, count = False, 0
    for count, row in enumerate(rows, 1):  # noqa: B007
        print(row["text"], flush=True)
        wrong |= row.get("wrong", False)
        if out:
            with open(out, "a", encoding="utf-8") as file:
                file.write(json.dumps(row) + "\n")
    return 1 if wrong or not count else 0


def write_timings(rows: Sequence[Row], out: Path | None) -> None:
    """Replace the file by these rows, each with its line of the printed table."""
    texts = text_table(rows).splitlines()
    lines = [json.dumps({"text": texts[0]})] if rows else []
    lines += [
        json.dumps({**json.loads(row.to_json()), "text": text}) for row, text in zip(rows, texts[1:], strict=True)
    ]
    if out:
        unfinished = out.with_suffix(".part")
        unfinished.write_text("".join(line + "\n" for line in lines), encoding="utf-8")
        unfinished.replace(out)


def main(arguments: Sequence[str] | None = None) -> int:
    began = time.perf_counter()
    parser = argparse.ArgumentParser(prog="python -m bench.gpu.work", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("job", choices=(*JOBS, *TIMINGS))
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--tiny", action="store_true", help="a few channels and samples: tries the program only")
    parser.add_argument("--seconds", type=float, default=math.inf, help="end after so long with what there is")
    parser.add_argument("--out", type=Path, metavar="FILE", help="JSON lines are written there")
    args = parser.parse_args(arguments)
    device = torch.device(args.device)
    if args.out:
        args.out.unlink(missing_ok=True)
    if args.job in JOBS:
        return write_lines(JOBS[args.job](device, args.tiny), args.out)
    rows = timings(args.job, device, args.tiny, began + args.seconds, lambda rows: write_timings(rows, args.out))
    print(text_table(rows))
    return 1 if any(row.seconds is None and not row.implementation.startswith((EAGER, COMPILED)) for row in rows) else 0


if __name__ == "__main__":
    sys.exit(main())
