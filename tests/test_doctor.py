"""What dithead-doctor finds, and what it says to do."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from dithead import checkpoint
from dithead.runtime import doctor
from dithead.torchgraphs import TorchGraphs


def test_everything_is_found_and_every_lack_has_a_remedy() -> None:
    findings = doctor.examine()
    by_name = {finding.name: finding for finding in findings}
    assert by_name["torch"].state == "ok"
    assert by_name["libx264"].state == "ok"
    assert by_name["tiny"].detail.startswith("preset tiny, 18.3 M")
    assert "rife" not in by_name, "the interpolator is no checkpoint of the model"
    for finding in findings:
        assert (finding.state == "ok") == (finding.remedy == ""), finding


def test_a_missing_package_is_named_with_its_command(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in ("onnxruntime", "flash_attn", "tensorrt_rtx", "transformers", "triton"):
        monkeypatch.setitem(sys.modules, module, None)
    by_name = {finding.name: finding for finding in doctor.examine()}
    assert by_name["onnxruntime"].state == "missing"
    assert "dithead[cpu]" in by_name["onnxruntime"].remedy
    assert by_name["flash-attn"].remedy == "pip install 'dithead[flash]'"
    assert by_name["triton"].remedy == "pip install 'dithead[triton]'"
    assert by_name["transformers"].remedy == "pip install 'dithead[wav2vec2]'"
    assert "dithead[tensorrt-rtx]" in by_name["tensorrt-rtx"].remedy


def test_checkpoints_that_do_not_fit_are_unusable(
    random_models: TorchGraphs, tmp_path: Path
) -> None:
    good, bad, torn = (tmp_path / f"{name}.safetensors" for name in ("good", "bad", "torn"))
    model = random_models.dithead
    checkpoint.save(good, model.state_dict(), model.config.to_dict())
    checkpoint.save(bad, model.state_dict(), {"surprise": 1})
    torn.write_bytes(good.read_bytes()[:1000])
    found = {f.name: f for f in doctor.look_at_checkpoints([good, bad, torn])}
    assert found[str(good)].state == "ok"
    assert found[str(bad)].state == found[str(torn)].state == "unusable"
    assert "surprise" in found[str(bad)].detail


def test_the_remedy_makes_the_same_bundle_again(
    bundle_copy: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    manifest = json.loads((bundle_copy / "manifest.json").read_text())
    if not any(graph["engines"] for graph in manifest["graphs"]):
        pytest.skip("TensorRT-RTX is not installed")
    (found,) = doctor.look_at_bundle(bundle_copy)
    assert "a part of a bundle" in found.detail
    assert "--engines tensorrt-rtx --batch 1 -o " in found.remedy
    monkeypatch.setitem(sys.modules, "tensorrt_rtx", None)
    monkeypatch.setattr("dithead.bundle.graphspecs.graph_specs", lambda *_: [])
    found = doctor.look_at_bundle(bundle_copy)[-1]
    assert found.state == "unusable"
    assert found.remedy == "pip install 'dithead[tensorrt-rtx]'"


def test_a_folder_that_is_no_bundle_fails(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)  # it looks for ./bundle
    assert doctor.main(["--bundle", str(tmp_path), "--json"]) == 1
    findings = json.loads(capsys.readouterr().out)
    assert findings[-1]["state"] == "unusable"
    assert findings[-1]["remedy"] == f"dithead-export -o {tmp_path}"
    assert doctor.main([]) == 0
    assert "PyTorch" in capsys.readouterr().out
