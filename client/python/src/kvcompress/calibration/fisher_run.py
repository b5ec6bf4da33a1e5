"""From Fisher metrics of a model to the ranks of its heads: the program kvcompress-analyze-fim.

    kvcompress-analyze-fim --model MODEL --text FILE --generate-compression-config

It measures the metrics on a text, or takes those of a file or of the service that has logged them, and writes what they
say: fim_summary.txt, and the compression_config.json that `calibrate_kv_compressor` reads. With --sensitivity it also
measures what errors in each head cost, and whether the metrics foretell that.
"""

import argparse
import contextlib
import datetime
import re
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from .._errors import InvalidArgument, KvCompressError
from ._artifact import find_program
from ._inputs import DTYPES, cache_dtype_of, check_tokens, load_model, texts
from ._program import count, ended
from ._whole_file import whole_file
from .fisher_report import FisherRun, fisher_only, read_runs, summary_text, write_runs
from .fisher_tiers import config_document, write_config

_ELSE = "give --metrics FILE, a file of metrics, or --model MODEL, on which they are measured"


def measured_run(
    model: Any,
    windows: Sequence[Any],
    name: str,
    *,
    project: str | None = None,
    text: str | None = None,
    progress: Callable[[float], object] = lambda part: None,
) -> FisherRun:
    """The metrics of `model` on `windows`, rows of token ids, as a run of `name`. InvalidArgument as fisher_metrics."""
    from .fisher import fisher_metrics

    metrics = fisher_metrics(model, windows, progress=progress)
    config = getattr(model.config, "get_text_config", lambda: model.config)()
    heads = config.num_attention_heads
    known = {
        "num_hidden_layers": config.num_hidden_layers,
        "num_attention_heads": heads,
        "num_key_value_heads": getattr(config, "num_key_value_heads", None) or heads,
        "head_dim": getattr(config, "head_dim", None) or config.hidden_size // heads,
    }
    measured = {"model": name, "dtype": str(model.dtype), "text": text, "window": len(windows[0])}
    now = datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds")
    info = {"project": project, "run_id": name, "state": "finished", "created_at": now}
    return FisherRun(name, metrics, {**known, **measured, "tokens": len(windows) * len(windows[0])}, info)


def logged_runs(entity: str, project: str) -> list[FisherRun]:
    """Of the hosted service. InvalidArgument, which says what to do instead, where its client package or a login is
    missing, or it cannot be reached."""
    try:
        import wandb
    except ImportError as error:
        raise InvalidArgument(
            "--entity and --project ask a hosted service, which needs its client and a login (pip install wandb, "
            f"wandb login); or {_ELSE}"
        ) from error
    try:
        return [_logged_run(run, entity, project) for run in wandb.Api().runs(f"{entity}/{project}")]
    except KvCompressError:
        raise
    except Exception as error:  # of its own kinds, which differ by version
        raise InvalidArgument(
            f"{entity}/{project} cannot be read from the hosted service ({error}); {_ELSE}"
        ) from error


def _logged_run(run: Any, entity: str, project: str) -> FisherRun:
    info = {
        **{"entity": entity, "project": project, "run_name": run.name, "display_name": run.name, "run_id": run.id},
        **{"url": run.url, "state": run.state, "created_at": str(run.created_at)},
    }
    history = run.history(pandas=False)
    return FisherRun(run.name, fisher_only(dict(run.summary), run.name), dict(run.config), info, history)


def run(args: argparse.Namespace) -> None:
    """All that the program does. InvalidArgument, ImportError and OSError say what is wrong."""
    folder = Path(args.output_dir)
    folder.mkdir(parents=True, exist_ok=True)
    config_path = folder / args.compression_config_output
    if args.generate_compression_config and config_path.suffix != ".json":
        raise InvalidArgument(
            f"--compression-config-output ends in .json, of which its summary's name is made: {config_path}"
        )
    if args.sensitivity:
        find_program()  # before minutes are spent on what comes first
    loaded = None
    if args.model is not None:
        loaded = load_model(args.model, device=None if args.device == "auto" else args.device, dtype=args.dtype)
    runs = _runs(args, loaded, folder)
    if args.run_name is not None:
        names = [one.name for one in runs]
        runs = [one for one in runs if one.name == args.run_name]
        if not runs:
            raise InvalidArgument(f"no run is called {args.run_name!r}; there are: {', '.join(names)}")
    summary = folder / args.output_summary
    with whole_file(summary) as file:
        file.write_text(summary_text(runs), encoding="utf-8")
    print(f"Summary: {summary}")
    if not args.generate_compression_config and not args.sensitivity:
        return
    with_heads = [one for one in runs if one.heads]
    if not with_heads:
        raise InvalidArgument("no run has Fisher metrics of heads")
    if len(with_heads) > 1:
        print(
            f"Warning: {len(with_heads)} runs, of which the first is taken, {with_heads[0].name}: --run-name chooses",
            file=sys.stderr,
        )
    if args.generate_compression_config:
        _generate(args, with_heads[0], config_path)
    if args.sensitivity:
        _measure_sensitivity(args, loaded, with_heads[0], folder)


def _runs(args: argparse.Namespace, loaded: Any, folder: Path) -> list[FisherRun]:
    """Those that have metrics to tell of; what was not read of a file is written."""
    if args.metrics is not None:
        runs = read_runs(args.metrics)
    else:
        project = args.project
        if args.model is None:
            runs = logged_runs(args.entity, project)
        else:
            name = Path(args.model).name.removesuffix(".gguf") or args.model
            project = project or re.sub(r"[^\w.-]", "_", name)
            windows = _windows(args, loaded, max(1, args.tokens // args.window))
            with _bar("Fisher metrics", args.quiet) as progress:
                runs = [measured_run(loaded[0], windows, name, project=project, text=args.text, progress=progress)]
        print("Metrics: {}, {}".format(*write_runs(runs, folder, project)))
        for one in runs:
            if one.left_out:
                warning = f"run {one.name}: {one.left_out} have NaN or infinities, and are left out"
                print(f"Warning: {warning}", file=sys.stderr)
    if not any(one.metrics for one in runs):
        raise InvalidArgument("no run has metrics under fisher/")
    return runs


def _windows(args: argparse.Namespace, loaded: Any, count: int) -> list[Any]:
    windows = texts(args.text, loaded[1], count, args.window)
    check_tokens(loaded[0], windows)
    return windows


def _shape(args: argparse.Namespace, one: FisherRun) -> tuple[int, int]:
    """Query heads that read a key/value head, and channels of one."""
    queries, known = args.queries_per_key, one.config
    if queries is None:
        heads, keys = (known.get(name) for name in ("num_attention_heads", "num_key_value_heads"))
        queries = heads // keys if isinstance(heads, int) and isinstance(keys, int) and keys > 0 else 1
    return queries, args.d_head or (known["head_dim"] if isinstance(known.get("head_dim"), int) else 64)


def _generate(args: argparse.Namespace, one: FisherRun, path: Path) -> None:
    queries, d_head = _shape(args, one)
    document = config_document(one, target=args.target_memory_reduction, d_head=d_head, queries_per_key=queries)
    print(f"Summary of the config: {write_config(document, path)}")
    print(f"Config: {path}, which saves {document['expected_kv_memory_savings']} of keys and values")


def _measure_sensitivity(args: argparse.Namespace, loaded: Any, one: FisherRun, folder: Path) -> None:
    from .sensitivity import measure_sensitivity
    from .sensitivity_report import plot, rows_of, sensitivity_text, verdict, write_table

    windows = _windows(args, loaded, args.sensitivity_windows)
    with _bar("Sensitivity", args.quiet) as progress:
        sensitivity = measure_sensitivity(
            loaded[0],
            windows,
            args.sensitivity_codec,
            read_tokens=min(64, args.window // 4),
            cache_dtype=cache_dtype_of(loaded[0]),
            artifacts=args.artifacts,
            progress=progress,
        )
    queries, d_head = _shape(args, one)
    rows = rows_of(sensitivity, one.heads, queries_per_key=queries, d_head=d_head)
    with whole_file(folder / "sensitivity.txt") as text:
        text.write_text(sensitivity_text(sensitivity, rows), encoding="utf-8")
    write_table(rows, folder / "sensitivity.csv")
    print(f"Sensitivity: {folder / 'sensitivity.txt'}, {folder / 'sensitivity.csv'}")
    try:
        plot(sensitivity, rows, folder / "sensitivity.png")
        print(f"Plot: {folder / 'sensitivity.png'}")
    except ImportError:
        print("No plot: matplotlib is not installed")
    print(verdict(rows))


@contextlib.contextmanager
def _bar(title: str, quiet: bool) -> Iterator[Callable[[float], object]]:
    """A progress bar on a terminal, where tqdm is installed."""
    try:
        from tqdm import tqdm
    except ImportError:
        yield lambda part: None
        return
    form = "{desc}: {percentage:3.0f}%|{bar}| {elapsed}<{remaining}"
    with tqdm(total=1.0, desc=title, disable=True if quiet else None, bar_format=form) as bar:
        yield lambda part: bar.update(part - bar.n)


def _arguments(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description="Read or measure the Fisher information of a model's attention, and choose ranks of heads by it.",
        epilog="Exit codes: 0; 1 after an error, which is one line on standard error; 2 for flags that do not fit.",
    )
    source = parser.add_argument_group("where metrics come from: one of these")
    source.add_argument("--entity", help="of a hosted service's project (with --project, wandb and a login)")
    source.add_argument("--project", help="of the hosted service; with --model: files are named after it")
    source.add_argument("--metrics", metavar="FILE", help="fim_metrics_PROJECT.json or fim_summary_PROJECT.csv")
    source.add_argument("--model", help="a directory, a GGUF file, or a name on the hub: they are measured")
    measure = parser.add_argument_group("how a model is measured")
    add = measure.add_argument
    add(
        "--text",
        default="wikitext",
        help='a text file, one "*.json" of token ids, or a data set on the hub (default %(default)s)',
    )
    add("--tokens", type=count, default=20000, metavar="N", help="of the text (default %(default)s)")
    add("--window", type=count, default=512, metavar="T", help="tokens that are read together (default %(default)s)")
    add("--device", default="auto", help="auto, cpu, cuda, ... (default %(default)s)")
    add("--dtype", choices=DTYPES, default="auto", help="that the model computes in (default auto: float32 on a CPU)")
    add("--quiet", action="store_true", help="no progress")
    add = parser.add_argument
    add("--output-dir", default=".", help="where all files go (default %(default)s)")
    add("--output-summary", default="fim_summary.txt", metavar="FILE", help="(default %(default)s)")
    add("--run-name", help="this run alone, by its display name")
    add("--generate-compression-config", action="store_true", help="choose ranks, too")
    add("--compression-config-output", default="compression_config.json", metavar="FILE.json",
        help="in --output-dir; FILE_summary.txt is beside it (default %(default)s)")  # fmt: skip
    add("--target-memory-reduction", type=float, default=0.5, metavar="PART",
        help="ranks are scaled down until they save it (default %(default)s)")  # fmt: skip
    add("--d-head", type=count, help="channels of a head (default: the model's, where it is known, else 64)")
    add("--queries-per-key", type=count, metavar="N",
        help="query heads that read one key/value head (default: the model's, else 1)")  # fmt: skip
    sensitive = parser.add_argument_group("what errors in one head cost, measured beside its tier (with --model)")
    add = sensitive.add_argument
    add("--sensitivity", action="store_true", help="KL where the keys or the values of one head alone are coded")
    add("--sensitivity-codec", default="int4(group=64)", metavar="SPEC", help="by this codec (default %(default)s)")
    add("--sensitivity-windows", type=count, default=4, metavar="N", help="of the text (default %(default)s)")
    add("--artifacts", metavar="DIR", help="of the artifacts that the codec names")
    args = parser.parse_args(arguments)
    if args.sensitivity and args.model is None:
        parser.error("--sensitivity needs --model; with --metrics FILE, too, the metrics are not measured anew")
    is_measured = args.model is not None and not (args.sensitivity and args.metrics is not None)
    ways = [args.metrics is not None, is_measured, args.entity is not None]
    if sum(ways) != 1 or (args.entity is not None and args.project is None):
        parser.error("metrics come from --entity and --project, from --metrics FILE, or from --model MODEL")
    return args


def main(arguments: Sequence[str] | None = None) -> int:
    """As _program.ended."""
    return ended(run, _arguments(arguments))
