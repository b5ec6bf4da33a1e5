"""-sweep: every codec on one file, its JSON, and its page as a browser draws it."""

import html
import json
import os
import re
import shutil
import subprocess

import numpy as np
import pytest
from cli_helpers import environment, run, run_ok, write_file


@pytest.fixture(scope="module")
def swept(bin_dir, sample, tmp_path_factory):
    """The JSON of a sweep of the sample, and its page."""
    page = tmp_path_factory.mktemp("sweep") / "report.html"
    done = run(bin_dir, "-sweep", "-input", sample, "-report", page)
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    lines = done.stderr.splitlines()
    assert len(lines) == len(result["specs"]) + len(result["refused"]), "one line of progress a spec"
    return result, page


def dump_dom(page, folder):
    chromium = shutil.which("chromium")
    if chromium is None:
        pytest.skip("no chromium: Debian's package chromium is not installed")
    done = subprocess.run([chromium, "--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={folder}",
                           "--dump-dom", page.as_uri()], capture_output=True, text=True, timeout=100)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_json_gives_each_spec_its_figures(swept):
    result, _ = swept
    assert result["tensors"] == 4 and result["original_size_bytes"] == 393216 and result["sampled"] is False
    assert result["memcpy_gb_per_s"] > 0
    specs = {spec["spec"]: spec for spec in result["specs"]}
    assert {"int4(group=64)", "int8(group=128)", "raw", "raw|zstd(level=19)"} <= set(specs)
    for spec in specs.values():
        assert spec["encode_gb_per_s"] > 0 and spec["decode_gb_per_s"] > 0, spec
        assert spec["bits_per_value"] == pytest.approx(16 / spec["compression_ratio"])
        for part in (spec, spec["keys"], spec["values"]):
            for figure in ("snr_db", "token_snr_db"):
                assert (part[figure] is None) == (part["max_error"] == 0), spec
    assert specs["raw"]["snr_db"] is None and specs["raw"]["cosine_similarity"] == 1
    assert specs["int8(group=64)"]["snr_db"] > specs["int4(group=64)"]["snr_db"] + 20


def test_keys_and_values_have_limits_of_their_own(bin_dir, sample, swept):
    """The published thresholds of the block-norm grid, whose 18 points every sweep has."""
    grid = {f"blocknorm(block={block},topk={topk},bits={bits})" for block in (64, 128, 256) for topk in (0.02, 0.05, 0.1)
            for bits in (8, 10)}
    assert grid <= {spec["spec"] for spec in swept[0]["specs"]}
    assert "limits" not in swept[0] and "within_limits" not in swept[0]["specs"][0]
    done = run(bin_dir, "-sweep", "-input", sample, "-max-key-mae", "0.01", "-max-value-mae", "0.002", "-min-key-cosine",
               "0.9999", "-min-value-cosine", "0.9999")
    result = json.loads(done.stdout)
    assert result["limits"] == {"max_key_mae": 0.01, "max_value_mae": 0.002, "min_key_cosine": 0.9999,
                                "min_value_cosine": 0.9999}
    within = [spec for spec in result["specs"] if spec["within_limits"]]
    for spec in result["specs"]:
        keys, values = spec["keys"], spec["values"]
        keeps = (keys["mean_abs_error"] <= 0.01 and values["mean_abs_error"] <= 0.002 and
                 keys["cosine_similarity"] >= 0.9999 and values["cosine_similarity"] >= 0.9999)
        assert keeps == spec["within_limits"], spec["spec"]
    assert 0 < len(within) < len(result["specs"])
    smallest = max(within, key=lambda spec: spec["compression_ratio"])
    assert result["smallest_within_limits"] == smallest["spec"]
    # A limit on keys says nothing of values.
    assert any(spec["keys"]["mean_abs_error"] <= 0.01 and not spec["within_limits"] for spec in result["specs"])


def test_names_are_points_or_stand_beside_theirs(bin_dir, sample, swept, tmp_path):
    named = {spec["name"]: spec for spec in swept[0]["specs"] if spec["name"] is not None}
    assert set(named) == {"kv4", "kv3", "kv2", "lossless", "lossless-fast", "near-lossless", "int8", "int4", "mixed"}
    assert named["int8"]["spec"] == "int8(group=64)" and named["mixed"]["spec"] == "mixed"
    for name, spec in named.items():
        report = run_ok(bin_dir, "-input", sample, "-output", tmp_path / "small.safetensors", "-codec", name)
        assert report["compression_ratio"] == spec["compression_ratio"], name


def test_the_names_for_keys_and_values_lead(swept):
    assert [spec["spec"] for spec in swept[0]["specs"][:3]] == ["kv4", "kv3", "kv2"]
    assert not [spec["spec"] for spec in swept[0]["specs"] if "theta" in spec["spec"] or "start" in spec["spec"]]


def test_keys_are_turned_back_as_flags_or_metadata_say(bin_dir, tmp_path):
    random = np.random.default_rng(1)
    token = np.arange(128)[:, None] * 10000.0 ** (-np.arange(32) / 32)
    turned = np.concatenate([np.cos(token), np.sin(token)], axis=1)  # of one vector, at each position
    keys = (turned + 0.1 * random.standard_normal((1, 1, 128, 64))).astype(np.float16)
    write_file(tmp_path / "plain", {"layer_0_key": keys})
    write_file(tmp_path / "told", {"layer_0_key": keys}, metadata={"rope_theta": "10000"})
    swept = {}
    for name, flags in (("none", ["-input", "plain"]), ("flags", ["-input", "plain", "-rope-theta", "10000"]),
                        ("metadata", ["-input", "told"])):
        done = run(bin_dir, "-sweep", *flags, cwd=tmp_path)
        assert done.returncode == 0, done.stderr
        swept[name] = json.loads(done.stdout)
        assert ("Warning: the keys' rotary embedding is not known" in done.stderr) == (name == "none")
    assert swept["none"]["rotary"] is None
    for name in ("flags", "metadata"):
        assert swept[name]["rotary"] == {"theta": 10000, "pairs": "half", "dims": 0, "offset": 0, "start": 0, "scaling": None, "from": name}
        assert swept[name]["specs"][1]["snr_db"] > swept["none"]["specs"][1]["snr_db"] + 3
        command = swept[name]["specs"][1]["command"]
        assert ("-codec kv3 -rope-theta 10000 " in command) == (name == "flags")
        run_ok(bin_dir, *command.split()[1:], cwd=tmp_path)


@pytest.mark.parametrize("kind, codec, warns", [("key", "int4", False), ("key", "int4 kv3", True),
                                                ("value", "kv3", False)])
def test_rotation_is_missed_only_where_a_codec_would_have_undone_it(bin_dir, tmp_path, kind, codec, warns):
    values = np.random.default_rng(1).standard_normal((1, 1, 128, 64)).astype(np.float16)
    write_file(tmp_path / "in", {f"layer_0_{kind}": values})
    done = run(bin_dir, "-sweep", "-input", tmp_path / "in", "-codec", codec)
    assert done.returncode == 0, done.stderr
    assert ("Warning: the keys' rotary embedding is not known" in done.stderr) == warns


def test_what_is_on_the_front_is_beaten_by_none(swept):
    specs = swept[0]["specs"]
    for kind in ("all", "keys", "values"):
        figure = "token_snr_db" if kind == "keys" else "snr_db"
        points = [(part["bits_per_value"], float("inf") if part[figure] is None else part[figure])
                  for part in (spec if kind == "all" else spec[kind] for spec in specs)]
        for spec, (bits, snr) in zip(specs, points):
            beaten = any(b <= bits and s >= snr and (b, s) != (bits, snr) for b, s in points)
            repeated = points.index((bits, snr)) != specs.index(spec)
            assert (kind in spec["pareto"]) == (not beaten and not repeated), (kind, spec["spec"])


def test_every_command_of_the_front_gives_what_the_table_says(bin_dir, swept, tmp_path):
    front = [spec for spec in swept[0]["specs"] if spec["pareto"]]
    assert len(front) >= 5
    for spec in front:
        done = subprocess.run(spec["command"], shell=True, capture_output=True, text=True, timeout=100, cwd=tmp_path,
                              env=environment(PATH=f"{bin_dir}:{os.environ['PATH']}"))
        assert done.returncode == 0, done.stderr
        result = json.loads(done.stdout)
        assert result["codec"] == ("profile" if spec["spec"] in ("mixed", "kv4", "kv3", "kv2") else spec["spec"])
        assert result["compression_ratio"] == spec["compression_ratio"]
        assert result["compressed_size_bytes"] == (tmp_path / "small.safetensors").stat().st_size
        figures = [figure for figure in ("snr_db", "cosine_similarity", "rmse") if result[figure] is not None]
        for figure in figures:
            assert result[figure] == pytest.approx(spec[figure], rel=1e-4), figure
        assert (result["snr_db"] is None) == (spec["snr_db"] is None)
        assert result["max_error"] == spec["max_error"]


def test_the_page_loads_nothing(swept):
    text = swept[1].read_text()
    assert not re.search(r"https?:|src=|@import|url\(|<link|fetch\(|XMLHttp|import\(", text)
    assert "default-src 'none'" in text


def test_a_browser_draws_every_point(swept, tmp_path):
    result, page = swept
    dom = dump_dom(page, tmp_path)
    head = re.search(r"<html[^>]*>", dom).group()
    assert "data-error" not in head and f'data-drawn="{len(result["specs"])}"' in head
    for kind in ("keys", "values"):
        plot = re.search(rf'<svg [^>]*id="plot-{kind}".*?</svg>', dom, re.S).group()
        assert (">token SNR, dB<" in plot) == (kind == "keys")
        assert plot.count("<circle") == len(result["specs"])
        assert plot.count("<polyline") == 1
        assert "NaN" not in plot and "undefined" not in plot and "Infinity" not in plot
    families = re.findall(r'background: (#\w+)"></i>([^<]+)<', dom)
    assert len({colour for colour, _ in families}) == len(families) and ("transform, kv" in dict(map(reversed, families)))
    assert set(re.findall(r'<circle[^>]* fill="(#\w+)"', dom)) == {colour for colour, _ in families}
    bars = re.search(r'<svg [^>]*id="plot-bars".*?</svg>', dom, re.S).group()
    assert bars.count('class="bar"') == 3 * len(result["specs"]) and "NaN" not in bars
    heat = re.search(r'<svg [^>]*id="plot-heat".*?</svg>', dom, re.S).group()
    assert heat.count('class="cell"') == 4
    assert "Keys were turned back by a rotary embedding of theta 100000, from the metadata" in html.unescape(dom)
    shown = [html.unescape(text) for text in re.findall(r'<code class="command">(.*?)</code>', dom)]
    assert sorted(shown) == sorted(spec["command"] for spec in result["specs"] if spec["pareto"])


POINT_AND_CLICK = """<script>
const point = document.querySelector('#plot-keys circle[data-i="3"]');
const at = {bubbles: true, clientX: 300, clientY: 300};
point.dispatchEvent(new PointerEvent('pointermove', at));
document.documentElement.dataset.tip = document.getElementById('tip').textContent;
document.documentElement.dataset.hot = document.querySelectorAll('circle.hot').length;
point.dispatchEvent(new MouseEvent('click', at));
document.documentElement.dataset.chosen = document.getElementById('spec').value;
document.getElementById('figure').value = 'relative';
document.getElementById('figure').dispatchEvent(new Event('change'));
</script></body>"""


def test_pointing_tells_and_a_click_chooses(swept, tmp_path):
    result, page = swept
    (tmp_path / "used.html").write_text(page.read_text().replace("</body>", POINT_AND_CLICK))
    dom = dump_dom(tmp_path / "used.html", tmp_path / "profile")
    head = re.search(r"<html[^>]*>", dom).group()
    assert "data-error" not in head and 'data-hot="2"' in head and 'data-chosen="3"' in head
    spec = result["specs"][3]
    label = spec["spec"] if spec["name"] in (None, spec["spec"]) else f'{spec["name"]} = {spec["spec"]}'
    assert html.unescape(head).split('data-tip="')[1].startswith(f'{label}\nratio {spec["compression_ratio"]:.3f}')
    assert re.search(r'id="plot-heat".* %; the stronger the colour', dom, re.S)


def test_hostile_names_and_refused_values_are_drawn_as_text(bin_dir, tmp_path):
    name = "</script><img src=x onerror=document.title='owned'>"
    values = np.random.default_rng(1).standard_normal(256).astype(np.float32)
    values[3] = np.nan
    write_file(tmp_path / "it's <b>.safetensors", {name: values})
    result = run_ok(bin_dir, "-sweep", "-input", "it's <b>.safetensors", "-report", "r.html", cwd=tmp_path)
    assert "int4(group=64)" in [refused["spec"] for refused in result["refused"]]
    assert all(refused["error"] for refused in result["refused"])
    dom = dump_dom(tmp_path / "r.html", tmp_path / "profile")
    head = re.search(r"<html[^>]*>", dom).group()
    assert "data-error" not in head and f'data-drawn="{len(result["specs"])}"' in head
    assert "No rotary embedding was undone, for none is known" in html.unescape(dom)
    assert "<img" not in dom and "<title>owned" not in dom
    assert "it's &lt;b&gt;.safetensors</h1>" in dom
    assert result["specs"][0]["command"].count(r"'it'\''s <b>.safetensors'") == 1


def test_break_even_of_the_codecs_that_are_asked_for(bin_dir, sample, tmp_path):
    """Every figure of a link follows from the ratio and the two speeds."""
    done = run(bin_dir, "-sweep", "-input", sample, "-codec", "int4 kv3 lossless-fast raw", "-threads", "2",
               "-bandwidth", "25Gbit/s, 300MB/s", "-context-tokens", "4096")
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    assert [spec["name"] or spec["spec"] for spec in result["specs"]] == ["int4", "kv3", "lossless-fast", "raw"]
    assert result["threads"] == 2 and result["context_tokens"] == 4096 and result["chunk_tokens"] == 256
    assert result["bytes_per_token"] == result["original_size_bytes"] / 256
    assert [(link["bandwidth"], link["bytes_per_second"]) for link in result["links"]] == [("25Gbit/s", 3.125e9), ("300MB/s", 3e8)]
    chunk, context = (result["bytes_per_token"] * tokens for tokens in (256, 4096))
    for spec in result["specs"]:
        ratio, encode, decode = spec["compression_ratio"], 1e9 * spec["encode_gb_per_s"], 1e9 * spec["decode_gb_per_s"]
        below = spec["pays_below_bytes_per_second"]
        if ratio <= 1:
            assert {value for part in below.values() for value in part.values()} == {0}
        else:
            assert below["store"] == pytest.approx({"serial": encode * (1 - 1 / ratio), "pipelined": encode})
            assert below["load"] == pytest.approx({"serial": decode * (1 - 1 / ratio), "pipelined": decode})
            at = below["both"]["serial"]
            assert 2 / at == pytest.approx(1 / encode + 1 / decode + 2 / ratio / at)
            at = below["both"]["pipelined"]
            assert 2 / at == pytest.approx(max(1 / encode, 1 / ratio / at) + max(1 / decode, 1 / ratio / at))
        for link, of_link in zip(spec["links"], result["links"]):
            rate = of_link["bytes_per_second"]
            assert of_link["uncompressed_context_seconds"] == pytest.approx(context / rate)
            assert link["store_chunk_seconds"]["serial"] == pytest.approx(chunk / encode + chunk / ratio / rate)
            assert link["load_chunk_seconds"]["pipelined"] == pytest.approx(max(chunk / decode, chunk / ratio / rate))
            saved = context / rate - context / decode - context / ratio / rate
            assert link["saved_first_token_seconds"]["serial"] == pytest.approx(saved)
    assert result["specs"][3]["compression_ratio"] < 1  # raw has headers besides the values


def test_a_table_for_a_terminal(bin_dir, sample):
    done = run(bin_dir, "-sweep", "-input", sample, "-format", "table", "-bandwidth", "25Gbit/s")
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert lines[0].endswith("4 tensors, 0.39 MB; 1 thread, memcpy " + lines[0].split()[-2] + " GB/s")
    heads = [i for i, line in enumerate(lines) if line.endswith(" codec")]
    assert len(heads) == 2 and lines[heads[1] - 1] == "25Gbit/s (3.125 GB/s), milliseconds: 32768 tokens take 16.1 uncompressed"
    rows = [line.split()[-1] for line in lines[heads[0] + 1:lines.index("", heads[0])]]
    assert {"kv4", "kv3", "kv2", "lossless", "lossless-fast", "int8", "int4", "mixed"} <= set(rows) and len(rows) < 40
    assert [line.split()[-1] for line in lines[heads[1] + 1:]] == ["uncompressed", *rows]


def test_artifacts_are_swept_where_they_are_named(bin_dir, sample, tmp_path):
    made = run_ok(bin_dir, "-calibrate", "-input", sample, "-rope-theta", "100000", "-output", tmp_path / "model.kvcal", "-group-dim", "64")
    spec = f"kv(bits=3,artifact={made['artifact']})"
    done = run(bin_dir, "-sweep", "-input", sample, "-codec", f"kv3 {spec}", "-artifacts", tmp_path)
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    assert [found["spec"] for found in result["specs"]] == ["kv3", spec] and not result["refused"]
    command = result["specs"][1]["command"].replace("small.safetensors", str(tmp_path / "small.safetensors"))
    assert f"-artifacts {tmp_path}" in command
    report = json.loads(subprocess.run(command, shell=True, capture_output=True, text=True, timeout=100, check=True,
                                       env=environment(PATH=f"{bin_dir}:{os.environ['PATH']}")).stdout)
    assert report["compression_ratio"] == result["specs"][1]["compression_ratio"]
    missing = run(bin_dir, "-sweep", "-input", sample, "-codec", spec, "-artifacts", bin_dir)
    assert missing.returncode == 1 and made["artifact"] in missing.stderr and missing.stdout == ""


def test_codecs_without_their_artifact_are_left_out_by_name(bin_dir, sample, tmp_path):
    none = "kv(bits=3,artifact=" + "0" * 32 + ")"
    done = run(bin_dir, "-sweep", "-input", sample, "-codec", f"{none} int4 kv3", "-artifacts", tmp_path)
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    assert [found["spec"] for found in result["specs"]] == ["int4(group=64)", "kv3"]
    (refused,) = result["refused"]
    assert refused["spec"] == none and "0" * 32 in refused["error"]
    assert f"Warning: {none} is left out: {refused['error']}\n" in done.stderr
    page = tmp_path / "page.html"
    alone = run(bin_dir, "-sweep", "-input", sample, "-codec", f"{none} {none.replace('3', '2')}", "-artifacts", tmp_path,
                "-report", page)
    assert alone.returncode == 1 and alone.stdout == "" and "0" * 32 in alone.stderr.splitlines()[-1]
    assert not page.exists()


def test_a_large_file_is_sampled_and_the_page_says_so(bin_dir, tmp_path):
    values = np.random.default_rng(1).standard_normal((3, 8, 2048, 128)).astype(np.float16)
    tensors = {f"layer_{i}_{kind}": values for i in range(2) for kind in ("key", "value")}
    write_file(tmp_path / "large.safetensors", tensors)
    result = run_ok(bin_dir, "-sweep", "-input", "large.safetensors", "-report", "r.html", cwd=tmp_path)
    assert result["sampled"] is True and result["original_size_bytes"] == 4 * values.nbytes
    assert 24 << 20 <= result["measured_size_bytes"] <= 32 << 20
    ratio = {spec["spec"]: spec["compression_ratio"] for spec in result["specs"]}["int4(group=64)"]
    whole = run_ok(bin_dir, "-input", "large.safetensors", "-metrics-only", cwd=tmp_path)
    assert ratio == pytest.approx(whole["compression_ratio"], rel=0.001)


@pytest.mark.parametrize("args, text", [
    (["-sweep", "-input", "none"], "read input: open none: no such file or directory"),
    (["-sweep", "-input", "{packed}"], "input is already a compressed file: decompress it first"),
    (["-sweep", "-input", "{flat}", "-bandwidth", "3GB/s"], "-bandwidth counts the bytes of a token, and no tensor is named "
                                                             "layer_{i}_key or layer_{i}_value and of rank 4 with a token in it"),
    (["-sweep", "-input", "{sample}", "-report", "no/r.html"], "write report: open no/r.html: no such file or directory"),
])
def test_errors(bin_dir, sample, tmp_path, args, text):
    run_ok(bin_dir, "-input", sample, "-output", tmp_path / "packed")
    write_file(tmp_path / "flat", {"layer_0_key": np.ones((4, 4), np.float16)})
    done = run(bin_dir, *[arg.format(sample=sample, packed="packed", flat="flat") for arg in args], cwd=tmp_path)
    assert done.returncode == 1 and done.stdout == "" and done.stderr == f"Error: {text}\n"
