"""Build hook: makes the stubs from the service's .proto, takes the version from the project's CMakeLists.txt, and
builds the codec as a module, kvcompress._native, in the repository.

KVC_NATIVE says whether there is such a module: "auto" (where there is CMake and the build goes well), "require" or
"off".

In the repository both stand two folders up; a source distribution brings its own copy of the .proto, and has its
version in PKG-INFO.
"""

import importlib.metadata
import os
import pathlib
import re
import shutil
import subprocess
import sys

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext
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


class BuildNative(build_ext):
    """By the project's own CMake, whose packages scripts/install-deps.sh --build installs."""

    def build_extension(self, extension):
        folder = pathlib.Path(self.get_ext_fullpath(extension.name)).resolve().parent
        build = pathlib.Path(self.build_temp).resolve() / "native"
        options = {
            "CMAKE_BUILD_TYPE": "Release",
            "BUILD_TESTING": "OFF",
            "KVC_PYTHON": "ON",
            "KVC_PYTHON_DIR": folder,
            "Python_EXECUTABLE": sys.executable,
        }
        settings = [f"-D{name}={value}" for name, value in options.items()]
        generator = ["-G", "Ninja"] if shutil.which("ninja") else []
        subprocess.run(["cmake", *generator, "-S", HERE.parents[1], "-B", build, *settings], check=True)
        jobs = str(os.cpu_count() or 1)
        subprocess.run(["cmake", "--build", build, "--target", "kvc_python", "--parallel", jobs], check=True)


def extensions():
    choice = os.environ.get("KVC_NATIVE", "auto")
    if choice not in ("auto", "require", "off"):
        raise SystemExit(f'KVC_NATIVE is "auto", "require" or "off", not "{choice}"')
    can = PROTO != BUNDLED and shutil.which("cmake") is not None
    if choice == "require" and not can:
        raise SystemExit("KVC_NATIVE=require needs CMake, and the project's repository")
    optional = choice == "auto"
    return [Extension("kvcompress._native", [], optional=optional)] if can and choice != "off" else []


make_stubs()
setup(
    version=version(),
    install_requires=dependencies(),
    ext_modules=extensions(),
    cmdclass={"sdist": Sdist, "build_ext": BuildNative},
)
