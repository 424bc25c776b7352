"""No speed for a wrong result: liars are found out, whatever they lie about."""

from __future__ import annotations

import functools
import importlib.util
import json
import math
import time
from pathlib import Path

import pytest
import torch

from metatasnet_fast.backends import Backend, backend_names
from metatasnet_fast.benchmark import Effort, Participants, Peaks, Row, measure, read_rows, synthetic, text_table
from metatasnet_fast.benchmark.results import write_rows
from metatasnet_fast.benchmark.selftest import Result, selftest
from metatasnet_fast.benchmark.suite import TINY
from metatasnet_fast.benchmark.workloads import inference_case, preparation_case, training_case
from metatasnet_fast.model import MultiTasNet
from metatasnet_fast.precision import Precision
from tests.bench.dishonest import Breaking, Forgetful, Nothing, Remembering, SlightlyWrong

CPU = torch.device("cpu")
PEAKS = Peaks(1e10, {"float32": 1e11, "bfloat16": 1e11})
BRIEF = Effort(0, 3, 3)


@functools.cache
def network() -> MultiTasNet:
    return synthetic.network(TINY)


def participants(backend: Backend | None, *precisions: Precision) -> Participants:
    extra = {backend.name: backend} if backend else {}
    return Participants(CPU, precisions or (Precision.float32,), compiled=False, extra=extra)


def inference_row(backend: Backend, precision: Precision = Precision.float32) -> Row:
    case = inference_case(network(), participants(backend, precision), 2, 0.3)
    rows = {row.implementation: row for row in measure(case, PEAKS, BRIEF)}
    assert rows["reference"].samples, "eager PyTorch is measured whatever the others do"
    return rows[backend.name]


def assert_no_speed(row: Row) -> None:
    assert row.reason and row.seconds is None and row.real_time_factor is None
    assert not row.samples and not row.relative and not row.speedup
    assert row.of_compute is None and row.of_memory is None and row.first_call_seconds is None
    assert json.loads(row.to_json())["seconds"] is None
    line = next(line for line in text_table([row]).splitlines() if row.implementation in line)
    assert row.reason in line
    assert not any(unit in line.replace(row.reason, "") for unit in (" s ", " ms", " us"))


@pytest.mark.parametrize("precision", [Precision.float32, Precision.bfloat16])
def test_zeros_get_no_speed(precision: Precision) -> None:
    row = inference_row(Nothing(), precision)
    assert_no_speed(row)
    assert row.errors["estimate"] == 1.0


def test_slightly_wrong_results_get_no_speed() -> None:
    row = inference_row(SlightlyWrong())
    assert_no_speed(row)
    assert 0.9e-3 < row.errors["estimate"] < 1.1e-3


@pytest.mark.parametrize("honest", [1, 2, 3, 4])
def test_results_kept_from_an_earlier_call_get_no_speed(honest: int) -> None:
    """The check is passed with honest calls; then the timed ones are not."""
    row = inference_row(Remembering(honest))
    assert row.errors["estimate"] <= row.limits["estimate"]
    assert_no_speed(row)
    assert row.reason and "in a timed call" in row.reason


@pytest.mark.parametrize("precision", [Precision.float32, Precision.bfloat16])
def test_a_backward_that_computes_little_gets_no_speed(precision: Precision) -> None:
    case = training_case(network(), participants(Forgetful(), precision), 2, 0.3)
    forgetful = measure(case, PEAKS, BRIEF)[1]
    assert_no_speed(forgetful)
    assert forgetful.errors["loss and statistics"] <= forgetful.limits["loss and statistics"]


def test_weights_that_were_not_prepared_anew_get_no_speed() -> None:
    class Stale(Remembering):
        name = "stale"
        _first: object = None

        def prepare(self, *arguments: object) -> object:  # type: ignore[override]
            self._first = self._first or super().prepare(*arguments)  # type: ignore[arg-type]
            return self._first

    case = preparation_case(network(), participants(Stale(honest=1000)))
    rows = {row.implementation: row for row in measure(case, PEAKS, BRIEF)}
    assert_no_speed(rows["stale"])
    assert rows["reference"].samples


def test_what_does_not_run_says_why() -> None:
    row = inference_row(Breaking())
    assert_no_speed(row)
    assert row.reason == "does not run: RuntimeError: no kernel image is available"


@pytest.mark.parametrize("good", [2, 3, 4])
def test_what_breaks_in_a_timed_call_says_why_and_the_others_go_on(good: int) -> None:
    """As a job does that cannot be captured in a CUDA graph."""
    row = inference_row(Breaking(good))
    assert_no_speed(row)
    assert row.reason == "does not run when timed: RuntimeError: no kernel image is available"


def test_no_memory_for_the_network_in_float64_is_said_in_every_row() -> None:
    def expected(values: object) -> dict[str, list[torch.Tensor]]:
        raise torch.OutOfMemoryError("CUDA out of memory.")

    case = inference_case(network(), participants(None), 2, 0.3)
    case.expected = expected
    (row,) = measure(case, PEAKS, BRIEF)
    assert_no_speed(row)
    assert "CUDA out of memory" in str(row.reason)


def test_when_time_runs_out_what_was_measured_is_kept() -> None:
    def rows(until: float) -> list[Row]:
        case = inference_case(network(), participants(Remembering(honest=1000)), 2, 0.3)
        return measure(case, PEAKS, Effort(60, 1000, 1000, until))

    # On a busy machine a second may not suffice for the first round.
    for seconds in (1, 4, 16):
        counts = [len(row.samples) for row in rows(time.perf_counter() + seconds)]
        if all(counts):
            break
    assert all(0 < count < 1000 for count in counts)
    for row in rows(time.perf_counter()):
        assert_no_speed(row)
        assert "time" in str(row.reason)


def test_an_honest_backend_gets_its_speed() -> None:
    row = inference_row(Remembering(honest=1000))
    assert row.reason is None and len(row.samples) == 3
    assert row.speedup["reference float32"] > 0
    assert row.errors["estimate"] <= row.limits["estimate"]


@pytest.mark.slow
def test_other_runtimes_are_measured_beside_ours_or_say_what_is_missing() -> None:
    pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    taking_part = Participants(CPU, (Precision.float32,), ["cpu"], compiled=False, peers=True)
    rows = {row.implementation: row for row in measure(inference_case(network(), taking_part, 1, 0.4), PEAKS, BRIEF)}
    assert rows["ONNX Runtime"].samples and rows["ONNX Runtime"].speedup["reference float32"] > 0
    if importlib.util.find_spec("openvino") is None:
        assert_no_speed(rows["OpenVINO"])
        assert "pip install openvino" in str(rows["OpenVINO"].reason)
    else:
        assert rows["OpenVINO"].samples


@functools.cache
def selftest_of_liars() -> list[Result]:
    liars = (SlightlyWrong(), Nothing(), Remembering(honest=3), Breaking())
    return list(selftest([CPU], {liar.name: liar for liar in liars}, ["other sizes"]))


@pytest.mark.parametrize("name", ["slightly wrong", "nothing", "remembering"])
def test_the_selftest_finds_liars_out(name: str) -> None:
    honest = [result for result in selftest_of_liars() if result.backend in backend_names()]
    assert honest and all(result.passed for result in honest)
    found_out = [result for result in selftest_of_liars() if result.backend == name and result.precision == "float32"]
    assert found_out and not all(result.passed for result in found_out)


def test_a_backend_that_breaks_fails_the_selftest_with_its_reason() -> None:
    results = [result for result in selftest_of_liars() if result.backend == "breaking"]
    assert results and not any(result.passed for result in results)
    assert all("no kernel image is available" in result.output for result in results)


def test_an_infinite_error_is_null_in_a_record_and_infinite_again_when_it_is_read(tmp_path: Path) -> None:
    row = Row("case", "job", "ours", "float32", errors={"estimate": math.inf, "mask": 0.5})
    write_rows([row], tmp_path / "rows.jsonl")
    assert json.loads((tmp_path / "rows.jsonl").read_text("utf-8"))["errors"] == {"estimate": None, "mask": 0.5}
    assert read_rows(tmp_path / "rows.jsonl")[0].errors == row.errors
