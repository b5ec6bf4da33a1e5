"""What -input takes besides a safetensors file, and what it says of files of another kind."""

import gzip
import io
import json
import os
import pickle
import subprocess
import zipfile

import numpy as np
import pytest
from cli_helpers import File, environment, run, run_ok, start, write_file


def tensors(*names, seed=1):
    random = np.random.default_rng(seed)
    return {name: random.standard_normal((1, 2, 40, 32)).astype(np.float16) for name in names}


def write_index(folder, shards, metadata=({"format": "pt"}, {"format": "pt"}), name="cache.safetensors.index.json"):
    """Writes {file: {tensor: array}} and their index; returns the index's path."""
    for (file, arrays), own in zip(shards.items(), metadata):
        write_file(folder / file, arrays, own)
    weight_map = {tensor: file for file, arrays in shards.items() for tensor in arrays}
    path = folder / name
    path.write_text(json.dumps({"metadata": {"total_size": 1}, "weight_map": weight_map}))
    return path


TWO = {"b-00001-of-00002": tensors("layer_0_key", "layer_0_value"), "b-00002-of-00002": tensors("layer_1_key", seed=2)}


def refusal(bin_dir, *args, **options):
    done = run(bin_dir, *args, **options)
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (1, "", 1), done.stderr
    assert done.stderr.startswith("Error: ")
    return done.stderr[len("Error: "):-1]


def test_an_index_reads_as_one_file_with_the_tensors_of_its_shards(bin_dir, tmp_path):
    index = write_index(tmp_path, TWO)
    merged = {name: array for arrays in TWO.values() for name, array in arrays.items()}
    write_file(tmp_path / "one", merged, {"format": "pt"})
    for codec in ("int4", "lossless", "sparse(ratio=0.5)|int8"):
        of_index = run_ok(bin_dir, "-input", index, "-output", tmp_path / "packed", "-codec", codec)
        of_one = run_ok(bin_dir, "-input", tmp_path / "one", "-output", tmp_path / "packed-one", "-codec", codec)
        assert (tmp_path / "packed").read_bytes() == (tmp_path / "packed-one").read_bytes()
        assert of_index["original_size_bytes"] == of_one["original_size_bytes"] == 3 * 2 * 40 * 32 * 2
    run_ok(bin_dir, "-input", index, "-output", tmp_path / "packed", "-codec", "lossless")
    run_ok(bin_dir, "-decompress", "-input", tmp_path / "packed", "-output", tmp_path / "back")
    back = File(tmp_path / "back")
    assert back.metadata == {"format": "pt"} and set(back.bytes) == set(merged)
    assert all(back.bytes[name] == array.tobytes() for name, array in merged.items())
    assert "total: 3 tensors" in run(bin_dir, "-inspect", index).stdout


def test_an_index_through_a_daemon(bin_dir, tmp_path, daemon):
    index = write_index(tmp_path, TWO)
    run_ok(bin_dir, "-input", index, "-output", tmp_path / "local")
    run_ok(bin_dir, "-input", index, "-output", tmp_path / "remote", "-server", daemon().address)
    assert (tmp_path / "local").read_bytes() == (tmp_path / "remote").read_bytes()


@pytest.mark.parametrize(("change", "said"), [
    (lambda index: index["weight_map"].update(ghost="b-00001-of-00002"),
     '{folder}/b-00001-of-00002: there is no tensor "ghost", which the index says is there'),
    (lambda index: index["weight_map"].pop("layer_0_key"),
     '{folder}/b-00001-of-00002: tensor "layer_0_key" is not of this shard by the index'),
    (lambda index: index["weight_map"].update(layer_1_key="b-00001-of-00002"),
     '{folder}/b-00001-of-00002: there is no tensor "layer_1_key", which the index says is there'),
    (lambda index: index["weight_map"].update(layer_1_key="none"), "open {folder}/none: no such file or directory"),
    (lambda index: index["weight_map"].update(layer_1_key="../b"),
     '{index}: weight_map: "../b" is not the name of a file in the index\'s folder'),
    (lambda index: index["weight_map"].update(layer_1_key=1), '{index}: weight_map: "layer_1_key" must be a file\'s name, a string'),
    (lambda index: index["weight_map"].clear(), "{index}: its weight_map names no tensor"),
    (lambda index: index.pop("weight_map"),
     "{index}: JSON that is neither an index of shards (weight_map) nor the meta of a raw dump (k_file, v_file)"),
])
def test_an_index_that_does_not_fit_its_shards(bin_dir, tmp_path, change, said):
    path = write_index(tmp_path, TWO)
    index = json.loads(path.read_text())
    change(index)
    path.write_text(json.dumps(index))
    text = refusal(bin_dir, "-input", path, "-metrics-only")
    assert text == "read input: " + said.format(folder=tmp_path, index=path)


def test_an_index_is_never_of_what_is_compressed(bin_dir, tmp_path):
    index = write_index(tmp_path, TWO)
    text = refusal(bin_dir, "-decompress", "-input", index, "-output", tmp_path / "back")
    assert text == f"read input: {index}: a compressed file is one file, no index of shards and no raw dump"
    for shard in TWO:
        run_ok(bin_dir, "-input", tmp_path / shard, "-output", tmp_path / "packed")
        (tmp_path / "packed").rename(tmp_path / shard)
    text = refusal(bin_dir, "-input", index, "-metrics-only")
    assert text == f"read input: {tmp_path}/b-00001-of-00002: a compressed file, and an index is of plain ones"


def test_an_index_that_is_no_json_or_says_things_twice(bin_dir, tmp_path):
    path = tmp_path / "x.index.json"
    for text, said in [("{", "not a JSON object"), ("{}\0{}", "not a JSON object"), ('{"weight_map": {}} x', "not a JSON object"),
                       ('{"weight_map": {"a": "b", "a": "c"}}', '"a" is given twice')]:
        path.write_text(text)
        assert refusal(bin_dir, "-input", path, "-metrics-only") == f"read input: {path}: {said}"


def test_shards_that_are_compressed_damaged_or_differ_in_metadata(bin_dir, tmp_path):
    index = write_index(tmp_path, TWO, ({"format": "pt"}, {"format": "tf"}))
    assert 'its metadata "format" differs from another shard\'s' in refusal(bin_dir, "-input", index, "-metrics-only")
    (tmp_path / "b-00002-of-00002").write_bytes(b"PK\3\4")
    assert f"read input: {tmp_path / 'b-00002-of-00002'}: parse header: this is a zip archive" in refusal(bin_dir, "-inspect", index)


def test_no_shard_is_replaced_by_the_output(bin_dir, tmp_path):
    index = write_index(tmp_path, TWO)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    for name in before:
        text = refusal(bin_dir, "-input", index, "-output", tmp_path / name)
        assert text == f"write output: {tmp_path / name} is one of the files that the input consists of"
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


def zip_bytes():
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as archive:
        archive.writestr("archive/data.pkl", b"x" * 100)
    return out.getvalue()


@pytest.mark.parametrize(("content", "said"), [
    (b"version https://git-lfs.github.com/spec/v1\noid sha256:" + b"0" * 64 + b"\nsize 12345\n",
     "a Git LFS pointer, not the file that it stands for: fetch that with git lfs pull"),
    (zip_bytes(), "a zip archive, as PyTorch (.pt, .bin) and NumPy (.npz) write them: convert it to safetensors"),
    (b"GGUF\3\0\0\0" + b"\x7b" + bytes(40), "a GGUF file: convert it to safetensors"),
    (pickle.dumps({"k": [1.0] * 100}, protocol=2),
     "a Python pickle, as torch.save and pickle.dump write them: convert it to safetensors"),
    (pickle.dumps({"k": [1.0] * 100}, protocol=5),
     "a Python pickle, as torch.save and pickle.dump write them: convert it to safetensors"),
    (gzip.compress(b"x" * 100), "compressed with gzip: unpack it first"),
    (b'{"weight_map": {"a": "b"}}', "JSON text: an index of shards is read where its name ends in .json"),
])
def test_a_file_of_another_kind_is_named(bin_dir, tmp_path, content, said):
    (tmp_path / "in").write_bytes(content)
    for args in (["-input", tmp_path / "in", "-metrics-only"], ["-inspect", tmp_path / "in"],
                 ["-decompress", "-input", tmp_path / "in", "-output", tmp_path / "out"], ["-sweep", "-input", tmp_path / "in"]):
        assert refusal(bin_dir, *args) == f"parse header: {tmp_path / 'in'}: this is {said}"


def test_standard_input_and_pipes_are_read(bin_dir, sample, tmp_path):
    run_ok(bin_dir, "-input", sample, "-output", tmp_path / "file")
    cat = subprocess.Popen(["cat", sample], stdout=subprocess.PIPE)
    run_ok(bin_dir, "-input", "-", "-output", tmp_path / "piped", stdin=cat.stdout)
    cat.wait()
    with open(sample, "rb") as file:
        run_ok(bin_dir, "-input", "-", "-output", tmp_path / "redirected", stdin=file)
    os.mkfifo(tmp_path / "fifo")
    reader = start(bin_dir, "-input", tmp_path / "fifo", "-output", tmp_path / "from-fifo")
    (tmp_path / "fifo").write_bytes(sample.read_bytes())  # opening it waits for the reader
    assert reader.communicate(timeout=60)[1] == b""
    packed = (tmp_path / "file").read_bytes()
    assert all((tmp_path / name).read_bytes() == packed for name in ("piped", "redirected", "from-fifo"))
    back = run(bin_dir, "-decompress", "-input", "-", "-output", tmp_path / "back", stdin=open(tmp_path / "file", "rb"))
    assert back.returncode == 0
    assert "not compressed" in run(bin_dir, "-inspect", "-", stdin=open(sample, "rb")).stdout


def test_pipes_that_cannot_be_read(bin_dir, sample, tmp_path):
    os.mkfifo(tmp_path / "fifo")
    # Nobody writes to it.
    assert refusal(bin_dir, "-input", tmp_path / "fifo", "-metrics-only", "-timeout", "200ms") == (
        "not done within the -timeout of 200ms")
    assert refusal(bin_dir, "-input", "-", "-metrics-only", stdin=subprocess.DEVNULL) == (
        "read input: standard input is neither a file nor a pipe")
    many = subprocess.Popen(["head", "-c", str((512 << 20) + 1), "/dev/zero"], stdout=subprocess.PIPE)
    text = refusal(bin_dir, "-input", "-", "-metrics-only", stdin=many.stdout)
    many.stdout.close()
    many.wait()
    assert text == ("read input: /dev/stdin: more than 512 MiB through a pipe, which is read into memory: "
                    "write them to a file first")
    for output in ("-", tmp_path / "fifo"):
        assert refusal(bin_dir, "-input", sample, "-output", output) == (
            f"-output {output}: the output appears whole or not at all, which a pipe cannot do: name a file")


def dump(folder, layer, first, keys, values, **changes):
    """A raw dump as the experiments' patched runtime writes it: keys and values [seq, kv_heads, head_dim]."""
    place = folder / f"layer_{layer}"
    place.mkdir(parents=True, exist_ok=True)
    base = f"t{first}_{first + len(keys)}"
    meta = {"layer_id": layer, "seq_start": first, "seq_len": len(keys), "seq_end_exclusive": first + len(keys),
            "kv_heads": keys.shape[1], "head_dim": keys.shape[2], "bytes_per_elem": keys.itemsize,
            "dtype": {2: "fp16", 4: "fp32"}[keys.itemsize], "add": len(keys), "tensor_seq_len": len(keys),
            "quant_key": False, "quant_value": False, "flash_attention": True, "stage": "prefill", "run_id": folder.name,
            "k_file": f"k_{base}.bin", "v_file": f"v_{base}.bin", **changes}
    (place / f"k_{base}.bin").write_bytes(keys.tobytes())
    (place / f"v_{base}.bin").write_bytes(values.tobytes())
    path = place / f"meta_{base}.json"
    path.write_text(json.dumps(meta, indent=2))
    return path


@pytest.mark.parametrize("dtype", [np.float16, np.float32])
def test_raw_dumps_become_tensors_with_the_heads_first(bin_dir, tmp_path, dtype):
    random = np.random.default_rng(3)
    whole = {name: random.standard_normal((9, 2, 16)).astype(dtype) for name in
             ("layer_0_key", "layer_0_value", "layer_11_key", "layer_11_value")}
    for layer in (0, 11):
        keys, values = whole[f"layer_{layer}_key"], whole[f"layer_{layer}_value"]
        dump(tmp_path / "run", layer, 5, keys[:7], values[:7])
        for token in (7, 8):  # decoded one by one
            dump(tmp_path / "run", layer, 5 + token, keys[token:token + 1], values[token:token + 1], stage="decode")
    run_ok(bin_dir, "-input", tmp_path / "run", "-output", tmp_path / "packed", "-codec", "lossless")
    run_ok(bin_dir, "-decompress", "-input", tmp_path / "packed", "-output", tmp_path / "back")
    back = File(tmp_path / "back")
    assert [name for name, *_ in back.layout] == list(whole) and back.metadata == {"seq_start": "5"}
    for name, _, shape in back.layout:
        assert shape == [1, 2, 9, 16]
        assert back.bytes[name] == whole[name].transpose(1, 0, 2).tobytes()
    meta = tmp_path / "run" / "layer_0" / "meta_t5_12.json"
    assert "layer_0_value" in run(bin_dir, "-inspect", meta).stdout
    assert "is one of the files that the input consists of" in refusal(
        bin_dir, "-input", meta, "-output", meta.parent / "k_t5_12.bin")


def test_raw_dumps_that_do_not_fit(bin_dir, tmp_path):
    keys = np.ones((4, 2, 8), np.float16)
    for change, said in [
        ({"seq_len": 5}, ": it has 128 bytes, and {meta} says 160"), ({"bytes_per_elem": 3}, "values of 3 bytes"),
        ({"kv_heads": -1}, '"kv_heads" is no number from 1'), ({"k_file": "../x"}, '"k_file" is not the name of a file'),
        ({"layout": "packed"}, "dump the logical layout"), ({"quant_key": True}, "a dump of quantized values"),
        ({"v_file": "none.bin"}, "none.bin: no such file or directory"), ({"head_dim": 10**9, "kv_heads": 10**9}, "2^48"),
    ]:
        meta = dump(tmp_path / "run", 0, 0, keys, keys, **change)
        assert said.format(meta=meta) in refusal(bin_dir, "-input", tmp_path / "run", "-metrics-only"), change
    dump(tmp_path / "run", 0, 0, keys, keys)
    for first in (3, 5):
        meta = dump(tmp_path / "run", 0, first, keys, keys)
        text = refusal(bin_dir, "-input", tmp_path / "run", "-metrics-only")
        assert text.startswith(f"read input: {meta}: begins at token {first}, and ") and "name the folder of one run" in text
        meta.unlink()
    meta = dump(tmp_path / "run", 0, 4, keys.astype(np.float32), keys.astype(np.float32))
    assert "differ from those of" in refusal(bin_dir, "-input", tmp_path / "run", "-metrics-only")
