"""Fisher metrics in files, in words, and as tiers: the golden cases, targets, groups, and what is refused."""

import csv
import json
import math

import pytest
from kvcompress import InvalidArgument
from kvcompress.calibration import CompressionConfig
from kvcompress.calibration.fisher_report import FisherRun, read_runs, summary_text, write_runs
from kvcompress.calibration.fisher_tiers import config_document, config_summary, tier_of, write_config


def run(heads, name="first", config=None, **others):
    metrics = {f"fisher/layer{layer}/head{head}/{metric}": value
               for (layer, head), values in heads.items() for metric, value in values.items()}
    return FisherRun(name, {**metrics, **others}, config or {})


# trace, cond, the rank that the tiers give; both bounds of each are strict.
GOLDEN = [
    (0.95, 2e7, 16), (0.90, 2e7, 16), (0.8999, 1.0000001e7, 8), (0.5, 1e7, 16), (0.5, 1e6, 32), (0.9501, 2e7, 64),
    (0.95, 1e3, 32), (0.9, 1.0000001e6, 16), (0.0, 2e7, 8), (0.0, 0.0, 32),
]


@pytest.mark.parametrize(("trace", "cond", "rank"), GOLDEN)
def test_golden_tiers(trace, cond, rank):
    document = config_document(run({(0, 0): {"trace": trace, "cond": cond}, (0, 1): {"cond": 2e7}}), target=0)
    fields = document["per_layer_head"]["layer0/head0"]
    assert (fields["rank"], fields["enabled"], fields["algo"]) == (
        (64, False, "none") if rank == 64 else (rank, True, "kvsplice"))
    assert fields["compression_ratio"] == 1 - rank / 64


@pytest.mark.parametrize(("metrics", "tier"), [
    ({}, "moderate"), ({"cond": 2e7}, "excellent"), ({"trace": 0.2}, "moderate"), ({"trace": 0.96}, "critical"),
])
def test_missing_metrics_have_the_values_of_the_middle(metrics, tier):
    assert tier_of(metrics) == tier
    fields = config_document(run({(0, 0): {"eig_top0": 0.0, **metrics}}), target=0)["per_layer_head"]["layer0/head0"]
    assert fields["metrics"] == {"trace": 0.5, "cond": 1e3, "eigmax": 0.05} | metrics


TIERS = {(0, 0): {"trace": 0.96, "cond": 2e7, "eigmax": 0.2}, (0, 1): {"trace": 0.85, "cond": 2e7, "eigmax": 0.2},
         (1, 0): {"trace": 0.95, "cond": 2e7, "eigmax": 0.2}, (1, 1): {"trace": 0.5, "cond": 1e5, "eigmax": 0.001}}


def test_the_document_field_for_field():
    assert config_document(run(TIERS), target=0.5) == {
        "target_memory_reduction": 0.5, "d_head": 64, "algo_default": "kvsplice",
        "per_layer_head": {
            "layer0/head0": {"enabled": False, "rank": 64, "algo": "none", "compression_ratio": 0.0,
                             "reason": "CRITICAL: trace=0.960 (>0.95)", "metrics": TIERS[0, 0]},
            "layer0/head1": {"enabled": True, "rank": 8, "algo": "kvsplice", "compression_ratio": 0.875,
                             "reason": "EXCELLENT: cond=2.00e+07, trace=0.850", "metrics": TIERS[0, 1]},
            "layer1/head0": {"enabled": True, "rank": 16, "algo": "kvsplice", "compression_ratio": 0.75,
                             "reason": "GOOD: cond=2.00e+07, trace=0.950", "metrics": TIERS[1, 0]},
            "layer1/head1": {"enabled": True, "rank": 32, "algo": "kvsplice", "compression_ratio": 0.5,
                             "reason": "MODERATE: cond=1.00e+05, trace=0.500", "metrics": TIERS[1, 1]},
        },
        "compression_summary": {"critical": ["layer0/head0"], "excellent": ["layer0/head1"],
                                "good": ["layer1/head0"], "moderate": ["layer1/head1"]},
        "expected_kv_memory_savings": "53.1%", "actual_memory_reduction": 0.53125,
        "summary_stats": {"total_heads": 4, "critical_heads": 1, "excellent_targets": 1, "good_targets": 1,
                          "moderate_targets": 1, "total_original_params": 512, "total_compressed_params": 240},
    }


def test_a_document_is_a_config_that_saves_what_it_says():
    document = config_document(run(TIERS), target=0.5)
    config = CompressionConfig.of_json(json.loads(json.dumps(document)))
    assert config.savings(2, 2) == document["actual_memory_reduction"]
    assert [config.head(0, 1).rank, config.head(0, 0).enabled] == [8, False]


def test_heads_without_metrics_count_in_savings():
    """Metrics of the first and the last layer alone: the layers between stay as they are."""
    logged = {(0, 0): {"cond": 2e7}, (11, 0): {"cond": 2e7}}
    document = config_document(run(logged), target=0)
    assert document["summary_stats"]["total_heads"] == 12
    assert document["actual_memory_reduction"] == pytest.approx(2 * 0.875 / 12)
    assert "Heads without metrics (NO compression): 10" in config_summary(document, "c.json")
    told = config_document(run(logged, config={"num_hidden_layers": 20, "n_head": 3}), target=0)
    assert told["summary_stats"]["total_heads"] == 60
    assert told["actual_memory_reduction"] == CompressionConfig.of_json(told).savings(20, 3)


@pytest.mark.parametrize("target", [0.55, 0.6, 0.7, 0.73])
def test_ranks_are_scaled_until_the_target_is_met(target):
    document = config_document(run(TIERS), target=target)
    assert target <= document["actual_memory_reduction"] < target + 0.05
    ranks = [fields["rank"] for fields in document["per_layer_head"].values()]
    assert ranks[0] == 64
    assert all(1 <= rank < tier for rank, tier in zip(ranks[1:], (8, 16, 32), strict=True))
    assert ranks[1] <= ranks[2] <= ranks[3]
    assert document["target_memory_reduction"] == target
    assert document["compression_summary"]["excellent"] == ["layer0/head1"]


def test_a_target_that_is_met_changes_nothing_and_one_that_cannot_be_is_an_error():
    assert config_document(run(TIERS), target=0.53125)["actual_memory_reduction"] == 0.53125
    with pytest.raises(InvalidArgument, match=r"of 75\.0% cannot be met: at most 73\.8% can, .* the 1 of 4 that stay"):
        config_document(run(TIERS), target=0.75)
    for target in (math.nan, -0.1, 1.5):
        with pytest.raises(InvalidArgument, match="between 0 and 1"):
            config_document(run(TIERS), target=target)


def test_a_group_takes_the_greatest_trace_and_the_smallest_cond():
    heads = {(0, 0): {"trace": 0.2, "cond": 2e7, "eigmax": 0.2}, (0, 1): {"trace": 0.92, "cond": 5e7, "eigmax": 0.5},
             (0, 2): {"trace": 0.3, "cond": 2e7, "eigmax": 0.2}, (0, 3): {"trace": 0.3, "cond": 3e6, "eigmax": 0.03},
             (1, 0): {"trace": 0.2, "cond": 2e7, "eigmax": 0.2}, (1, 1): {"trace": 0.97, "cond": 1e3, "eigmax": 0.1},
             (1, 2): {"trace": 0.2, "cond": 2e7, "eigmax": 0.2}}
    document = config_document(run(heads), target=0, queries_per_key=2)
    assert {key: (fields["rank"], fields["metrics"]) for key, fields in document["per_layer_head"].items()} == {
        "layer0/head0": (16, {"trace": 0.92, "cond": 2e7, "eigmax": 0.5}),
        "layer0/head1": (16, {"trace": 0.3, "cond": 3e6, "eigmax": 0.2}),
        "layer1/head0": (64, {"trace": 0.97, "cond": 1e3, "eigmax": 0.2}),
        "layer1/head1": (32, {"trace": 0.5, "cond": 1e3, "eigmax": 0.2}),
    }, "a reader without metrics counts as the middle"
    assert document["summary_stats"]["total_heads"] == 4
    by_query = CompressionConfig.of_json(config_document(run(heads), target=0)).grouped(2)
    of_group = CompressionConfig.of_json(document)
    for head in ((0, 0), (0, 1), (1, 0)):
        assert (by_query.head(*head).enabled, by_query.head(*head).rank) == (
            of_group.head(*head).enabled, of_group.head(*head).rank)
    with pytest.raises(InvalidArgument, match="at least 1"):
        config_document(run(heads), queries_per_key=0)


@pytest.mark.parametrize(("d_head", "cond", "text"), [
    (4, 2e7, "layer3/head1: d_head 4 is below the lowest rank, 8"),
    (7, 2e7, "layer3/head1: d_head 7"),
    (16, 1e3, "layer3/head1: rank 32 of its tier, moderate, is above d_head 16"),
])
def test_heads_too_small_for_their_rank_are_named(d_head, cond, text):
    with pytest.raises(InvalidArgument) as failed:
        config_document(run({(3, 1): {"cond": cond}}), target=0, d_head=d_head)
    assert text in str(failed.value)


def test_a_run_without_heads_has_no_config():
    with pytest.raises(InvalidArgument, match="run first has no Fisher metrics of heads"):
        config_document(run({}, **{"fisher/trace_global_mean": 0.5}))


@pytest.mark.parametrize("value", [math.nan, math.inf, "NaN", "none", None])
def test_what_is_no_number_is_refused_with_its_head(tmp_path, value):
    path = tmp_path / "fim_metrics_p.json"
    summary = {"fisher/layer2/head3/trace": value}
    path.write_text(json.dumps([{"run_info": {"display_name": "odd"}, "summary_metrics": summary}]))
    with pytest.raises(InvalidArgument, match="run odd: layer2/head3/trace is "):
        read_runs(path)


def test_configs_and_their_summaries_are_two_files(tmp_path):
    document = config_document(run(TIERS), target=0.25)
    summary = write_config(document, tmp_path / "mine.json")
    assert summary == tmp_path / "mine_summary.txt"
    assert json.loads((tmp_path / "mine.json").read_text()) == document
    assert sorted(path.name for path in tmp_path.iterdir()) == ["mine.json", "mine_summary.txt"]
    with pytest.raises(InvalidArgument, match=r"ends in \.json"):
        write_config(document, tmp_path / "mine")
    assert not (tmp_path / "mine").exists()


def test_the_summary_of_a_config():
    heads = {(0, head): {"trace": 0.85, "cond": 2e7} for head in range(7)} | {(1, 0): {"trace": 0.96}}
    text = config_summary(config_document(run(heads), target=0.375), "c.json")
    for line in ("FIM-Guided KV Cache Compression Configuration", "Target memory reduction: 38%",
                 "Expected KV memory savings: 43.8%", "=== Compression Summary ===",
                 "Critical heads (NO compression): 1", "Excellent targets (rank=8, ~88% compression): 7",
                 "Good targets (rank=16, ~75% compression): 0", "Moderate targets (rank=32, ~50% compression): 0",
                 "Total parameters: 1,792 → 1,008 (43.8% reduction)", "Excellent heads:",
                 "  layer0/head4: EXCELLENT: cond=2.00e+07, trace=0.850", "  ... and 2 more", "Critical heads:",
                 "Usage Instructions"):
        assert line in text.splitlines(), line
    assert "layer0/head5" not in text
    assert "Good heads:" not in text
    scaled = config_summary(config_document(run(TIERS), target=0.7), "c.json")
    assert "Excellent targets (rank=1, ~98% compression): 1" in scaled


def example_runs():
    first = run({(0, 0): {"trace": 0.25, "cond": 5e2, "eigmax": 0.0, "energy_r8": 0.5, "energy_r16": 0.93},
                 (0, 1): {"trace": 0.75, "cond": 5e2, "eigmax": 0.0}}, "first", {"n_layer": 1},
                **{"fisher/trace_global_mean": 0.5, "fisher/layer0/eigmax_mean": 0.0})
    return [first, run({(0, 0): {"trace": 0.0, "cond": 2e7, "eigmax": 0.25}}, "second")]


def test_files_are_read_as_they_are_written(tmp_path):
    runs = example_runs()
    as_json, as_csv = write_runs(runs, tmp_path, "mine")
    assert (as_json.name, as_csv.name) == ("fim_metrics_mine.json", "fim_summary_mine.csv")
    document = json.loads(as_json.read_text())
    assert list(document[0]) == ["run_info", "config", "summary_metrics", "history"]
    assert list(document[0]["run_info"]) == ["entity", "project", "run_name", "display_name", "run_id", "url", "state",
                                             "created_at"]
    rows = list(csv.reader(as_csv.read_text().splitlines()))
    assert rows[0] == ["run_name", "layer", "head", "metric", "value"]
    assert ["first", "global", "all", "trace_global_mean", "0.5"] in rows
    assert ["first", "layer0", "all", "eigmax_mean", "0.0"] in rows
    assert ["first", "layer0", "head1", "trace", "0.75"] in rows
    from_json, from_csv = read_runs(as_json), read_runs(as_csv)
    assert [(one.name, one.metrics, one.heads, one.config) for one in from_json] == [
        (one.name, one.metrics, one.heads, one.config) for one in runs]
    assert [(one.name, one.metrics, one.heads) for one in from_csv] == [
        (one.name, one.metrics, one.heads) for one in runs]


def test_steps_with_what_json_does_not_know_are_left_out_of_files(tmp_path):
    odd = [{"_step": 1, "loss": math.nan}, {"_step": 3, "p": {"bins": [0.5, math.inf]}}]
    whole = [{"_step": 0, "loss": 3.0}, {"_step": 2, "note": "NaN"}]
    config = {"n_layer": 1, "grad_clip": math.inf}
    one = FisherRun("r", {"fisher/layer0/head0/trace": 0.5}, config, {}, [whole[0], odd[0], whole[1], odd[1]])
    assert one.left_out == "2 of 4 steps of its history and 1 of 2 fields of its config"
    as_json, _ = write_runs([one], tmp_path, "mine")
    (document,) = json.loads(as_json.read_text())
    assert document["history"] == whole
    assert document["config"] == {"n_layer": 1}
    assert example_runs()[0].left_out == read_runs(as_json)[0].left_out == ""


def test_files_of_the_service_are_read(tmp_path):
    """With what else a run logs, and with layers and heads as numbers alone."""
    path = tmp_path / "fim_metrics_p.json"
    path.write_text(json.dumps([{
        "run_info": {"run_name": "r-1", "display_name": "shown", "run_id": "1"}, "config": {"n_head": 12},
        "summary_metrics": {"loss": 3.1, "fisher/layer0/head0/trace": 1,
                            "fisher/layer0/head0/p": {"_type": "histogram"}, "_wandb": {"runtime": 3}},
        "history": [{"_step": 0}]}]))
    (one,) = read_runs(path)
    assert (one.name, one.metrics, one.config) == ("shown", {"fisher/layer0/head0/trace": 1.0}, {"n_head": 12})
    table = tmp_path / "fim_summary_p.csv"
    table.write_text("run_name,layer,head,metric,value\nr,0,11,trace,0.5\nr,global,all,trace_global_mean,0.25\n")
    (two,) = read_runs(table)
    assert two.metrics == {"fisher/layer0/head11/trace": 0.5, "fisher/trace_global_mean": 0.25}


@pytest.mark.parametrize(("content", "text"), [
    ("{}", "is a list of runs"), ("[3]", "a run is an object"), ("[", "Expecting"),
    ("a,b\n1,2\n", "the columns run_name"), ("", "the columns run_name"),
    ('[{"summary_metrics": []}]', "a run is an object"), ("[" * 100_000, "recursion"),
    ('[{"summary_metrics": {}, "run_info": [1]}]', "a run is an object"),
    ('[{"summary_metrics": {}, "config": 5}]', "a run is an object"),
    ('[{"summary_metrics": {}, "history": [1]}]', "a run is an object"),
    ('[{"summary_metrics": {"fisher/trace": 1%s}}]' % ("0" * 400), "which is no number"),
    ("run_name,layer,head,metric,value\nr,0\n", "line 2: a row has the columns run_name"),
    ("run_name,layer,head,metric,value\nr,0,0,trace,%s\n" % ("1" * 200_000), "field larger than"),
])
def test_files_of_another_kind_are_refused(tmp_path, content, text):
    path = tmp_path / "file"
    path.write_text(content)
    with pytest.raises(InvalidArgument, match=text) as failed:
        read_runs(path)
    assert str(path) in str(failed.value)
    with pytest.raises(InvalidArgument, match="No such file"):
        read_runs(tmp_path / "none")


def test_numbers_that_no_model_has_are_of_no_head():
    assert FisherRun("r", {f"fisher/layer{'9' * 5000}/head0/trace": 1.0}).heads == {}


def test_the_summary_of_runs():
    text = summary_text(example_runs())
    order = ["FIM (Fisher Information Matrix) Analysis Summary", "=== Per-Run FIM Summaries ===", "Run: first",
             "  Mean trace: 0.5", "  Mean top eigenvalue: 0", "  Mean cond: 500 (well-conditioned)",
             "  Mean energy_r8: 0.5 (spread over many directions)", "  Mean energy_r16: 0.93 (low rank)",
             "  Effective rank: 16 (smallest logged r with mean energy >= 0.9)", "Run: second", "  Mean trace: 0",
             "  Mean cond: 2e+07 (extreme)", "  Mean energy_r8: not logged",
             "  Mean trace: highest 0.5 (first), lowest 0 (second): none, the lowest is 0",
             "  Mean cond: highest 2e+07 (second), lowest 500 (first): 40000.00x", "=== Top 5 by cond ===",
             "=== Top 5 by trace ===", "=== Top 5 by eigmax ===",
             "COMPRESSION TARGETS: Layers/Heads with LOWEST FIM Trace", "=== How to read this ==="]
    lines = iter(text.splitlines())
    for expected in order:
        assert expected in lines, expected  # after the one before


def test_layers_are_drawn_and_heads_are_listed():
    heads = {(layer, head): {"trace": (layer + head / 4) / 16} for layer in range(14) for head in range(2)}
    lines = summary_text([run(heads)]).splitlines()
    drawn = [line for line in lines if line.endswith("|")]
    assert [line.split()[0] for line in drawn] == [f"layer{layer}" for layer in range(12)], "the 12 of lowest trace"
    assert drawn[8].count("#") == round(40 * 8.125 / 16)
    lowest, highest = (lines.index(next(line for line in lines if word in line))
                       for word in ("of lowest trace,", "of highest trace,"))
    assert [line.split()[1] for line in lines[lowest + 1:lowest + 12] if line][:10] == [
        f"layer{index // 2}/head{index % 2}" for index in range(10)]
    assert lines[lowest + 11] == ""
    assert [line.split()[1] for line in lines[highest + 1:highest + 6]] == [
        f"layer{13 - index // 2}/head{1 - index % 2}" for index in range(5)]
    assert lines[highest + 6] == ""
    assert "Runs beside each other" not in "\n".join(lines)
