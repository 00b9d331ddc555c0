"""Building TensorRT engines, on a machine without a GPU."""

from __future__ import annotations

import signal
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from bundles import cases, needs_rtx, spec_of

from dithead.bundle import manifest as mf
from dithead.bundle.libraries import load_flavour
from dithead.errors import BackendUnavailable, ConfigError, ExportError
from dithead.export import tensorrt
from dithead.export.onnx import export_onnx
from dithead.torchgraphs import TorchGraphs

pytest.importorskip("onnx", reason="exporting needs the extra 'export'")
pytest.importorskip("onnxscript", reason="exporting needs the extra 'export'")


@needs_rtx
def test_engines_can_be_narrowed_to_one_gpu(random_models: TorchGraphs, tmp_path: Path) -> None:
    spec = spec_of("dit_context")
    path = tmp_path / "dit_context.onnx"
    export_onnx(
        random_models.module("dit_context"), spec, cases("dit_context", random_models)[0], path
    )
    built = tensorrt.build_engine(path, spec, "tensorrt-rtx", "8.9")
    assert len(built.data) > 1000
    assert [port.name for port in built.inputs] == ["window"]
    with pytest.raises(ConfigError, match=r"unknown compute capability '1.0'.*8\.9"):
        tensorrt.build_engine(path, spec, "tensorrt-rtx", "1.0")


@needs_rtx
def test_what_tensorrt_cannot_parse_is_named(tmp_path: Path) -> None:
    path = tmp_path / "noise.onnx"
    path.write_bytes(b"this is no protobuf")
    with pytest.raises(ExportError, match=r"graph 'noise'.*cannot parse noise\.onnx"):
        tensorrt.build_engine(path, spec_of("noise"), "tensorrt-rtx")


@needs_rtx
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupt_while_tensorrt_builds_is_not_lost(
    random_models: TorchGraphs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    spec, path = spec_of("dit_context"), tmp_path / "dit_context.onnx"
    inputs = cases("dit_context", random_models)[0]
    export_onnx(random_models.module("dit_context"), spec, inputs, path)
    made = tensorrt._logger

    def interrupting(trt: Any, log: tensorrt.BuildLog) -> Any:
        class Lines(list[str]):
            def append(self, line: str) -> None:
                if not self:
                    signal.raise_signal(number)
                super().append(line)

        log.lines = Lines()
        return made(trt, log)

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(tensorrt, "_logger", interrupting)
    before = signal.signal(number, interrupt)
    try:
        with pytest.raises(KeyboardInterrupt):
            tensorrt.build_engine(path, spec, "tensorrt-rtx")
        assert signal.getsignal(number) is interrupt
    finally:
        signal.signal(number, before)


def test_a_placeholder_of_tensorrt_is_no_tensorrt(monkeypatch: pytest.MonkeyPatch) -> None:
    import sys
    import types

    monkeypatch.setitem(sys.modules, "tensorrt", types.ModuleType("tensorrt"))
    with pytest.raises(BackendUnavailable, match=r"placeholder.*NVIDIA's own package index"):
        load_flavour("tensorrt")
    with pytest.raises(ConfigError, match="unknown TensorRT flavour"):
        load_flavour("tensorrt-11")  # type: ignore[arg-type]


def test_an_engine_of_another_version_is_refused(small_bundle: Path) -> None:
    from dithead.bundle.engines import find_engine

    entry = mf.read_manifest(small_bundle).graph("dit_step")
    if not entry.engines:
        pytest.skip("TensorRT-RTX is not installed")
    version = entry.engines[0].version
    assert find_engine(entry, "tensorrt-rtx", version, small_bundle) == entry.engines[0]
    with pytest.raises(ExportError, match=r"tensorrt-rtx 99\.0 is installed: export again"):
        find_engine(entry, "tensorrt-rtx", "99.0", small_bundle)
    with pytest.raises(ExportError, match="no engine for graph"):
        find_engine(replace(entry, engines=()), "tensorrt", version, small_bundle)
