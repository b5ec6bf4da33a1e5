"""The version stands in CMakeLists.txt, and what has to repeat it says the same."""

import pathlib
import re

import pytest

REPOSITORY = pathlib.Path(__file__).resolve().parents[2]


def read(path):
    return (REPOSITORY / path).read_text()


@pytest.fixture
def version():
    return re.search(r"^project\(kvcompress VERSION (\d+\.\d+\.\d+) ", read("CMakeLists.txt"), re.MULTILINE)[1]


def test_the_newest_version_of_the_changelog_is_this_one(version):
    headings = re.findall(r"^## (.*)$", read("CHANGELOG.md"), re.MULTILINE)
    assert headings[0] == "[Unreleased]"
    assert re.fullmatch(rf"\[{re.escape(version)}\] - \d{{4}}-\d\d-\d\d", headings[1])


@pytest.mark.parametrize("manifest", ["base", "sidecar"])
def test_manifests_name_the_image_of_this_version(version, manifest):
    images = re.findall(r"image: \S*/kv-compressd:(\S+)", read(f"deploy/kubernetes/{manifest}/deployment.yaml"))
    assert images == [version]


def test_the_image_is_labelled_with_what_its_build_is_given():
    assert set(re.findall(r"^ARG VERSION=(.*)$", read("Dockerfile"), re.MULTILINE)) == {"unknown"}
    assert set(re.findall(r'image\.version="?([^"\s]*)', read("Dockerfile"))) == {"$VERSION"}
