"""compute_perplexity against values computed token by token, and the windows that are measured."""

import json
import math

import pytest
import torch
from conftest import make_model
from kvcompress.calibration import read_text
from model_inputs import load_model_and_tokenizer, windows_from_json, windows_from_text
from validate_perplexity import compute_perplexity


def write(tmp_path, length):
    path = tmp_path / "text.txt"
    path.write_text("".join(chr(32 + (7 * index * index + 3 * index) % 61) for index in range(length)))
    return str(path)


def by_hand(model, ids, max_length, stride):
    """Each token's own NLL in the window that scores it, one forward pass for each."""
    total, scored = 0.0, 1
    for begin in range(0, len(ids), stride):
        end = min(begin + max_length, len(ids))
        while scored < end:
            with torch.no_grad():
                logits = model(torch.tensor([ids[begin:scored]])).logits[0, -1].double()
            total -= torch.log_softmax(logits, dim=-1)[ids[scored]].item()
            scored += 1
        if end == len(ids):
            break
    return math.exp(total / (len(ids) - 1))


# Shorter than a window; exactly one; one token more; the last window full; the last window short.
@pytest.mark.parametrize("length", [9, 20, 21, 36, 43])
def test_sliding_window_scores_each_token_once_with_its_context(model, tokenizer, tmp_path, length):
    path = write(tmp_path, length)
    ids = tokenizer(read_text(path))["input_ids"]
    found = compute_perplexity(model, tokenizer, path, stride=8, max_length=20, verbose=False)
    assert found == pytest.approx(by_hand(model, ids, 20, 8), rel=1e-5)


def test_max_samples_limits_windows(model, tokenizer, tmp_path):
    path = write(tmp_path, 43)
    ids = tokenizer(read_text(path))["input_ids"]
    found = compute_perplexity(model, tokenizer, path, stride=8, max_length=20, max_samples=2, verbose=False)
    assert found == pytest.approx(by_hand(model, ids[:28], 20, 8), rel=1e-5)


def test_the_model_s_context_is_the_window(tokenizer, tmp_path):
    model, path = make_model(max_position_embeddings=20), write(tmp_path, 43)
    assert compute_perplexity(model, tokenizer, path, stride=8, verbose=False) == compute_perplexity(
        model, tokenizer, path, stride=8, max_length=20, verbose=False)


@pytest.mark.parametrize("stride", [0, 20, 512])
def test_a_stride_that_skips_tokens_is_refused(model, tokenizer, tmp_path, stride):
    with pytest.raises(ValueError, match="the stride must be between 1 and 19"):
        compute_perplexity(model, tokenizer, write(tmp_path, 43), stride=stride, max_length=20)


def test_a_text_of_one_token(model, tokenizer, tmp_path):
    with pytest.raises(ValueError, match="has 1 tokens: nothing can be predicted"):
        compute_perplexity(model, tokenizer, write(tmp_path, 1), stride=8, verbose=False)


def test_a_model_that_trains_is_refused(tokenizer, tmp_path):
    with pytest.raises(ValueError, match=r"in training mode, with dropout: call its eval\(\)"):
        compute_perplexity(make_model().train(), tokenizer, write(tmp_path, 43), stride=8, verbose=False)


def test_progress_only_when_asked(model, tokenizer, tmp_path, capfd):
    compute_perplexity(model, tokenizer, write(tmp_path, 43), stride=8, max_length=20, verbose=False)
    assert capfd.readouterr() == ("", "")
    compute_perplexity(model, tokenizer, write(tmp_path, 43), stride=8, max_length=20)
    captured = capfd.readouterr()
    assert "perplexity" in captured.err and captured.out == ""


def test_windows_of_a_text(model, tokenizer):
    windows = windows_from_text("x" * 1000, tokenizer, model, 100)
    assert len(windows) == 1000 // 128 and {(len(ids), prefix) for ids, prefix in windows} == {(128, 64)}
    text = "".join(chr(32 + index % 64) for index in range(100))
    windows = windows_from_text(text, tokenizer, model, 3, prefix_len=7, continuation_len=3)
    assert [window.ids for window in windows] == [tokenizer(text[start:start + 10])["input_ids"] for start in (0, 30, 60)]
    for arguments, text in (({"prefix_len": 100}, "do not fit into the model's context of 128"),
                            ({"continuation_len": 128}, "a prefix of 0"),
                            ({}, "the text has 3 tokens, one window needs 128")):
        with pytest.raises(ValueError, match=text):
            windows_from_text("abc", tokenizer, model, 4, **arguments)
    with pytest.raises(ValueError, match=r"no tokenizer: give windows of token ids .*--token-windows FILE"):
        windows_from_text("abc", None, model, 4)


def test_windows_of_a_file(tmp_path):
    path = tmp_path / "windows.json"
    path.write_text(json.dumps({"prefix_len": 2, "windows": [[1, 2, 3, 4], [5, 6, 7, 8]]}))
    assert windows_from_json(str(path), 10) == [([1, 2, 3, 4], 2), ([5, 6, 7, 8], 2)]
    assert windows_from_json(str(path), 1, 1) == [([1, 2, 3, 4], 1)]
    assert windows_from_json(str(path), 1, 0) == [([1, 2, 3, 4], 0)], "score refuses it"
    for content in ("[]", "{}", "no json", '{"windows": [[1]]}', '{"windows": [[1]], "prefix_len": "a"}',
                    '{"windows": [1], "prefix_len": 1}', "[" * 100_000):
        path.write_text(content)
        with pytest.raises(ValueError, match=r"is not \{"):
            windows_from_json(str(path), 1)


def test_the_documents_model_reads_its_own_text(documents):
    """3.81 nats/token on held-out text at a context of 1024, says its README: another tokenization would be far off."""
    model, tokenizer = load_model_and_tokenizer(str(documents), "cpu")
    perplexity = compute_perplexity(model, tokenizer, str(documents / "eval.txt"), max_samples=6, verbose=False)
    assert 3.3 < math.log(perplexity) < 4.3
