"""The drop-in takes addresses of a GPU, over the release build's fake driver: device memory that no CPU may touch."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

PROGRAM = Path(__file__).with_name("gpu_memory.py")
DRIVER = Path(__file__).parents[2] / "build/release/test/fake_cuda/libcuda.so.1"


@pytest.mark.skipif(not DRIVER.exists(), reason="the fake driver is not built")
@pytest.mark.parametrize("fabrics", ["tcp", "local,tcp"])
def test_addresses_of_a_gpu_are_recognised_and_no_cpu_touches_them(fabrics: str) -> None:
    settings = {"KVFERRY_CUDA_DRIVER": str(DRIVER), "KVFERRY_FABRICS": fabrics}
    words = [sys.executable, str(PROGRAM)]
    environment = {**os.environ, **settings}
    ended = subprocess.run(words, env=environment, capture_output=True, text=True, timeout=60, check=False)
    assert ended.returncode == 0, ended.stderr
    blocks = 128
    assert json.loads(ended.stdout.splitlines()[-1]) == {
        "read": 0,
        "blocks that are the owner's": blocks,
        "other bytes that changed": 0,
        "write": 0,
        "written": True,
        "stored": -1,
        "loaded": "memory at there is cuda's, which a CPU may not touch",
    }
