"""What compare_builds.py takes for equal: bytes are compared as they are, messages but for the last digits of figures."""

import pathlib
import sys

import pytest

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[2] / "scripts"))
import compare_builds  # noqa: E402

REPORT = '{"rmse": 0.2822014802736235, "snr_db": 2, "bytes": 98304, "codec": "int4(group=64)", "error": -1.25e-07}'


@pytest.mark.parametrize(("old", "new"), [
    ("0.2822014802736235", "0.2822014802736241"), ('"snr_db": 2,', '"snr_db": 2.0000000000000004,'), ("-1.25e-07", "-1.2500000001e-07")])
def test_last_digits_of_figures_may_differ(old, new):
    assert old in REPORT
    assert compare_builds.same_text(REPORT, REPORT.replace(old, new))
    assert compare_builds.same_text(REPORT.replace(old, new), REPORT)


@pytest.mark.parametrize(("old", "new"), [
    ("0.2822014802736235", "0.2822018"), ("98304", "98305"), ("group=64", "group=65"), ("snr", "s"), ("-1.25e-07", "1.25e-07"),
    ("-1.25e-07", "-1.25e-08"), ("0.2822014802736235", "nan"), ("}", ', "more": 1}'), ('"snr_db": 2', '"snr_db": 3')])
def test_anything_else_may_not(old, new):
    assert old in REPORT
    assert not compare_builds.same_text(REPORT, REPORT.replace(old, new))
    assert not compare_builds.same_text(REPORT.replace(old, new), REPORT)


def test_bytes_and_exit_codes_are_compared_as_they_are():
    old = ((0, REPORT), b"1.00000000000001")
    assert compare_builds.same_outcome(old, ((0, REPORT.replace("36235", "36234")), b"1.00000000000001"))
    for new in (((0, REPORT), b"1.00000000000002"), ((0, REPORT), None), ((1, REPORT), old[1]), ((0, ""), old[1])):
        assert not compare_builds.same_outcome(old, new)


def test_the_tolerance_is_in_the_help():
    assert f"{compare_builds.TOLERANCE:g}".replace("e-06", "e-6") in compare_builds.__doc__
