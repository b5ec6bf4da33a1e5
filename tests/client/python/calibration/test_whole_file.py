"""Files that programs of calibration write, where the disk ends before they do."""

import contextlib
import json
import os
import resource
import stat

import pytest
from kvcompress.calibration._whole_file import whole_file
from kvcompress.calibration.fisher_report import FisherRun, write_runs
from kvcompress.calibration.fisher_run import main
from kvcompress.calibration.fisher_tiers import config_document, write_config


@contextlib.contextmanager
def files_end_at(size):
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)


def contents(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def interrupted(path):
    with whole_file(path) as file:
        file.write_text("half")
        raise KeyboardInterrupt


def run(name="first"):
    return FisherRun(name, {f"fisher/layer0/head{head}/{metric}": value for head in range(8)
                            for metric, value in (("trace", 0.5), ("cond", 2e7))})


@pytest.mark.parametrize("before", ["", "what was there"])
def test_a_file_that_ends_early_changes_nothing(tmp_path, before):
    path = tmp_path / "file.txt"
    if before:
        path.write_text(before)
    was = contents(tmp_path)
    with pytest.raises(OSError, match="File too large") as failed, files_end_at(4000), whole_file(path) as file:
        file.write_text("x" * 5000)
    assert failed.value.filename == str(path)
    assert contents(tmp_path) == was
    with pytest.raises(KeyboardInterrupt):
        interrupted(path)
    assert contents(tmp_path) == was
    with whole_file(path) as file:
        file.write_text("new")
    assert contents(tmp_path) == {"file.txt": b"new"}


def test_a_file_keeps_its_mode_and_links_stay_links(tmp_path):
    path, link = tmp_path / "file", tmp_path / "link"
    path.touch(0o640)
    link.symlink_to(path)
    with whole_file(link) as file:
        file.write_text("new")
    assert link.is_symlink()
    assert path.read_text() == "new"
    assert stat.S_IMODE(path.stat().st_mode) == 0o640
    with whole_file(os.devnull) as file:
        file.write_text("nothing")
    assert stat.S_ISCHR(os.stat(os.devnull).st_mode)
    with pytest.raises(FileNotFoundError) as failed, whole_file(tmp_path / "none" / "file") as file:
        file.write_text("new")
    assert failed.value.filename == str(tmp_path / "none" / "file")


def runs_of(folder):
    write_runs([run()], folder, "mine")


def config_of(folder):
    write_config(config_document(run(), target=0), folder / "c.json")


# Too few bytes for both files, and for the larger one.
@pytest.mark.parametrize(("write", "size"), [(runs_of, 100), (runs_of, 700), (config_of, 100), (config_of, 2000)])
def test_runs_and_configs_are_two_files_or_none(tmp_path, write, size):
    with pytest.raises(OSError, match="File too large"), files_end_at(size):
        write(tmp_path)
    assert contents(tmp_path) == {}
    write(tmp_path)
    whole = contents(tmp_path)
    assert len(whole) == 2
    with pytest.raises(OSError, match="File too large"), files_end_at(size):
        write(tmp_path)
    assert contents(tmp_path) == whole


def test_a_summary_that_cannot_be_written_is_one_line_and_no_file(tmp_path, capsys):
    source, out = tmp_path / "runs.json", tmp_path / "out"
    source.write_text(json.dumps([run().to_json()]))
    with files_end_at(100):
        code = main(["--metrics", str(source), "--output-dir", str(out)])
    assert code == 1
    assert capsys.readouterr().err == f"Error: [Errno 27] File too large: '{out / 'fim_summary.txt'}'\n"
    assert contents(out) == {}
