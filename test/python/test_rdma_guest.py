"""The drop-in with protocol rdma in the guest of test/rdma_vm, which has RDMA devices: verbs alone carry its bytes."""

import json
import subprocess
import sys
import sysconfig
import zipfile
from importlib.metadata import distribution
from pathlib import Path

import pytest

GUEST = Path(__file__).parents[1] / "rdma_vm/guest"
PROGRAM = Path(__file__).with_name("rdma_guest.py")
NO_GUEST = 77
PACKET = 4096  # the largest that RoCE has
BYTES = 64 << 20
LEFT_OUT = {"test", "idlelib", "lib2to3", "tkinter", "turtledemo", "ensurepip", "pydoc_data", "distutils"}


@pytest.fixture(scope="module")
def library() -> Path:
    """The standard library, compiled, as the guest's processor is a slow one; not in /tmp, which the guest has anew."""
    source = Path(sysconfig.get_path("stdlib"))
    archive = Path(sys.prefix) / "guest.zip"
    with zipfile.PyZipFile(str(archive), "w") as packed:
        packed.writepy(str(source))
        for package in source.glob("*/__init__.py"):
            if package.parent.name not in LEFT_OUT:
                packed.writepy(str(package.parent))
    return archive


def extension_modules() -> list[str]:
    """Those of the standard library that the program needs."""
    listing = (
        "import sys, rdma_guest; print(*(getattr(m, '__file__', None) or '' for m in sys.modules.values()), sep='\\n')"
    )
    ran = subprocess.run(
        [sys.executable, "-c", listing], cwd=PROGRAM.parent, capture_output=True, text=True, check=True
    )
    return [file for file in ran.stdout.splitlines() if "/lib-dynload/" in file]


def package_files(plugin: str) -> list[Path]:
    """Both distributions as they are installed, with one plug-in: protocol rdma takes what there is."""
    files = [file for name in ("kvferry", "kvferry-mooncake") for file in distribution(name).files or ()]
    places = [Path(str(file.locate())) for file in files if file.suffix != ".pyc"]
    return [place for place in places if "fabric" not in place.name or place.name == f"libkvferry_fabric_{plugin}.so"]


@pytest.mark.parametrize(("plugin", "settings"), [("ucx", "KVFERRY_UCX_TLS=rc_verbs"), ("ofi", "")])
def test_writes_are_whole_when_the_target_is_told(plugin: str, settings: str, library: Path) -> None:
    python = str(Path(sys.executable).resolve())
    extensions = extension_modules()
    packages = package_files(plugin)
    assert any(plugin in file.name for file in packages), "the wheel has no such plug-in"
    places = [str(library), *{str(Path(file).parent) for file in extensions}, sysconfig.get_path("platlib")]
    files = [python, str(PROGRAM), str(library), *extensions, *map(str, packages)]
    # The guest's devices are its processor: 64 MiB keep it from anything else for seconds.
    settings += " KVFERRY_HEARTBEAT=30s"
    command = f"export {settings} PYTHONPATH={':'.join(places)}; exec {python} {PROGRAM}"
    ran = subprocess.run([GUEST, "--limit", "240", *files, "--", command], capture_output=True, text=True, check=False)
    if ran.returncode == NO_GUEST:
        pytest.skip(ran.stdout.strip())
    assert ran.returncode == 0, ran.stdout + ran.stderr
    said = json.loads(next(line for line in ran.stdout.splitlines() if line.startswith("{")))
    assert said["protocol"]["fabric"] == plugin, said
    for write in said["writes"]:
        assert write["whole"] and write["last"] == write["byte"], said
        assert write["packets"] >= BYTES / PACKET, said
