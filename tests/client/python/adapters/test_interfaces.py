"""The adapters against the signatures of the engines, and these against the engines' sources where they are at hand."""

import ast
import importlib
import importlib.metadata
import inspect
import subprocess
import sys

import engines
import pytest
from engine_interfaces import FIELDS, HIT_POLICIES, HOST_POOLS, INTERFACES
from engine_runs import unpacked_wheels

ADAPTERS = {
    "KVConnectorBase_V1": ("kvcompress.adapters.vllm", "KvCompressConnector", engines.provide_vllm),
    "SecondaryTierManager": ("kvcompress.adapters.vllm_tier", "CompressedTier", engines.provide_vllm_tiering),
    "HiCacheStorage": ("kvcompress.adapters.sglang", "KvCompressStorage", engines.provide_sglang),
    "Serializer": ("kvcompress.adapters.lmcache", "KvCompressSerializer", engines.provide_lmcache),
    "Deserializer": ("kvcompress.adapters.lmcache", "KvCompressDeserializer", engines.provide_lmcache),
    "L2AdapterInterface": ("kvcompress.adapters.lmcache", "KvCompressL2Adapter", engines.provide_lmcache),
}
IDS = [f"{release}: {name}" for release, _, name, _ in INTERFACES]


@pytest.mark.parametrize("name", ADAPTERS)
def test_an_adapter_takes_the_calls_of_its_interface(name):
    module, adapter, provide = ADAPTERS[name]
    provide()
    found = getattr(importlib.import_module(module), adapter)
    assert not inspect.isabstract(found)
    (methods,) = [methods for _, _, other, methods in INTERFACES if other == name]
    reference = engines.interface(name)
    for method in (method.lstrip("*@") for method in methods if method != "__init__"):
        wanted = inspect.signature(getattr(reference, method)).parameters
        given = inspect.signature(getattr(found, method)).parameters
        assert list(given)[: len(wanted)] == list(wanted), method
        for parameter, ours in given.items():
            theirs = wanted.get(parameter)
            if ours.default is inspect.Parameter.empty and ours.kind is not inspect.Parameter.VAR_KEYWORD:
                assert theirs is not None, (method, parameter)
                assert theirs.default is inspect.Parameter.empty, (method, parameter)


@pytest.mark.parametrize(("release", "path", "name", "methods"), INTERFACES, ids=IDS)
def test_an_interface_is_that_of_the_release(release, path, name, methods):
    folder = unpacked_wheels()
    package, version = release.split()
    assert (folder / f"{package}-{version}.dist-info").is_dir()
    tree = ast.parse((folder / path).read_text())
    (found,) = [node for node in tree.body if isinstance(node, ast.ClassDef) and node.name == name]
    functions = {node.name: node for node in found.body if isinstance(node, ast.FunctionDef)}
    abstract = {name for name, node in functions.items() if any("abstractmethod" in ast.unparse(mark)
                                                                for mark in node.decorator_list)}
    assert abstract == {method[1:] for method in methods if method.startswith("*")}
    for method, arguments in methods.items():
        parsed = functions[method.lstrip("*@")].args
        for argument in parsed.args:
            argument.annotation = None
        if parsed.kwarg:
            parsed.kwarg.annotation = None
        assert ast.unparse(parsed).removeprefix("self").removeprefix("cls").removeprefix(", ") == arguments, method


@pytest.mark.parametrize(("release", "path", "name", "fields"), FIELDS,
                         ids=[f"{release}: {name}" for release, _, name, _ in FIELDS])
def test_fields_are_those_of_the_release(release, path, name, fields):
    tree = ast.parse((unpacked_wheels() / path).read_text())
    (found,) = [node for node in tree.body if isinstance(node, ast.ClassDef) and node.name == name]
    assert [node.target.id for node in found.body if isinstance(node, ast.AnnAssign)] == fields


def class_of(release, path, name):
    folder = unpacked_wheels()
    package, version = release.split()
    assert (folder / f"{package}-{version}.dist-info").is_dir()
    (found,) = [node for node in ast.parse((folder / path).read_text()).body
                if isinstance(node, ast.ClassDef) and node.name == name]
    return found


def test_the_policies_of_pools_are_those_of_the_release():
    found = class_of("sglang 0.5.23", "sglang/srt/mem_cache/hicache_storage.py", "PoolHitPolicy")
    assert [node.targets[0].id for node in found.body if isinstance(node, ast.Assign)] == HIT_POLICIES


@pytest.mark.parametrize(("release", "path", "name"), HOST_POOLS, ids=[row[2] for row in HOST_POOLS])
def test_host_pools_answer_what_the_adapter_asks(release, path, name):
    functions = {node.name: [argument.arg for argument in node.args.args]
                 for node in class_of(release, path, name).body if isinstance(node, ast.FunctionDef)}
    assert functions["get_page_buffer_meta"] == ["self", "indices"]
    assert functions["get_data_page"] == ["self", "index", "flat"]
    assert functions["get_dummy_flat_data_page"] == ["self"]
    assert functions["set_from_flat_data_page"] == ["self", "index", "data_page"]


def test_without_torch_the_adapter_of_transformers_says_how_it_is_installed():
    program = "import sys; sys.modules['torch'] = None; import kvcompress.adapters.transformers"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60)
    assert done.returncode == 1
    assert done.stderr.endswith(": pip install './client/python[transformers]' from a checkout\n")


@pytest.mark.parametrize("name", ["lmcache", "sglang", "vllm"])
def test_without_its_library_an_adapter_says_so(name):
    if name in importlib.metadata.packages_distributions():
        pytest.skip(f"{name} is installed")
    done = subprocess.run([sys.executable, "-c", f"import kvcompress.adapters.{name}"], capture_output=True, text=True,
                          timeout=60)
    assert done.returncode == 1
    assert f"ImportError: kvcompress.adapters.{name} " in done.stderr
    assert f"No module named '{name}'" in done.stderr
