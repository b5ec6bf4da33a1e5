"""Build hook: makes the stubs from the service's .proto, and takes the version from the project's CMakeLists.txt.

In the repository both stand two folders up; a source distribution brings its own copy of the .proto, and has its
version in PKG-INFO.
"""

import importlib.metadata
import pathlib
import re
import shutil

from setuptools import setup
from setuptools.command.sdist import sdist

HERE = pathlib.Path(__file__).resolve().parent
NAME = pathlib.Path("kvcompress/v1/kvcompress.proto")
BUNDLED = HERE / "proto"
PROTO = BUNDLED if BUNDLED.is_dir() else HERE.parents[1] / "proto"


def version():
    if PROTO == BUNDLED:
        return re.search(r"^Version: (\S+)$", (HERE / "PKG-INFO").read_text(), re.MULTILINE)[1]
    return re.search(r"project\(kvcompress VERSION (\S+)", (HERE.parents[1] / "CMakeLists.txt").read_text())[1]


def make_stubs():
    """Writes the generated modules to src/kvcompress/v1."""
    import grpc_tools
    from grpc_tools import protoc

    out = HERE / "src"
    include = pathlib.Path(grpc_tools.__file__).parent / "_proto"
    arguments = [f"--{kind}_out={out}" for kind in ("python", "pyi", "grpc_python")]
    if protoc.main(["protoc", f"-I{PROTO}", f"-I{include}", *arguments, str(PROTO / NAME)]) != 0:
        raise RuntimeError(f"protoc failed on {PROTO / NAME}")
    (out / NAME).with_name("__init__.py").write_text('"""Generated from the service\'s .proto."""\n')


def dependencies():
    """Generated code asks for libraries at least as new as its generator."""
    generated = (HERE / "src" / NAME).with_name("kvcompress_pb2.py").read_text()
    protobuf = re.search(r"^# Protobuf Python Version: (\S+)", generated, re.MULTILINE)[1]
    return [f"grpcio>={importlib.metadata.version('grpcio-tools')}", f"protobuf>={protobuf}", "numpy>=1.24"]


class Sdist(sdist):
    def make_release_tree(self, base_dir, files):
        super().make_release_tree(base_dir, files)
        # The stubs are made anew where the distribution is built.
        shutil.rmtree(pathlib.Path(base_dir, "src/kvcompress/v1"), ignore_errors=True)
        target = pathlib.Path(base_dir, "proto", NAME)
        target.parent.mkdir(parents=True)
        shutil.copyfile(PROTO / NAME, target)


make_stubs()
setup(version=version(), install_requires=dependencies(), cmdclass={"sdist": Sdist})
