"""The plug-in of ucx keeps to itself in a process that has another copy of UCX."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

PROGRAM = Path(__file__).with_name("beside_nixl.py")
# Of the release build: the plug-ins of the wheels are built of the same sources.
PLUGINS = Path(__file__).parents[2] / "build/release/lib"


@pytest.mark.skipif(not list(PLUGINS.glob("libkvferry_fabric_ucx.so")), reason="the plug-in of ucx is not built")
@pytest.mark.parametrize("first", ["nixl", "kvferry"])
def test_ucx_works_beside_the_copy_of_nixl(first: str) -> None:
    settings = {"KVFERRY_PLUGINS": str(PLUGINS), "KVFERRY_FABRICS": "ucx", "KVFERRY_UCX_TLS": "tcp,self"}
    words = [sys.executable, str(PROGRAM), first]
    environment = {**os.environ, **settings}
    ended = subprocess.run(words, env=environment, capture_output=True, text=True, timeout=120, check=False)
    assert ended.returncode == 0, ended.stderr
    seen = json.loads(ended.stdout.splitlines()[-1])
    assert len(seen["moved"]) == 4
    assert all(seen["moved"].values()), seen
    assert len(seen["copies"]) == 2, "one copy of UCX was to be in the process beside the other"
