#!/usr/bin/env python3
"""Checks who includes whom: by the floors below, from the includes as they stand in the sources.

An include path is a path in the tree. A file may include its own folder's headers and those of lower floors; folders of
one floor do not know each other. Prints each fault as FILE:LINE and exits with 1; with --floors it prints the floors and
what each folder includes, as docs/architecture.md shows them.
"""

import argparse
import pathlib
import re
import sys

# From the ground up. Generated headers (kvcompress/v1/..., *.pb.h) and other people's are not in the tree.
FLOORS = [
    ["core/base"],
    ["core/simd", "core/frame", "core/safetensors"],
    ["core/quality", "core/analysis", "core/codec", "core/file", "core/artifact"],
    ["core/codec/transform", "core/codec/tensor", "core/codec/bytes", "core/profile", "core/calibration"],
    ["core/codec/tensor/transform"],
    ["core"],
    ["proto/wire", "proto/wire/grpc", "proto/wire/pem"],
    ["proto/wire/headers", "server/shm", "client"],
    ["server/session", "client/remote", "client/file"],
    ["server/telemetry", "client/cli", "client/python/native"],
    ["server/net"],
    ["server/config"],
    ["server/rpc"],
    ["server"],
    ["tests"],
    ["bench"],
]
ONE_ROOM = ("tests", "bench")  # all their folders count as one
INCLUDE = re.compile(r'^\s*#\s*include\s+"([^"]+)"')
HOUSE = ("core/", "proto/", "server/", "client/", "tests/", "bench/")


def floor_of(folder: str) -> int | None:
    return next((number for number, folders in enumerate(FLOORS) if folder in folders), None)


def room_of(path: str) -> str:
    """The folder that a file counts for."""
    top = path.split("/")[0]
    return top if top in ONE_ROOM else path.rsplit("/", 1)[0]


def read_includes(root: pathlib.Path) -> dict[str, list[tuple[int, str]]]:
    """Each source's includes of this tree, with their lines."""
    includes: dict[str, list[tuple[int, str]]] = {}
    for top in HOUSE:
        for path in sorted((root / top).rglob("*")):
            # pip builds the Python package in its folder.
            if path.suffix not in (".h", ".cc", ".in") or "build" in path.relative_to(root).parts:
                continue
            found = []
            for number, line in enumerate(path.read_text().splitlines(), 1):
                match = INCLUDE.match(line)
                if match and match[1].startswith(HOUSE) and not match[1].endswith(".pb.h"):
                    found.append((number, match[1]))
                elif match and "/" not in match[1] and (path.parent / match[1]).exists():
                    found.append((number, f"./{match[1]}"))
            includes[path.relative_to(root).as_posix()] = found
    return includes


def find_cycle(edges: dict[str, set[str]]) -> list[str]:
    """A cycle, its first member again at its end; empty where there is none."""
    done: set[str] = set()

    def visit(node: str, path: list[str]) -> list[str]:
        if node in path:
            return path[path.index(node):] + [node]
        if node in done:
            return []
        for other in sorted(edges.get(node, ())):
            if cycle := visit(other, path + [node]):
                return cycle
        done.add(node)
        return []

    for start in sorted(edges):
        if cycle := visit(start, []):
            return cycle
    return []


def check(root: pathlib.Path) -> tuple[list[str], dict[str, set[str]]]:
    """The faults, and which folder includes which."""
    faults = []
    folders: dict[str, set[str]] = {}
    files: dict[str, set[str]] = {}
    for path, includes in read_includes(root).items():
        own = room_of(path)
        if floor_of(own) is None:
            faults.append(f"{path}:1: its folder {own} has no floor")
            continue
        for line, included in includes:
            where = f'{path}:{line}: "{included}"'
            if included.startswith("./"):
                faults.append(f"{where} is not a path in the tree")
            elif not (root / included).is_file():
                faults.append(f"{where} does not exist")
            else:
                files.setdefault(path, set()).add(included)
                other = room_of(included)
                if other == own:
                    continue
                folders.setdefault(own, set()).add(other)
                floor = floor_of(other)
                if floor is not None and floor >= floor_of(own):
                    faults.append(f"{where}: {own} is on floor {floor_of(own)}, {other} is on floor {floor}")
    for edges in (folders, files):
        if cycle := find_cycle(edges):
            faults.append("a cycle: " + " -> ".join(cycle))
    return faults, folders


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--floors", action="store_true", help="print the floors and what each folder includes")
    parser.add_argument("root", nargs="?", default=pathlib.Path(__file__).resolve().parents[1], type=pathlib.Path)
    args = parser.parse_args()
    faults, folders = check(args.root)
    if args.floors:
        for number, names in reversed(list(enumerate(FLOORS))):
            for name in names:
                print(f"{number:2}  {name:22} {' '.join(sorted(folders.get(name, ())))}")
    for fault in faults:
        print(fault, file=sys.stderr)
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main())
