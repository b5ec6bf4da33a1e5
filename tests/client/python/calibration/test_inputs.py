"""Models, tokenizers and texts as they are read, tiny ones of random weights, against what was written."""

import sys
import types

import pytest
import torch
from gguf_model import write_gguf
from kvcompress import InvalidArgument
from kvcompress.calibration import load_model, read_text
from kvcompress.calibration._inputs import check_tokens, texts
from transformers import LlamaConfig, LlamaForCausalLM

TOKENS = [*(chr(code) for code in range(33, 96)), "AB"]
IDS = torch.tensor([[5, 60, 2, 33, 7, 7, 41]])


def tiny_model():
    torch.manual_seed(0)
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=64,
            hidden_size=64,
            intermediate_size=64,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
            head_dim=16,
            max_position_embeddings=128,
            rope_theta=500.0,
            initializer_range=0.3,
        )
    ).eval()


def logits(model):
    with torch.no_grad():
        return model(IDS).logits


def test_a_gguf_file_is_the_model_and_tokenizer_that_it_was_written_from(tmp_path):
    written = tiny_model()
    path = tmp_path / "tiny.gguf"
    write_gguf(written, TOKENS, path)
    model, tokenizer = load_model(path, device="cpu")
    assert model.dtype == torch.float32
    assert not model.training
    torch.testing.assert_close(logits(model), logits(written), rtol=0, atol=1e-5)
    assert tokenizer("BADAB")["input_ids"] == [TOKENS.index(token) for token in ("B", "A", "D", "AB")]
    assert load_model(str(path), device="cpu", dtype="bfloat16")[0].dtype == torch.bfloat16


def test_a_gguf_file_that_is_none(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"^no such file: "):
        load_model(tmp_path / "absent.gguf")
    path = tmp_path / "text.gguf"
    path.write_text("not a model " * 20)
    with pytest.raises(OSError, match=rf"{path} is no GGUF file .* or it is damaged: "):
        load_model(path)
    write_gguf(tiny_model(), TOKENS, path)
    path.write_bytes(path.read_bytes()[:-1000])
    with pytest.raises(OSError, match="or it is damaged: "):
        load_model(path)


@pytest.mark.parametrize("package", ["gguf", "accelerate"])
def test_a_gguf_file_without_the_packages_for_it(package, tmp_path, monkeypatch):
    (tmp_path / "tiny.gguf").touch()
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(ImportError, match=f"^GGUF files need the packages gguf and accelerate: pip install {package}$"):
        load_model(tmp_path / "tiny.gguf")


@pytest.mark.parametrize("stored", [torch.bfloat16, torch.float16, torch.float32])
def test_a_cpu_computes_in_float32_whatever_the_weights_are(stored, tmp_path):
    written = tiny_model().to(stored)
    written.save_pretrained(tmp_path)
    model, tokenizer = load_model(tmp_path, device="cpu")
    assert tokenizer is None
    assert (model.dtype, model.config.dtype) == (torch.float32, stored)
    for name, weights in model.state_dict().items():
        assert weights.dtype == torch.float32
        assert torch.equal(weights, written.state_dict()[name].float())


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_a_dtype_that_is_asked_for(dtype, tmp_path):
    tiny_model().save_pretrained(tmp_path)
    model, _ = load_model(tmp_path, device="cpu", dtype=dtype)
    assert model.dtype == getattr(torch, dtype)
    # Positions are turned by angles of float32 also where the weights are narrow.
    assert model.model.rotary_emb.inv_freq.dtype == torch.float32
    assert (logits(model).float() - logits(tiny_model())).abs().mean() < 0.05 * logits(tiny_model()).std()


def test_a_dtype_of_another_name(tmp_path):
    with pytest.raises(InvalidArgument, match=r"^dtype is one of auto, float32, bfloat16, float16, not 'int8'$"):
        load_model(tmp_path, dtype="int8")


@pytest.mark.parametrize("name", ["/nope", "./nope", "../nope", "~/nope", "some/models/nope"])
def test_a_folder_that_is_not_there(name):
    with pytest.raises(FileNotFoundError, match=f"^no such folder: {name}$"):
        load_model(name)


def test_weights_that_are_cut_off(tmp_path):
    tiny_model().save_pretrained(tmp_path)
    path = tmp_path / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(OSError, match=f"the weights of {tmp_path} are damaged: "):
        load_model(tmp_path)


def test_sentencepiece_is_trusted(tmp_path):
    sentencepiece = pytest.importorskip("sentencepiece")
    (tmp_path / "text").write_text("the cat sat on the mat\nthe dog sat on the cat\n" * 20)
    sentencepiece.SentencePieceTrainer.train(
        input=str(tmp_path / "text"),
        model_prefix=str(tmp_path / "tokenizer"),
        vocab_size=40,
        model_type="bpe",
        minloglevel=2,
    )
    tiny_model().save_pretrained(tmp_path)
    config = tmp_path / "tokenizer_config.json"
    config.write_text('{"tokenizer_class": "LlamaTokenizer", "add_bos_token": false}')
    _, tokenizer = load_model(tmp_path, device="cpu")
    expected = sentencepiece.SentencePieceProcessor(model_file=str(tmp_path / "tokenizer.model")).encode("the cat  sat")
    assert tokenizer("the cat  sat") == {"input_ids": expected}
    assert tokenizer(["the cat  sat"])["input_ids"] == [expected]
    cut = tokenizer("the cat  sat", return_tensors="pt", truncation=True, max_length=2)["input_ids"]
    assert cut.tolist() == [expected[:2]]
    config.unlink()
    assert load_model(tmp_path, device="cpu")[1]("the cat  sat")["input_ids"] == [1, *expected]


def test_a_file_is_read_as_it_is(tmp_path):
    path = tmp_path / "text.txt"
    path.write_text("Grüße\n\nzwei\n", encoding="utf-8")
    assert read_text(str(path)) == "Grüße\n\nzwei\n"


def test_data_sets_are_loaded_by_name(monkeypatch):
    asked = []

    def load_dataset(*args, **kwargs):
        asked.append((args, kwargs))
        return [{"text": "one"}, {"text": "two"}]

    monkeypatch.setitem(sys.modules, "datasets", types.SimpleNamespace(load_dataset=load_dataset))
    assert read_text("wikitext", "wikitext-2-raw-v1", "test") == "one\n\ntwo"
    assert asked == [(("wikitext", "wikitext-2-raw-v1"), {"split": "test"})]


def test_without_the_package_for_data_sets(monkeypatch):
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(ImportError, match=r"wikitext is no file.*pip install datasets, or give a text file"):
        read_text("wikitext")


@pytest.mark.parametrize("content", ["[" * 100_000, '{"windows": [[null, null]]}', '{"windows": 3}'])
def test_windows_of_another_kind_are_refused(tmp_path, content):
    (tmp_path / "windows.json").write_text(content)
    with pytest.raises(InvalidArgument, match=r"is not \{"):
        texts(str(tmp_path / "windows.json"), None, 1, 64)


@pytest.mark.parametrize("token", [-5, 10**6])
def test_tokens_that_the_model_does_not_have_are_refused(token):
    with pytest.raises(InvalidArgument, match=f"^{token} is no token of the model, which has 64"):
        check_tokens(tiny_model(), [torch.tensor([3, token, 4])])
