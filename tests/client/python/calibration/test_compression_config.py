"""compression_config.json: both shapes, all defaults, all errors, savings and groups."""

import json
import subprocess
import sys

import pytest
from kvcompress import InvalidArgument
from kvcompress.calibration import CompressionConfig, HeadConfig

# As the manual writes it.
NESTED = {
    "global": {"target_memory_reduction": 0.5, "d_head": 64, "algo_default": "kvsplice"},
    "per_layer_head": {
        "0/0": {"enabled": True, "rank": 32, "algo": "kvsplice", "d_k": 64, "d_v": 64},
        "0/1": {"enabled": True, "rank": 32, "algo": "kvsplice", "d_k": 64, "d_v": 64},
    },
}
# As it is generated.
FLAT = {
    "target_memory_reduction": 0.25,
    "d_head": 64,
    "algo_default": "pca",
    "per_layer_head": {
        "layer0/head0": {
            "enabled": False, "rank": 64, "algo": "none", "compression_ratio": 0.0,
            "reason": "CRITICAL: trace=0.960 (>0.95)", "metrics": {"trace": 0.96, "cond": 2e7, "eigmax": 0.01},
        },
        "layer2/head1": {"enabled": True, "rank": 8, "learn_scale_shift": False},
        "2/head0": {"enabled": True},
        "layer1/7": {},
    },
    "compression_summary": {"critical": ["layer0/head0"], "excellent": [], "good": [], "moderate": []},
    "expected_kv_memory_savings": "59.7%",
    "actual_memory_reduction": 0.597,
    "summary_stats": {"total_heads": 4},
}


def config(fields=None, key="layer0/head3", **settings):
    return CompressionConfig.of_json({**settings, "per_layer_head": {key: {} if fields is None else fields}})


def test_the_nested_shape(tmp_path):
    path = tmp_path / "compression_config.json"
    path.write_text(json.dumps(NESTED))
    read = CompressionConfig.read(path)
    assert (read.target_memory_reduction, read.d_head, read.algo_default) == (0.5, 64, "kvsplice")
    assert read.heads == {(0, head): HeadConfig(True, 32, "kvsplice", 64, 64, True) for head in (0, 1)}
    others = {"target_memory_reduction": 0.25, "d_head": 128, "algo_default": "pca"}
    read = CompressionConfig.of_json({"global": others, "per_layer_head": {"0/0": {"enabled": True}}})
    assert (read.target_memory_reduction, read.d_head, read.algo_default) == (0.25, 128, "pca")
    assert read.head(0, 0) == HeadConfig(True, 32, "pca", 128, 128, True)


def test_the_flat_shape_with_all_spellings_and_defaults():
    read = CompressionConfig.of_json(FLAT)
    assert (read.target_memory_reduction, read.d_head, read.algo_default) == (0.25, 64, "pca")
    assert read.heads == {
        (0, 0): HeadConfig(False, 64, "none", 64, 64, True),
        (2, 1): HeadConfig(True, 8, "pca", 64, 64, False),
        (2, 0): HeadConfig(True, 32, "pca", 64, 64, True),
        (1, 7): HeadConfig(False, 32, "pca", 64, 64, True),
    }
    assert read.head(2, 1).rank == 8
    assert read.head(9, 9) == HeadConfig(False, 64, "none", 64, 64, True)


def test_settings_have_defaults_and_small_heads_a_smaller_rank():
    read = config({"enabled": True})
    assert (read.target_memory_reduction, read.d_head, read.algo_default) == (0.5, 64, "kvsplice")
    assert config({"enabled": True}, d_head=16).head(0, 3).rank == 16
    assert config({"enabled": True}, d_head=65536).head(0, 3).d_k == 65536
    assert config({"d_k": 128, "d_v": 24}).head(0, 3) == HeadConfig(False, 24, "kvsplice", 128, 24)


@pytest.mark.parametrize("document", [NESTED, FLAT])
def test_what_is_written_is_read_again(document):
    read = CompressionConfig.of_json(document)
    written = read.to_json()
    assert CompressionConfig.of_json(json.loads(json.dumps(written, allow_nan=False))) == read
    assert set(written) == {"target_memory_reduction", "d_head", "algo_default", "per_layer_head"}
    for fields in written["per_layer_head"].values():
        assert set(fields) == {"enabled", "rank", "algo", "d_k", "d_v", "learn_scale_shift"}
    assert list(written["per_layer_head"]) == [f"layer{layer}/head{head}" for layer, head in sorted(read.heads)]


@pytest.mark.parametrize(("fields", "text"), [
    ({"rank": 80}, "layer0/head3: rank 80 is not between 1 and d 64"),
    ({"rank": 0}, "layer0/head3: rank 0 is not between 1 and d 64"),
    ({"rank": -1}, "rank -1"), ({"rank": True}, "rank True"), ({"rank": 8.0}, "rank 8.0"),
    ({"rank": None}, "rank None"), ({"rank": float("nan")}, "rank nan"),
    ({"rank": 40, "d_v": 32}, "rank 40 is not between 1 and d 32"),
    ({"algo": "svd"}, "layer0/head3: algo 'svd' is unknown; there are: kvsplice, pca, none"),
    ({"algo": ["pca"]}, "algo"), ({"algo": "none", "enabled": True}, "layer0/head3: it is enabled"),
    ({"ranks": 8}, "layer0/head3: unknown field 'ranks'; there are: enabled, rank"),
    ({"enabled": 1}, "layer0/head3: enabled is true or false, not 1"),
    ({"learn_scale_shift": "yes"}, "layer0/head3: learn_scale_shift is true or false"),
    ({"d_k": 0}, "layer0/head3: d_k is an integer from 1 to 65536, not 0"), ({"d_v": "64"}, "layer0/head3: d_v"),
    ({"d_v": 65537}, "layer0/head3: d_v is an integer from 1 to 65536, not 65537"),
    ({"metrics": {"trace": float("nan")}}, "layer0/head3: trace is a number, not nan"),
    ({"metrics": {"cond": float("inf")}}, "layer0/head3: cond is a number, not inf"),
    ({"metrics": 3}, "layer0/head3: metrics is a JSON object"),
    ({"compression_ratio": float("nan")}, "layer0/head3: compression_ratio is a number, not nan"),
    ([], "layer0/head3: a head is a JSON object"),
])
def test_errors_name_the_head(fields, text):
    with pytest.raises(InvalidArgument) as failed:
        config(fields)
    assert text in str(failed.value)


@pytest.mark.parametrize("key", ["", "0", "0/", "/0", "layer/head", "head0/layer0", "0/0/0", "-1/0", "0/0 ", "0/٣"])
def test_keys_of_other_forms(key):
    with pytest.raises(InvalidArgument, match=r"^Invalid key format: "):
        config(key=key)


@pytest.mark.parametrize("second", ["layer0/head0", "0/head0", "layer0/0", "00/0"])
def test_two_spellings_of_one_head(second):
    with pytest.raises(InvalidArgument, match=f"layer0/head0 is given twice, the second time as '{second}'"):
        CompressionConfig.of_json({"per_layer_head": {"0/0": {}, second: {}}})


@pytest.mark.parametrize(("document", "text"), [
    ([], "is a JSON object"), ({}, "has an object per_layer_head"), ({"per_layer_head": []}, "has an object"),
    ({"per_layer_head": {}, "heads": 3}, "the config: unknown field 'heads'"),
    ({"per_layer_head": {}, "global": 3}, "global is a JSON object"),
    ({"per_layer_head": {}, "global": {"rank": 3}}, "global: unknown field 'rank'"),
    ({"per_layer_head": {}, "global": {"d_head": 64}, "d_head": 64}, "d_head is given twice"),
    ({"per_layer_head": {}, "d_head": 0}, "d_head is an integer"),
    ({"per_layer_head": {}, "d_head": 65537}, "d_head is an integer from 1 to 65536, not 65537"),
    ({"per_layer_head": {}, "algo_default": "svd"}, "algo_default 'svd' is unknown"),
    ({"per_layer_head": {}, "target_memory_reduction": 10**400}, "target_memory_reduction is a number, not 1000"),
    ({"per_layer_head": {}, "target_memory_reduction": float("nan")}, "target_memory_reduction is a number, not nan"),
])
def test_errors_of_the_whole(document, text):
    with pytest.raises(InvalidArgument, match=text):
        CompressionConfig.of_json(document)


@pytest.mark.parametrize(("content", "text"), [
    ("{", "Expecting"), ('{"per_layer_head": {"0/0": {}, "0/0": {}}}', "'0/0' is given twice"), (b"\xff", "utf-8"),
    ("[" * 100_000, "recursion"),
])
def test_files_that_are_no_configs(tmp_path, content, text):
    path = tmp_path / "config.json"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(InvalidArgument, match=text) as failed:
        CompressionConfig.read(path)
    assert str(path) in str(failed.value)
    with pytest.raises(InvalidArgument, match="No such file"):
        CompressionConfig.read(tmp_path / "none")


def test_savings_count_the_heads_that_are_not_listed():
    read = CompressionConfig.of_json(NESTED)
    assert read.savings(1, 2) == 0.5
    assert read.savings(2, 4) == 0.125
    uneven = config({"enabled": True, "rank": 8, "d_k": 16, "d_v": 48}, key="0/0")
    assert uneven.savings(1, 2) == 1 - (16 + 128) / (64 + 128)
    assert CompressionConfig.of_json(FLAT).savings(3, 8) == pytest.approx((2 * 56 + 2 * 32) / (24 * 128))
    with pytest.raises(InvalidArgument, match="layer2/head0 is not in a model of 2 layers of 8 key/value heads"):
        CompressionConfig({(2, 0): read.head(0, 0)}).savings(2, 8)


def test_a_group_takes_what_its_most_careful_reader_needs():
    heads = {"0/0": (True, 8), "0/1": (True, 32), "0/2": (True, 16),
             "0/3": (True, 8), "0/4": (False, 64), "0/5": (True, 8),
             "1/0": (True, 8), "1/1": (True, 8)}
    read = CompressionConfig.of_json({"d_head": 64, "algo_default": "pca", "target_memory_reduction": 0.3,
                                      "per_layer_head": {key: {"enabled": enabled, "rank": rank}
                                                         for key, (enabled, rank) in heads.items()}})
    grouped = read.grouped(3)
    assert (grouped.d_head, grouped.algo_default, grouped.target_memory_reduction) == (64, "pca", 0.3)
    assert grouped.heads == {
        (0, 0): HeadConfig(True, 32, "pca", 64, 64), (0, 1): HeadConfig(False, 64, "none", 64, 64),
        (1, 0): HeadConfig(False, 64, "none", 64, 64),
    }, "a reader that is not listed stays as it is, and its group with it"
    assert read.grouped(1).heads[0, 2] == read.heads[0, 2]
    with pytest.raises(InvalidArgument, match="at least 1"):
        read.grouped(0)
    for change, text in (({"algo": "kvsplice"}, "layer0/head0: .* algo"),
                         ({"d_v": 32, "rank": 8}, "layer0/head0: .* d_v")):
        differing = {"0/0": {"enabled": True, "algo": "pca"}, "0/1": {"enabled": True, "algo": "pca", **change}}
        with pytest.raises(InvalidArgument, match=text):
            CompressionConfig.of_json({"per_layer_head": differing}).grouped(2)


def test_configs_need_no_torch():
    program = ("import sys; sys.modules['torch'] = None; from kvcompress.calibration import CompressionConfig;"
               "print(CompressionConfig.of_json({'per_layer_head': {'0/0': {}}}).head(0, 0).rank)")
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60)
    assert (done.stdout, done.stderr) == ("32\n", "")
