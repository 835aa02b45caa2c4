"""The distributions: what they need, what importing them does, and what they refuse."""

import json
import os
import re
import subprocess
import sys
from importlib.metadata import requires, version
from pathlib import Path

import pytest

import kvferry
import mooncake
from mooncake import _guard

ROOT = Path(__file__).parents[2]


def run(program: str) -> str:
    ran = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stderr
    assert ran.stderr == ""
    return ran.stdout


def test_importing_starts_nothing_and_brings_no_device_library() -> None:
    program = """
import os, sys
before = set(os.listdir('/proc/self/fd'))
import kvferry, mooncake.engine
maps = open('/proc/self/maps').read()
found = [name for name in ('libcuda', 'libucp', 'libibverbs', 'librdmacm', 'libfabric') if name in maps]
print(found, len(os.listdir('/proc/self/task')), len(set(os.listdir('/proc/self/fd')) - before))
print([name for name in ('torch', 'numpy', 'asyncio', 'urllib.request') if name in sys.modules][:2])
"""
    first, second = run(program).splitlines()
    assert first == "[] 1 0"
    assert json.loads(second.replace("'", '"')) in ([], ["asyncio"], ["urllib.request"])


def test_another_protobuf_in_the_process_does_not_meet_ours() -> None:
    """Loaded before, with its symbols for all; as is what else the module brings a copy of."""
    program = """
import ctypes, ctypes.util
names = [ctypes.util.find_library(name) for name in ('protobuf', 'fmt', 'spdlog', 'simdjson', 'crypto')]
loaded = [ctypes.CDLL(name, ctypes.RTLD_GLOBAL) for name in names if name]
import numpy, kvferry
with kvferry.Engine(fabrics=['tcp']) as owner, kvferry.Engine(fabrics=['tcp']) as reader:
    theirs, mine = numpy.arange(4096, dtype=numpy.uint8), numpy.zeros(4096, numpy.uint8)
    region, _ = owner.register(theirs, readable=True), reader.register(mine)
    assert reader.read(reader.peer(owner.address), mine, region.span()).wait().bytes_done == 4096
    assert (mine == theirs).all()
print(len(loaded))
"""
    assert int(run(program)) >= 1


def test_the_module_shows_nothing_but_its_entry() -> None:
    from kvferry import _core

    listed = subprocess.run(
        ["nm", "-D", "--defined-only", str(_core.__file__)], capture_output=True, text=True, check=True
    )
    assert [line.split()[-1] for line in listed.stdout.splitlines()] == ["PyInit__core"]


def test_all_versions_are_those_of_the_project() -> None:
    project = re.search(r"project\(kvferry VERSION ([\d.]+)", (ROOT / "CMakeLists.txt").read_text())
    assert project is not None
    assert version("kvferry") == version("kvferry-mooncake") == kvferry.__version__ == project.group(1)
    assert requires("kvferry-mooncake") == [f"kvferry=={project.group(1)}"]


def test_mooncakes_version_says_which_interface_it_mirrors() -> None:
    assert mooncake.__version__ == f"0.3.13.post1+kvferry.{kvferry.__version__}"


def test_the_store_says_that_it_is_not_there() -> None:
    with pytest.raises(ImportError, match="not part of kvferry-mooncake"):
        import mooncake.store  # noqa: F401


def test_a_foreign_mooncake_in_the_same_folder_is_refused(tmp_path: Path) -> None:
    own = Path(mooncake.__file__).parent
    assert {entry.name for entry in own.iterdir()} - {"__pycache__"} == _guard.OWN_FILES
    _guard.refuse_foreign_files(own)
    package = tmp_path / "mooncake"
    package.mkdir()
    for file in own.iterdir():
        if file.is_file():
            (package / file.name).write_bytes(file.read_bytes())
    (package / "mooncake_master").touch()
    ran = subprocess.run(
        [sys.executable, "-c", "import mooncake.engine"],
        env={**os.environ, "PYTHONPATH": str(tmp_path)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert ran.returncode == 1
    assert "another distribution of mooncake (it has mooncake_master)" in ran.stderr


def test_another_version_of_kvferry_is_refused() -> None:
    with pytest.raises(ImportError, match="needs kvferry 1.2.3, not 1.2.4"):
        _guard.refuse_other_version("1.2.3", "1.2.4")


def test_the_package_is_typed() -> None:
    folder = Path(kvferry.__file__).parent
    assert (folder / "py.typed").is_file()
    stub = (folder / "_core.pyi").read_text()
    for name in ("class Engine", "def register", "def __await__", "def transfer_addresses"):
        assert name in stub


def test_the_example_moves_a_tensor() -> None:
    ran = subprocess.run(
        [sys.executable, str(ROOT / "bindings/python/examples/move_a_tensor.py")],
        capture_output=True,
        text=True,
        check=False,
    )
    assert (ran.returncode, ran.stderr) == (0, "")
    assert ran.stdout == "4194304 bytes over local, sum 1048576\n['thanks']\n"


def test_256_pairs_of_addresses_cost_less_than_15_us() -> None:
    told = json.loads(run((ROOT / "test/python/bench_addresses.py").read_text()))
    assert all(told[kind] < 15 for kind in ("list", "tuple", "array", "mooncake")), told


def test_types_are_sound(tmp_path: Path) -> None:
    """In an empty folder: mypy takes a folder that is named as a module, such as build/vllm, for that module."""
    mypy = [sys.executable, "-m", "mypy", "--config-file", str(ROOT / "test/python/mypy.ini")]
    mypy += ["--cache-dir", str(ROOT / "build/mypy-cache")]
    checked = ["-p", "kvferry", "-p", "mooncake"]
    for what in (checked, [str(ROOT / "test/python"), str(ROOT / "bindings/python/examples")]):
        ran = subprocess.run(
            [*mypy, *what],
            cwd=tmp_path,
            capture_output=True,
            text=True,
            check=False,
        )
        assert ran.returncode == 0, ran.stdout


def test_the_example_in_the_readme_is_the_one_that_runs() -> None:
    program = (ROOT / "bindings/python/examples/move_a_tensor.py").read_text()
    (shown,) = re.findall(r"```python\n(.*?)```", (ROOT / "bindings/python/README.md").read_text(), re.DOTALL)
    assert shown in program


def test_the_program_in_the_projects_readme_runs(tmp_path: Path) -> None:
    (shown,) = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    program = tmp_path / "shown.py"
    program.write_text(shown)
    ran = subprocess.run([sys.executable, str(program)], capture_output=True, text=True, check=False)
    assert (ran.returncode, ran.stderr) == (0, "")
    assert ran.stdout == "4194304 bytes over local sum 1048576\n"
