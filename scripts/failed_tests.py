#!/usr/bin/env python3
"""A line for each test that failed, with the first line of why, from the JUnit file of a stage of scripts/test.sh; of a
stage whose file names none, a line for the stage, with the last that its log says.
usage: failed_tests.py STAGE OUTCOME JUNIT LOG"""

import pathlib
import re
import sys
import xml.etree.ElementTree as ElementTree

WIDTH = 300
# Where GoogleTest, absl and the sanitizers say what is wrong, in what a test has written.
FAULT = re.compile(r".*(: Failure$|Check failed|: runtime error: |(ERROR|WARNING|SUMMARY): \w+Sanitizer).*")


def lines_of(text):
    return [line.strip() for line in (text or "").splitlines() if line.strip()]


def reason(case, fault):
    """CTest's message is a word, and what the test has written stands beside it; pytest's begins with the reason."""
    written = lines_of(case.findtext("system-out")) if case.get("status") else []
    for index, line in enumerate(written):
        if FAULT.fullmatch(line):
            return " ".join(written[index:index + 2])
    message = lines_of(fault.get("message")) or lines_of(fault.text)
    return ": ".join(message[:1] + written[-1:])


def failures(junit):
    try:
        cases = ElementTree.parse(junit).iter("testcase")
    except (OSError, ElementTree.ParseError):  # the stage has none, or was stopped while it wrote
        return
    for case in cases:
        for fault in (*case.findall("failure"), *case.findall("error")):
            file, name = case.get("classname", ""), case.get("name", "")
            yield f"{name if file in ('', name) else f'{file}.{name}'}: {reason(case, fault)}"
            break


def main(stage, outcome, junit, log):
    found = list(failures(junit))
    if not found:
        said = lines_of(pathlib.Path(log).read_text(errors="replace"))
        found = [": ".join([outcome, *said[-1:]])]
    for line in found:
        print(f"{stage}: {line}"[:WIDTH])


if __name__ == "__main__":
    main(*sys.argv[1:])
