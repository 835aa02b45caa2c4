"""The line of docs/python.md that installs both packages from the source tree, as it stands there."""

import os
import re
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
# The environment of scripts/wheel, which has what builds the packages and nothing else, and what it links: so its build
# folder serves, and nothing is compiled again.
TOOLS = ROOT / "build/wheel-tools"
STATIC = ROOT / "build/static"

PROGRAM = """
import kvferry, mooncake.engine
engine = mooncake.engine.TransferEngine()
assert engine.initialize("127.0.0.1", "P2PHANDSHAKE", "tcp", "") == 0, engine.last_error()
at = engine.allocate_managed_buffer(64)
assert engine.write_bytes_to_buffer(at, b"carried over", 12) == 0
assert engine.transfer_sync_write(f"127.0.0.1:{engine.get_rpc_port()}", at, at + 32, 12) == 0, engine.last_error()
print(engine.read_bytes_from_buffer(at + 32, 12).decode(), kvferry.__file__, mooncake.__file__, sep="\\n")
"""


def state_of_the_tree() -> str:
    command = ["git", "-C", str(ROOT), "status", "--porcelain", "--untracked-files=all"]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


@pytest.mark.skipif(not TOOLS.is_dir(), reason="scripts/wheel has not run here")
def test_the_documented_line_installs_both_packages(tmp_path: Path) -> None:
    (line,) = re.findall(r"^pip install \S+ \S+", (ROOT / "docs/python.md").read_text(), re.MULTILINE)
    settings = {
        "PATH": f"{TOOLS}/bin:{os.environ['PATH']}",
        "PIP_NO_BUILD_ISOLATION": "0",  # pip's way to say yes; what the packages ask for in isolation it checks instead
        "PIP_CHECK_BUILD_DEPENDENCIES": "1",
        "PIP_NO_INDEX": "1",
        "PIP_DISABLE_PIP_VERSION_CHECK": "1",
        "CMAKE_CXX_COMPILER_LAUNCHER": "ccache",
        "KVFERRY_PROTOBUF_LITE": (STATIC / "protobuf").read_text().strip(),
        "KVFERRY_SIMDJSON": (STATIC / "simdjson").read_text().strip(),
        "KVFERRY_UNITY": "ON",
    }
    environment = {**os.environ, **settings}
    before = state_of_the_tree()
    installed = subprocess.run(
        ["sh", "-c", line], cwd=ROOT, env=environment, capture_output=True, text=True, check=False
    )
    try:
        assert installed.returncode == 0, installed.stdout + installed.stderr
        assert state_of_the_tree() == before
        ran = subprocess.run(
            [str(TOOLS / "bin/python"), "-c", PROGRAM], cwd=tmp_path, capture_output=True, text=True, check=False
        )
    finally:
        uninstall = [str(TOOLS / "bin/pip"), "uninstall", "--yes", "--quiet", "kvferry", "kvferry-mooncake"]
        subprocess.run(uninstall, check=True)
    assert (ran.returncode, ran.stderr) == (0, "")
    moved, *files = ran.stdout.splitlines()
    assert moved == "carried over"
    assert all(file.startswith(str(TOOLS)) for file in files), files
