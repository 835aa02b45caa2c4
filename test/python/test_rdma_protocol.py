"""The protocol rdma on a machine that has a device, as far as files in the place of /sys/class tell."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

RELEASE = Path(__file__).parents[2] / "build/release"
# By the name of ucx, both: one that moves nothing, and the real one, which has no device here.
NULL_FABRIC, PLUGINS = RELEASE / "test/null_fabric", RELEASE / "lib"

MOONCAKE = """
import sys
from mooncake.engine import TransferEngine
engine = TransferEngine()
print(engine.describe() if engine.initialize("127.0.0.1", "P2PHANDSHAKE", sys.argv[1], "") == 0 else "{}")
"""
KVFERRY = """
import sys, kvferry
with kvferry.Engine(protocol=sys.argv[1]) as engine:
    print(engine.describe())
"""

pytestmark = [
    pytest.mark.skipif(os.geteuid() != 0, reason="only root can put other files in the place of /sys/class"),
    pytest.mark.skipif(
        not all(list(folder.glob("libkvferry_fabric_ucx.so")) for folder in (NULL_FABRIC, PLUGINS)),
        reason="the release build with its plug-ins is not here",
    ),
]


@pytest.fixture
def classes(tmp_path: Path) -> Path:
    port = tmp_path / "class/infiniband/rdma0/ports/1"
    (port / "gid_attrs/ndevs").mkdir(parents=True)
    (port / "state").write_text("4: ACTIVE\n")
    (port / "gid_attrs/ndevs/0").write_text("lo\n")
    return tmp_path / "class"


def run(classes: Path, program: str, protocol: str, **environment: str) -> subprocess.CompletedProcess[str]:
    inside = 'mount --bind "$1" /sys/class && shift && exec "$@"'
    command = ["unshare", "--mount", "sh", "-c", inside, "sh", str(classes), sys.executable, "-c", program, protocol]
    return subprocess.run(command, capture_output=True, text=True, env={**os.environ, **environment}, check=False)


def told(ran: subprocess.CompletedProcess[str]) -> dict[str, Any]:
    assert ran.returncode == 0, ran.stderr
    return dict(json.loads(ran.stdout))


@pytest.mark.parametrize("protocol", ["rdma", "auto"])
def test_a_device_and_a_plugin_are_used(classes: Path, protocol: str) -> None:
    ran = run(classes, MOONCAKE, protocol, KVFERRY_PLUGINS=str(NULL_FABRIC))
    why = "rdma0 at 127.0.0.1, an address of lo"
    assert told(ran)["fabrics"] == ["local", "ucx", "tcp"]
    assert told(ran)["protocol"] == {"asked": protocol, "fabric": "ucx", "why": why}
    assert ran.stderr == ""
    ran = run(classes, KVFERRY, protocol, KVFERRY_PLUGINS=str(NULL_FABRIC))
    assert told(ran)["rdma"] == {"fabric": "ucx", "why": why}


def test_the_users_fabrics_go_before_the_protocol(classes: Path) -> None:
    ran = run(classes, MOONCAKE, "rdma", KVFERRY_PLUGINS=str(NULL_FABRIC), KVFERRY_FABRICS="tcp")
    assert told(ran)["fabrics"] == ["tcp"] and "rdma" not in told(ran)


def test_keys_keep_auto_from_what_is_not_encrypted(classes: Path, tmp_path: Path) -> None:
    secret = tmp_path / "psk"
    secret.write_text("only for this test, " * 2)
    secret.chmod(0o600)
    settings = {"KVFERRY_PLUGINS": str(NULL_FABRIC), "KVFERRY_PSK_FILE": str(secret)}
    assert told(run(classes, MOONCAKE, "auto", **settings))["fabrics"] == ["local", "tcp"]
    assert told(run(classes, MOONCAKE, "rdma", **settings))["fabrics"] == ["local", "ucx", "tcp"]


def test_a_plugin_that_would_use_no_device_is_passed_over_with_one_line(classes: Path) -> None:
    settings = {"KVFERRY_PLUGINS": str(PLUGINS), "KVFERRY_UCX_TLS": "tcp,self"}
    ran = run(classes, MOONCAKE, "rdma", **settings)
    assert told(ran)["fabrics"] == ["local", "tcp"] and told(ran)["plugins"] == {}
    (line,) = ran.stderr.splitlines()
    assert "protocol rdma: rdma0 at 127.0.0.1" in line
    assert "ucx: it would not use a device" in line and "; ofi: " in line
    assert told(run(classes, MOONCAKE, "auto", **settings))["fabrics"] == ["local", "tcp"]
    refused = run(classes, KVFERRY, "rdma", **settings)
    assert refused.returncode == 1 and "it would not use a device" in refused.stderr
