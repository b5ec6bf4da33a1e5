"""Lets an unpacked wheel of vLLM be imported on a CPU: what it imports besides and is not installed is stood in for
by classes that can do nothing. Nothing of vLLM itself is replaced; it does without its compiled modules."""

import importlib.abc
import importlib.machinery
import importlib.util
import sys
import types

# Of servers, tools, and structured output, which offloading does not touch.
PACKAGES = (
    "aiohttp", "blake3", "cachetools", "cbor2", "cloudpickle", "cpuinfo", "depyf", "fastapi", "llguidance", "msgspec",
    "openai", "openai_harmony", "partial_json_parser", "prometheus_client", "pybase64", "uvloop", "xgrammar", "zmq",
)


class _Nothing(type):
    def __new__(cls, name, bases, space, **options):
        return super().__new__(cls, name, bases, space)

    def __init__(cls, name, bases, space, **options):
        super().__init__(name, bases, space)

    def __getattr__(cls, name):
        if name.startswith("__"):
            raise AttributeError(name)
        return _nothing(name)

    def __getitem__(cls, item):
        return cls


def _nothing(name):
    class Nothing(metaclass=_Nothing):
        def __new__(cls, *arguments, **options):
            # Of a decorator: what it is put on.
            plain = len(arguments) == 1 and not options and callable(arguments[0])
            return arguments[0] if plain else super().__new__(cls)

        def __init__(self, *arguments, **options):
            pass

        @classmethod
        def __get_pydantic_core_schema__(cls, source, handler):
            from pydantic_core import core_schema

            return core_schema.any_schema()

        def __call__(self, *arguments, **options):
            return arguments[0] if arguments else self

    Nothing.__name__ = name
    return Nothing


class _Module(types.ModuleType):
    def __getattr__(self, name):
        if name.startswith("__"):
            raise AttributeError(name)
        found = _nothing(name)
        setattr(self, name, found)
        return found


class _Finder(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    def __init__(self, packages):
        self._packages = packages

    def find_spec(self, name, path, target=None):
        if name.partition(".")[0] not in self._packages:
            return None
        return importlib.machinery.ModuleSpec(name, self, is_package=True)

    def create_module(self, spec):
        return _Module(spec.name)

    def exec_module(self, module):
        pass


def provide():
    """The names of what is stood in for."""
    missing = [name for name in PACKAGES if importlib.util.find_spec(name) is None]
    sys.meta_path.append(_Finder(missing))
    return missing


MISSING = provide()
