"""Sources of the product stay of a size that a reader can take in; clang-tidy holds their functions to 60 lines."""

import pathlib

REPOSITORY = pathlib.Path(__file__).resolve().parents[2]


def test_no_source_is_over_400_lines():
    sources = [path for folder in ("core", "server", "client", "proto", "validation", "scripts")
               for path in (REPOSITORY / folder).rglob("*")
               if path.suffix in (".h", ".cc", ".py", ".sh") and "_pb2" not in path.name
               and "build" not in path.relative_to(REPOSITORY).parts]
    assert len(sources) > 200
    lines = {path: len(path.read_text().splitlines()) for path in sources}
    assert {path: count for path, count in lines.items() if count > 400} == {}
