"""The two requests that the proxy makes of one, sent by a test itself."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from asking import body_of, post
from checking import check
from servers import Deployment, get


def prefill(deployment: Deployment, prompt: Sequence[int], transfer_id: str) -> None:
    params = {"do_remote_decode": True, "do_remote_prefill": False, "transfer_id": transfer_id}
    body = body_of(prompt, max_tokens=1, min_tokens=1, kv_transfer_params=params)
    answer = post(deployment.prefiller.port, "/v1/completions", body)
    answer.read()
    check(answer.status == 200, f"the prefiller answers {answer.status}")


def decode_params(deployment: Deployment, transfer_id: str) -> dict[str, Any]:
    """`kv_transfer_params` of the decoder's request."""
    workers = json.loads(get(deployment.bootstrap_port, "/query")[1])
    return {
        "do_remote_prefill": True,
        "do_remote_decode": False,
        "transfer_id": transfer_id,
        "remote_bootstrap_addr": f"http://127.0.0.1:{deployment.bootstrap_port}",
        "remote_engine_id": workers["0"]["engine_id"],
    }
