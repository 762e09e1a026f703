"""The caller's process is the caller's: it is not changed, and it does not change runs."""

from __future__ import annotations

import contextlib
import locale
import multiprocessing
import os
import random
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
import pytest
import torch
import torch._inductor.codecache
import torch._inductor.config
from safetensors.torch import load_file

import undiffuse
from undiffuse.base.compiler import compiler, torchs_own_cache
from undiffuse.base.process import undisturbed
from undiffuse.report import write_report
from undiffuse.runs import figures
from undiffuse.runs.evaluation import Parts, evaluate_run
from undiffuse.runs.folder import Run
from undiffuse.training.records import CompileFallback, PictureFailed

TORCHS = ("TORCHINDUCTOR_CACHE_DIR", torchs_own_cache())
"""Torch sets this itself, when it is asked for its compiler."""


def state() -> dict[str, Any]:
    """What of a process a library could change."""
    return {
        "torch's random state": torch.get_rng_state().tolist(),
        "NumPy's random state": np.random.get_state()[1].tolist(),
        "Python's random state": random.getstate(),
        "default dtype": torch.get_default_dtype(),
        "grad mode": (torch.is_grad_enabled(), torch.is_inference_mode_enabled()),
        "deterministic": torch.are_deterministic_algorithms_enabled(),
        "arithmetic": (
            torch.get_float32_matmul_precision(),
            torch.backends.mkldnn.is_available() and torch._C._get_mkldnn_enabled(),
        ),
        "environment": {
            k: v for k, v in os.environ.items() if (k, v) != TORCHS and not k.startswith("_TORCH")
        },
        "threads": (torch.get_num_threads(), torch.get_num_interop_threads()),
        "rcParams": dict(mpl.rcParams),
        "signal handlers": [signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM)],
        "locale": locale.setlocale(locale.LC_ALL),
        "folder": Path.cwd(),
    }


def test_nothing_of_the_caller_is_changed(tmp_path: Path, tiny: dict[str, Any]) -> None:
    before = state()
    run = undiffuse.train(tmp_path / "run", **tiny)
    seen: list[dict[str, Any]] = []
    undiffuse.train(tmp_path / "watched", **tiny, watch=lambda _: seen.append(state()))
    model = undiffuse.load(run)
    model.sample(4)
    model(torch.zeros(2, *model.description.shape), 0.5)
    Run(run).model()
    write_report(run)
    after = state()
    assert [name for name in before if before[name] != after[name]] == []
    for inside in seen:  # between the steps too, but for the handlers that save the run
        own = {"signal handlers", "rcParams", "arithmetic"}
        assert [n for n in before if n not in own and before[n] != inside[n]] == []


@contextlib.contextmanager
def default_dtype() -> Any:
    torch.set_default_dtype(torch.float64)
    try:
        yield
    finally:
        torch.set_default_dtype(torch.float32)


@contextlib.contextmanager
def default_device() -> Any:
    torch.set_default_device("meta")
    try:
        yield
    finally:
        torch.set_default_device(None)


@contextlib.contextmanager
def bf16_products() -> Any:
    torch.set_float32_matmul_precision("medium")
    torch.backends.mkldnn.conv.fp32_precision = "bf16"
    try:
        yield
    finally:
        torch.backends.mkldnn.conv.fp32_precision = "ieee"
        torch.set_float32_matmul_precision("highest")


@contextlib.contextmanager
def without_onednn() -> Any:
    torch.backends.mkldnn.set_flags(False)
    try:
        yield
    finally:
        torch.backends.mkldnn.set_flags(True)


MODES: dict[str, Callable[[], Any]] = {
    "no_grad": torch.no_grad,
    "inference_mode": torch.inference_mode,
    "float64 by default": default_dtype,
    "autocast": lambda: torch.autocast("cpu", torch.bfloat16),
    "another device by default": default_device,
    "products in bf16": bf16_products,
    "without oneDNN": without_onednn,
    "errors of NumPy": lambda: np.errstate(all="raise"),
}


@pytest.fixture(scope="module", params=[{"conditional": True, "clusters": 4}, {"net": "dit"}])
def plainly(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, tiny: dict[str, Any]
) -> tuple[dict[str, Any], Path, Any, Any]:
    """The fields of a run, the run, its samples and their bits, in a process as it usually is."""
    fields = tiny | request.param
    if "net" in request.param:
        own = ("heads", "channels", "blocks", "attention")
        fields = {name: value for name, value in fields.items() if name not in own}
        fields["net"] = "dit:width=16,depth=1,heads=2,patch=2"
    run = undiffuse.train(tmp_path_factory.mktemp("plainly") / "run", **fields)
    return fields, run, undiffuse.sample(run, 4), computed(run)


def computed(run: Path) -> list[Any]:
    """What a model computes, by each of its public ways."""
    with torch.device("cpu"):
        images = torch.arange(4 * 64).view(4, 1, 8, 8).to(torch.uint8)
    model = undiffuse.load(run)
    x_t = model.noised(images, 0.5)
    request = model.request(2, steps=3)
    fresh = undiffuse.Model(model.description)
    found = [x_t, model(x_t, 0.5), model(x_t.double(), 0.5), fresh(x_t.numpy(), np.float64(0.5))]
    return [
        model.bits(images), *(part.numpy() for part in (*found, *request.stages(2))),
        *(batch.numpy() for batch in request.batches()),
    ]  # fmt: skip


@pytest.mark.parametrize("mode", MODES)
def test_the_callers_modes_change_nothing(
    tmp_path: Path, plainly: tuple[dict[str, Any], Path, Any, Any], mode: str
) -> None:
    fields, plain, images, usual = plainly
    with MODES[mode]():
        other = undiffuse.train(tmp_path / "other", **fields)
        assert np.array_equal(undiffuse.sample(plain, 4), images)
        for ours, expected in zip(computed(plain), usual, strict=True):
            assert np.array_equal(ours, expected)
    left, right = (load_file(run / "model.safetensors") for run in (plain, other))
    assert [name for name in left if not torch.equal(left[name], right[name])] == []
    assert (other / "loss.png").is_file()


STYLE = {"text.usetex": True, "axes.facecolor": "red", "font.size": 40, "savefig.dpi": 10}


def test_the_users_style_does_not_reach_the_figures(tmp_path: Path, tiny: dict[str, Any]) -> None:
    run = undiffuse.train(tmp_path / "run", **tiny)
    before = {name: (run / name).read_bytes() for name in ("loss.png", "timeline.png")}
    with mpl.rc_context(STYLE):
        figures.loss_curve(Run(run))
        figures.timeline(Run(run))
        assert mpl.rcParams["text.usetex"] is True
    assert {name: (run / name).read_bytes() for name in before} == before


def test_a_run_is_finished_where_no_figure_can_be_drawn(
    tmp_path: Path, tiny: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: Any, **__: Any) -> None:
        raise RuntimeError("latex could not be found")

    monkeypatch.setattr(figures, "new_figure", broken)
    records: list[Any] = []
    run = Run(undiffuse.train(tmp_path / "run", **tiny, watch=records.append))
    assert run.finished()
    missing = [record for record in records if isinstance(record, PictureFailed)]
    assert [record.file for record in missing] == ["loss.png", "timeline.png"]
    assert "latex could not be found" in missing[0].reason
    assert undiffuse.sample(run.path, 2).shape[0] == 2


def test_figures_cost_no_measurement(
    tmp_path: Path, train: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: Any, **__: Any) -> None:
        raise RuntimeError("no fonts")

    run = train(steps=2, data="mnist", subset=2100, snapshots=2, quality_share=0.0)
    monkeypatch.setattr(figures, "new_figure", broken)
    with pytest.raises(figures.NotDrawn, match="no fonts"):
        evaluate_run(
            run, 100, parts=Parts(quality=False, novelty=False), bits_images=4, ode_images=0
        )
    assert (run / "metrics.json").is_file()


def test_a_backend_that_does_not_exist_costs_no_run(tmp_path: Path, digits: Path) -> None:
    flags = "--steps 2 --snapshots 2 --channels 8 16 --batch-size 4 --snapshot-images 2"
    line = [sys.executable, "-m", "undiffuse", "train", "--data", digits, "--out", tmp_path / "run"]
    done = subprocess.run(
        [*line, *flags.split(), "--quality-share", "0", "--compile", "off"],
        env={**os.environ, "MPLBACKEND": "nonsense"}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "loss.png is missing" in done.stdout
    assert "Traceback" not in done.stderr


def _in_child(run: Path, answers: Any) -> None:
    answers.put((undiffuse.sample(run, 4), torch.get_num_threads()))


@pytest.mark.skipif(sys.platform == "win32", reason="there is no fork")
@pytest.mark.filterwarnings("ignore:.*fork.*")
def test_a_forked_process_samples(tmp_path: Path, digits: Path) -> None:
    """With a network that is large enough for several threads."""
    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        run = undiffuse.train(
            tmp_path / "run", data=digits, steps=1, snapshots=2, snapshot_images=2, batch_size=8,
            channels=(32, 64), quality_share=0, compile="off", sample_calls=2,
        )  # fmt: skip
        images = undiffuse.sample(run, 4)
        context = multiprocessing.get_context("fork")
        answers = context.Queue()
        child = context.Process(target=_in_child, args=(run, answers), daemon=True)
        child.start()
        found, threads_there = answers.get(timeout=60)
        child.join()
    finally:
        torch.set_num_threads(threads)
    assert np.abs(found.astype(int) - images.astype(int)).max() <= 1  # one thread adds otherwise
    assert threads_there == 2


def test_trainings_in_threads_do_not_disturb_each_other(
    tmp_path: Path, tiny: dict[str, Any]
) -> None:
    """Dropout draws from the random state of the process."""
    fields = {**tiny, "dropout": 0.3}
    alone = load_file(undiffuse.train(tmp_path / "alone", **fields) / "model.safetensors")
    threads = [
        threading.Thread(target=undiffuse.train, args=(tmp_path / str(k),), kwargs=fields)
        for k in range(3)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for k in range(3):
        found = load_file(tmp_path / str(k) / "model.safetensors")
        assert [name for name in alone if not torch.equal(alone[name], found[name])] == []


def test_a_handler_that_is_not_pythons_stays(
    tmp_path: Path, tiny: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Such a handler looks like None, and signal.signal refuses to set None."""
    usual = signal.getsignal
    monkeypatch.setattr(
        signal, "getsignal", lambda number: None if number == signal.SIGTERM else usual(number)
    )
    before = usual(signal.SIGTERM)
    run = undiffuse.train(tmp_path / "run", **tiny)
    assert Run(run).finished()
    assert usual(signal.SIGTERM) == before


def test_threads_that_compute_leave_the_callers_arithmetic() -> None:
    """The first one inside leaves first: the caller's choice comes back with the last."""
    precision = torch.backends.mkldnn.matmul
    with bf16_products():
        first, second = undisturbed(), undisturbed()
        first.__enter__()
        second.__enter__()
        assert precision.fp32_precision == "ieee"
        first.__exit__(None, None, None)
        assert precision.fp32_precision == "ieee"
        second.__exit__(None, None, None)
        assert precision.fp32_precision == "bf16"


@pytest.mark.slow
@pytest.mark.skipif(compiler() is None, reason="there is no C++ compiler")
@pytest.mark.parametrize("folder", ["cache", "a cache 'of' mine"])
def test_compiling_leaves_the_process_as_it_was(
    tmp_path: Path, tiny: dict[str, Any], monkeypatch: pytest.MonkeyPatch, folder: str
) -> None:
    """Also where the cache's path has blanks and quotes, which torch's command line cannot hold."""
    monkeypatch.setenv("UNDIFFUSE_CACHE", str(tmp_path / folder))
    monkeypatch.delenv("TORCHINDUCTOR_CACHE_DIR", raising=False)
    settings = torch._inductor.config.save_config_portable()
    before = state(), torch._inductor.codecache._HEADER_DIR
    told = pytest.warns(UserWarning, match="the compiled network is not kept in")
    with contextlib.nullcontext() if folder == "cache" else told:
        run = undiffuse.train(tmp_path / "run", **{**tiny, "compile": "on"})
    after = state(), torch._inductor.codecache._HEADER_DIR
    assert [name for name in before[0] if before[0][name] != after[0][name]] == []
    assert after[1] == before[1]
    assert torch._inductor.config.save_config_portable() == settings
    assert Run(run).of(CompileFallback) == []
    assert any((tmp_path / "cache").rglob("*.so")) == (folder == "cache")
