"""The plug-in of ucx with a later UCX than it was built with, as many machines have one: that of PyPI's wheel."""

import os
import subprocess
from importlib.util import find_spec
from pathlib import Path

import pytest

BUILD = Path(__file__).parents[2] / "build/release"


def libraries() -> Path:
    spec = find_spec("libucx")
    assert spec is not None and spec.origin is not None
    return Path(spec.origin).parent / "lib"


@pytest.mark.skipif(
    not list(BUILD.glob("lib/libkvferry_fabric_ucx.so")), reason="the plug-in of ucx is not built in build/release"
)
@pytest.mark.parametrize(
    ("program", "names"),
    [
        ("conformance_test", "*Transfers*/ucx*-*nic:*LargeSpans*"),
        ("plugin_test", "All/Plugin.*/ucx*:UcxPlugin.*"),
    ],
)
def test_the_suites_hold_with_a_later_ucx(program: str, names: str) -> None:
    environment = {**os.environ, "LD_LIBRARY_PATH": str(libraries()), "KVFERRY_UCX_TLS": "tcp,self"}
    doctor = [str(BUILD / "bin/kvferry-bench"), "--doctor"]
    said = subprocess.run(doctor, env=environment, capture_output=True, text=True, timeout=60, check=True).stdout
    assert "viable, not named by KVFERRY_FABRICS: never used (UCX 1.22" in said
    del environment["KVFERRY_UCX_TLS"]
    words = [str(BUILD / "test" / program), f"--gtest_filter={names}", "--gtest_brief=1"]
    ended = subprocess.run(words, env=environment, capture_output=True, text=True, timeout=240, check=False)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    assert "[  PASSED  ]" in ended.stdout
