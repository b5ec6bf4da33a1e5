"""What the documents say of the tree is there: links, paths, names, floors."""

import importlib.util
import os
import pathlib
import re

import pytest

REPOSITORY = pathlib.Path(__file__).resolve().parents[2]
DOCUMENTS = sorted([
    *REPOSITORY.glob("*.md"), *(REPOSITORY / "docs").rglob("*.md"), REPOSITORY / "client/python/README.md",
    REPOSITORY / "validation/README.md"])
# What is made by builds and tests, which documents may name where it is not there.
MADE = ("bin", "build", "dist", ".venv")
each_document = pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: str(path.relative_to(REPOSITORY)))


def files_of_the_tree():
    for folder, folders, files in os.walk(REPOSITORY):
        folders[:] = [name for name in folders if not name.startswith(".") and name not in (*MADE, "__pycache__")]
        for name in files:
            yield (pathlib.Path(folder) / name).relative_to(REPOSITORY).as_posix()


FILES = sorted(files_of_the_tree())
FOLDERS = {path.split("/")[0] for path in FILES if "/" in path}
SOURCES = [path for path in FILES if path.endswith((".h", ".cc", ".py"))]


def prose(text):
    """Without blocks of code between fences."""
    return re.sub(r"^```.*?^```$", "", text, flags=re.MULTILINE | re.DOTALL)


def anchors(text):
    """The anchors of a document's headings, as GitHub makes them."""
    headings = re.findall(r"^#+ (.*)$", prose(text), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def broken_links(document):
    text = document.read_text()
    for target in re.findall(r"\]\(([^)\s]+)\)", prose(text)):
        if re.match(r"https?://", target):
            continue
        path, _, anchor = target.partition("#")
        file = document.parent / path if path else document
        if not file.exists() or (anchor and anchor not in anchors(file.read_text())):
            yield target


def paths_in(text):
    """Words in `code` that look like paths of this tree, options of commands left out."""
    for code in re.findall(r"`([^`\n]+)`", prose(text)) + re.findall(r"^    (.*)$", text, re.MULTILINE):
        for word in re.findall(r"(?<![\w./\-<:@])(?:\./)?[\w.\-]+(?:/[\w.\-*{},]+)+/?(?![\w/])", code):
            if word.removeprefix("./").split("/")[0] in FOLDERS:
                yield word.removeprefix("./")


def exists(path):
    """`path` may have *, {this,that}, and NAME for any name."""
    if braces := re.fullmatch(r"(.*)\{(.*)\}(.*)", path):
        head, names, tail = braces.groups()
        return all(exists(head + name + tail) for name in names.split(","))
    return any(REPOSITORY.glob(path.replace("NAME", "*").rstrip("/")))


def test_there_are_documents():
    assert {"README.md", "CONTRIBUTING.md", "CHANGELOG.md", "format.md", "architecture.md"} <= {path.name for path in DOCUMENTS}


@each_document
def test_links_lead_somewhere(document):
    assert list(broken_links(document)) == []


@pytest.mark.parametrize("path", ["docs/benchmarks.md", "docs/benchmarks-tried.md", "client/python/README.md"])
def test_the_contents_of_a_long_document_have_all_its_parts(path):
    text = (REPOSITORY / path).read_text()
    contents = re.findall(r"^ *- \[(.*)\]\(#", text, re.MULTILINE)
    parts = re.findall(r"^## (.*)$", prose(text), re.MULTILINE)
    assert len(parts) > 2 and [part for part in parts if part not in contents] == []


@each_document
def test_paths_exist(document):
    assert [path for path in paths_in(document.read_text()) if not exists(path)] == []


@pytest.mark.parametrize("text, fault", [
    ("[here](docs/gone.md)", "docs/gone.md"), ("[here](README.md#no-such-part)", "README.md#no-such-part"),
    ("[one](#a)\n# B\n", "#a")])
def test_a_broken_link_is_found(tmp_path, text, fault):
    (tmp_path / "README.md").write_text("# Title\n")
    (tmp_path / "page.md").write_text(text)
    assert list(broken_links(tmp_path / "page.md")) == [fault]


def test_a_path_that_is_gone_is_found():
    found = list(paths_in("See `core/gone.h` and `deploy/profiles/`.\n\n    $ scripts/gone.sh core/base\n"))
    assert found == ["core/gone.h", "deploy/profiles/", "scripts/gone.sh", "core/base"]
    assert [path for path in found if not exists(path)] == ["core/gone.h", "scripts/gone.sh"]


def test_the_targets_of_make_exist():
    targets = set(re.findall(r"^([a-z-]+):", (REPOSITORY / "Makefile").read_text(), re.MULTILINE))
    for document in DOCUMENTS:
        said = re.findall(r"`make ([a-z-]+)|^    make ([a-z-]+)", document.read_text(), re.MULTILINE)
        assert {one or other for one, other in said} <= targets, document


FLAGS = {"kv-compress": r'flags\.\w+\(\s*"([a-z-]+)"', "kv-compressd": r'\{"([a-z-]+)", "'}
OPTIONS = {"kv-compress": "client/cli/flags.cc", "kv-compressd": "server/config/options.cc"}


def flags_in(text):
    """(program, flag) of the commands in indented lines."""
    for line in re.findall(r"^    .*$", text, re.MULTILINE):
        for program, arguments in re.findall(r"\b(kv-compressd?) ((?:[^|&#]|\|(?! ))*)", line):
            for flag in re.findall(r"(?<!\S)--?([a-z][a-z-]*)", arguments):
                yield program, flag


def test_the_flags_of_commands_exist():
    known = {program: set(re.findall(FLAGS[program], (REPOSITORY / path).read_text())) for program, path in OPTIONS.items()}
    assert {"input", "codec"} < known["kv-compress"] and {"listen", "threads"} < known["kv-compressd"]
    used = {one for document in DOCUMENTS for one in flags_in(document.read_text())}
    assert len(used) > 10
    assert {(program, flag) for program, flag in used if flag not in known[program]} == set()


def test_the_floors_of_the_architecture_are_those_that_are_checked():
    spec = importlib.util.spec_from_file_location("include_graph", REPOSITORY / "scripts/include_graph.py")
    include_graph = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(include_graph)
    block, = re.findall(r"^```floors\n(.*?)^```$", (REPOSITORY / "docs/architecture.md").read_text(), re.MULTILINE | re.DOTALL)
    shown = [line.split() for line in block.splitlines()]
    assert shown == [[str(number), *folders] for number, folders in reversed(list(enumerate(include_graph.FLOORS)))]


def test_the_house_of_the_architecture_is_complete():
    text = (REPOSITORY / "docs/architecture.md").read_text()
    house = text[text.index("## The house"):text.index("## The way")]
    rooms = {path for row in re.findall(r"^\| (`.*?) \|", house, re.MULTILINE) for path in re.findall(r"`([^`]+)/`", row)}
    assert {path for path in rooms if not (REPOSITORY / path).is_dir()} == set()
    assert {top for top in FOLDERS if not any(f"{room}/".startswith(f"{top}/") for room in rooms)} == set()
    homes = {path.rpartition("/")[0] for path in SOURCES if not path.startswith(("bench/", "tests/", "client/python/"))}
    assert homes - rooms == set()


def test_the_names_of_the_architecture_are_in_the_sources():
    text = (REPOSITORY / "docs/architecture.md").read_text()
    sources = "\n".join((REPOSITORY / path).read_text() for path in SOURCES)
    names = set(re.findall(r"`([A-Z][a-z]+(?:[A-Z][a-z]+)*)`", text))
    assert len(names) > 10
    assert [name for name in sorted(names) if not re.search(rf"\b{name}\b", sources)] == []


def test_decisions_are_numbered_one_by_one():
    files = sorted(path.name for path in (REPOSITORY / "docs/adr").glob("[0-9]*.md"))
    assert [int(name[:4]) for name in files] == list(range(1, len(files) + 1))
    for name in files:
        heading, _, date = (REPOSITORY / "docs/adr" / name).read_text().splitlines()[:3]
        assert heading.startswith(f"# {int(name[:4])}. ") and re.match(r"\d{4}-\d\d-\d\d", date), name


def test_sections_of_the_format_that_the_sources_name_exist():
    headings = re.findall(r"^#+ ([^:(\n]*)", (REPOSITORY / "docs/format.md").read_text(), re.MULTILINE)
    known = {heading.strip() for heading in headings}
    for path in SOURCES:
        named = set(re.findall(r'docs/format\.md, "([\w ]+)"', (REPOSITORY / path).read_text()))
        assert named <= known, path
