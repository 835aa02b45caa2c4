"""The wheels that scripts/wheel has built, alone in an environment of their own."""

import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

HARDENING = Path(__file__).parents[1] / "system" / "hardening_test.sh"
WHEELS = Path(os.environ.get("KVFERRY_WHEELS", Path(__file__).parents[2] / "build" / "wheels"))
# Of the machine, as for any wheel with C++ inside.
SYSTEM_LIBRARIES = {"libstdc++.so.6", "libgcc_s.so.1", "libm.so.6", "libc.so.6", "ld-linux-x86-64.so.2"}


def stem_of(library: str) -> str:
    return Path(library).name.split(".")[0]


@pytest.fixture(scope="module")
def wheels() -> list[Path]:
    found = sorted(WHEELS.glob("*.whl"))
    assert [wheel.name.split("-")[0] for wheel in found] == ["kvferry", "kvferry_mooncake"]
    return found


@pytest.fixture(scope="module")
def bare_python(wheels: list[Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("bare")
    subprocess.run([sys.executable, "-m", "venv", str(folder)], check=True)
    install = [str(folder / "bin/pip"), "--disable-pip-version-check", "install", "--quiet", "--no-index"]
    subprocess.run([*install, *map(str, wheels)], check=True)
    return folder / "bin/python"


def test_wheels_are_small(wheels: list[Path]) -> None:
    for wheel in wheels:
        assert wheel.stat().st_size < 20 << 20


# Of what the wheel holds, and what each may need besides.
@pytest.fixture(
    scope="module",
    params=[
        ("_core", set()),
        ("libkvferry_fabric_ucx", {"libucp.so.0", "libucs.so.0"}),
        ("libkvferry_fabric_ofi", {"libfabric.so.1"}),
    ],
    ids=lambda param: str(param[0]),
)
def module(
    wheels: list[Path], tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest
) -> tuple[str, set[str]]:
    stem, may_need = request.param
    with zipfile.ZipFile(wheels[0]) as wheel:
        (name,) = (name for name in wheel.namelist() if name.endswith(".so") and stem_of(name) == stem)
        return wheel.extract(name, tmp_path_factory.mktemp("module")), may_need


def test_the_modules_are_hardened(module: tuple[str, set[str]]) -> None:
    ran = subprocess.run([str(HARDENING), module[0]], capture_output=True, text=True, check=False)
    assert (ran.returncode, ran.stdout) == (0, "")


def test_the_modules_need_system_libraries_only(module: tuple[str, set[str]]) -> None:
    dynamic = subprocess.run(["readelf", "-dW", module[0]], capture_output=True, text=True, check=True).stdout
    needed = {line.split("[")[1].rstrip("]") for line in dynamic.splitlines() if "(NEEDED)" in line}
    assert needed <= SYSTEM_LIBRARIES | module[1]
    assert "RUNPATH" not in dynamic and "RPATH" not in dynamic


def test_the_plugins_are_found_beside_the_module(bare_python: Path) -> None:
    program = (
        "import kvferry, sys; e = kvferry.Engine(fabrics=[sys.argv[1], 'tcp']); "
        "assert sys.argv[1] in e.describe(); maps = open('/proc/self/maps').read(); "
        "print(sum('/kvferry/libkvferry_fabric_' + sys.argv[1] in line for line in maps.splitlines()) > 0)"
    )
    for fabric, settings in {"ucx": {"UCX_TLS": "tcp,self"}, "ofi": {"KVFERRY_OFI_PROVIDER": "tcp"}}.items():
        environment = {**os.environ, **settings, "KVFERRY_LISTEN": "127.0.0.1:0"}
        command = [str(bare_python), "-c", program, fabric]
        ran = subprocess.run(command, capture_output=True, text=True, check=False, cwd="/", env=environment)
        assert (ran.returncode, ran.stdout) == (0, "True\n"), ran.stderr


def test_they_work_where_the_libraries_of_the_build_are_hidden(bare_python: Path) -> None:
    program = (
        # What Python's own modules load, OpenSSL with it, is not of the wheel.
        "import ctypes.util, mmap, ssl, urllib.request; "
        "mapped = lambda: {line.split()[-1] for line in open('/proc/self/maps') if '.so' in line}; before = mapped(); "
        "import mooncake.engine as m; e = m.TransferEngine(); "
        "assert e.initialize('127.0.0.1', 'P2PHANDSHAKE', 'tcp', '') == 0; a = e.allocate_managed_buffer(64); "
        "assert e.transfer_sync_write('127.0.0.1:%d' % e.get_rpc_port(), a, a + 32, 32) == 0; "
        "print(*sorted(mapped() - before))"
    )
    # In a mount namespace of its own, where these libraries cannot be read.
    hide = (
        "for name in protobuf fmt spdlog xxhash simdjson ucp fabric; do for library in /usr/lib/*/lib$name*; do "
        '[ -f "$library" ] && mount --bind /dev/null "$library"; done; done; exec "$@"'
    )
    if os.geteuid() != 0:
        pytest.skip("only root can hide the libraries of the build")
    command = ["unshare", "--mount", "sh", "-c", hide, "sh", str(bare_python), "-c", program]
    ran = subprocess.run(command, capture_output=True, text=True, check=False, cwd="/")
    assert (ran.returncode, ran.stderr) == (0, "")
    loaded = {stem_of(name) for name in ran.stdout.split() if "/lib-dynload/" not in name}
    assert "_core" in loaded
    assert loaded - {"_core"} <= {stem_of(name) for name in SYSTEM_LIBRARIES}
