"""The cases: what users see of a pair of servers with kvferry between them. Each runs on a deployment that is up."""

from __future__ import annotations

import http.client
import json
import signal
import statistics
import threading
import time
import urllib.parse
from collections.abc import Callable
from contextlib import suppress
from typing import Any

from asking import Answer, AskError, ask, ask_all, body_of, post, prompts
from checking import BLOCK_TOKENS, Ledger, blocks_of, check, check_equal, eventually, forget_prefixes
from servers import Deployment, Server, get, running, used_blocks

Result = dict[str, Any]
Case = Callable[[Deployment], Result]


def local(deployment: Deployment, wanted: list[list[int]]) -> list[Answer]:
    """What one server alone answers: the decoder, which forgets it afterwards."""
    forget_prefixes(deployment.decoder)
    answers = ask_all(deployment.decoder.port, wanted)
    forget_prefixes(deployment.decoder)
    return answers


def equal_answers(deployment: Deployment, count: int = 50) -> Result:
    """Half of them streamed."""
    wanted = prompts(count, seed=1)
    alone = local(deployment, wanted)
    ledger = Ledger(deployment)
    port = deployment.proxy.port
    got = [ask(port, prompt, stream=i % 2 == 1) for i, prompt in enumerate(wanted)]
    check_equal(got, alone)
    return ledger.close(wanted)


def several_at_once(deployment: Deployment) -> Result:
    wanted = prompts(16, seed=2)
    alone = local(deployment, wanted)
    ledger = Ledger(deployment)
    check_equal(ask_all(deployment.proxy.port, wanted, at_once=8), alone)
    return ledger.close(wanted)


def prefix_cache(deployment: Deployment) -> Result:
    """The decoder has the first half of the prompt; a prompt that it has whole is read to its last block alone."""
    (long,) = prompts(1, seed=3, shortest=12 * BLOCK_TOKENS + 40)
    head = long[: 6 * BLOCK_TOKENS]
    (alone_head, alone_long) = local(deployment, [head, long])
    ask(deployment.decoder.port, head)
    ledger = Ledger(deployment)
    check_equal([ask(deployment.proxy.port, long)], [alone_long])
    moved = ledger.close([long], cached_blocks=6)
    ledger = Ledger(deployment)
    check_equal([ask(deployment.proxy.port, head)], [alone_head])
    again = ledger.close([head], cached_blocks=5)
    return {key: moved[key] + again[key] for key in moved}


def other_kv_differs(deployment: Deployment) -> Result:
    """The comparison can fail: an answer on the KV of another prompt differs in its first token."""
    one, other = prompts(2, seed=4, shortest=900, longest=900)
    answers = local(deployment, [one, other])
    check(abs(answers[0].logprobs[0] - answers[1].logprobs[0]) > 1e-3, "two prompts have the same answer")
    # The very same last token on another prompt: what a decoder with swapped KV would compute.
    swapped = local(deployment, [other[:-1] + one[-1:]])[0]
    check(not swapped.equals(answers[0]), "an answer does not depend on the KV before its last token")
    return {"kv_bytes_expected": 0, "kv_bytes_read": 0, "recomputed_blocks": 0}


# ---- endings


def _free(deployment: Deployment, seconds: float = 1.0) -> float:
    return eventually(
        lambda: used_blocks(deployment.prefiller) == 0, seconds, "the prefiller has all of its blocks back"
    )


def _count(server: Server, metric: str) -> Callable[[], bool]:
    """Whether it has grown since now."""
    before = server.metric(metric)
    return lambda: server.metric(metric) > before


def _stages(deployment: Deployment) -> dict[str, Callable[[], bool]]:
    """When a client leaves."""
    return {
        "sent": lambda: True,
        "computing": lambda: used_blocks(deployment.prefiller) > 0,
        "published": _count(deployment.prefiller, "vllm:kvferry_parcels_published_total"),
        "read": _count(deployment.decoder, "vllm:kvferry_read_bytes_total"),
        "decoding": _count(deployment.decoder, "vllm:generation_tokens_total"),
    }


def post_only(port: int, body: bytes) -> http.client.HTTPConnection:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
    connection.request("POST", "/v1/completions", body, {"Content-Type": "application/json"})
    return connection


def client_gone(deployment: Deployment) -> Result:
    """A client that leaves at each stage: the prefiller has its blocks back."""
    longest = 0.0
    for number, stage in enumerate(_stages(deployment)):
        for stream in (False, True):
            (prompt,) = prompts(1, seed=100 + 2 * number + stream, shortest=1700)
            reached = _stages(deployment)[stage]
            connection = post_only(deployment.proxy.port, body_of(prompt, stream, max_tokens=200, min_tokens=200))
            eventually(reached, 20, f"the request gets as far as {stage}")
            connection.close()
            eventually(lambda: running(deployment.prefiller) == 0, 20, "the prefiller has ended the request")
            longest = max(longest, _free(deployment))
            eventually(lambda: running(deployment.decoder) == 0, 20, "the decoder has ended the request")
    (prompt,) = prompts(1, seed=99, shortest=600)
    check_equal([ask(deployment.proxy.port, prompt)], local(deployment, [prompt]))
    return {"seconds_until_free": round(longest, 3)}


def nobody_comes(deployment: Deployment) -> Result:
    """A prompt that was computed and that no decoder asks for is released at once by DELETE."""
    transfer_id = "xfer-nobody"
    (prompt,) = prompts(1, seed=5, shortest=900)
    params = {"do_remote_decode": True, "do_remote_prefill": False, "transfer_id": transfer_id}
    answer = post(
        deployment.prefiller.port,
        "/v1/completions",
        body_of(prompt, max_tokens=1, min_tokens=1, kv_transfer_params=params),
    )
    check(answer.status == 200, "the prefiller answers")
    answer.read()
    eventually(lambda: used_blocks(deployment.prefiller) > 0, 5, "the prefiller keeps the blocks")
    path = f"/v1/parcels/{urllib.parse.quote(transfer_id)}?force=1"
    began = time.monotonic()
    status, _ = get(deployment.bootstrap_port, path, "DELETE")
    check(status == 200, f"DELETE answers {status}")
    _free(deployment)
    return {"seconds_until_free": round(time.monotonic() - began, 3)}


def lease_ends(deployment: Deployment) -> Result:
    """With a lease of 2 s: a decoder that comes too late fails the request, and never answers from what it read."""
    (prompt,) = prompts(1, seed=6, shortest=900)
    transfer_id = "xfer-late"
    params = {"do_remote_decode": True, "do_remote_prefill": False, "transfer_id": transfer_id}
    body = body_of(prompt, max_tokens=1, min_tokens=1, kv_transfer_params=params)
    post(deployment.prefiller.port, "/v1/completions", body).read()
    eventually(lambda: used_blocks(deployment.prefiller) > 0, 2, "the prefiller keeps the blocks")
    held = eventually(lambda: used_blocks(deployment.prefiller) == 0, 6, "the lease ends")
    workers = json.loads(get(deployment.bootstrap_port, "/query")[1])
    late = {
        "do_remote_prefill": True,
        "do_remote_decode": False,
        "transfer_id": transfer_id,
        "remote_bootstrap_addr": f"http://127.0.0.1:{deployment.bootstrap_port}",
        "remote_engine_id": workers["0"]["engine_id"],
    }
    answer = post(deployment.decoder.port, "/v1/completions", body_of(prompt, kv_transfer_params=late))
    answer.read()
    check(answer.status == 500, f"a decoder that comes too late answers {answer.status}")
    return {"seconds_held": round(held, 2)}


def prefiller_killed(deployment: Deployment) -> Result:
    """In the middle of requests, and started again: the next request works without anything else restarted."""
    wanted = prompts(8, seed=7, shortest=900)
    alone = local(deployment, wanted)
    ended: list[Answer | None] = [None] * len(wanted)

    def one(number: int) -> None:
        with suppress(AskError, OSError):
            ended[number] = ask(deployment.proxy.port, wanted[number])

    threads = [threading.Thread(target=one, args=(i,)) for i in range(len(wanted))]
    for thread in threads:
        thread.start()
    eventually(lambda: used_blocks(deployment.prefiller) > 0, 20, "the prefiller computes")
    deployment.prefiller.kill()
    began = time.monotonic()
    for thread in threads:
        thread.join(120)
    check(not any(thread.is_alive() for thread in threads), "every request ends")
    bounded = time.monotonic() - began
    check_equal(
        [answer for answer in ended if answer is not None],
        [alone[i] for i, answer in enumerate(ended) if answer is not None],
    )
    check(get(deployment.decoder.port, "/health")[0] == 200, "the decoder lives")
    deployment.prefiller = deployment.start_prefiller(deployment.prefiller.port)
    deployment.prefiller.wait_until_up()
    forget_prefixes(deployment.decoder)
    eventually(lambda: _works(deployment, wanted[0], alone[0]), 30, "requests work after the restart")
    forget_prefixes(deployment.decoder)
    ledger = Ledger(deployment)
    check_equal(ask_all(deployment.proxy.port, wanted), alone)
    return ledger.close(wanted) | {"seconds_until_all_ended": round(bounded, 2)}


def _works(deployment: Deployment, prompt: list[int], wanted: Answer) -> bool:
    try:
        return ask(deployment.proxy.port, prompt).equals(wanted)
    except (AskError, OSError):
        return False


def decoder_killed(deployment: Deployment) -> Result:
    """In the middle of requests: the prefiller has its blocks back once the decoder counts as dead."""
    wanted = prompts(6, seed=8, shortest=1500)

    def one(prompt: list[int]) -> None:
        with suppress(AskError, OSError):
            ask(deployment.proxy.port, prompt)

    threads = [threading.Thread(target=one, args=(prompt,)) for prompt in wanted]
    for thread in threads:
        thread.start()
    eventually(lambda: used_blocks(deployment.prefiller) > 0, 20, "the prefiller computes")
    deployment.decoder.kill(signal.SIGKILL)
    for thread in threads:
        thread.join(120)
    check(not any(thread.is_alive() for thread in threads), "every request ends")
    freed = eventually(lambda: used_blocks(deployment.prefiller) == 0, 15, "the prefiller has its blocks back")
    deployment.decoder = deployment.start_decoder(deployment.decoder.port)
    deployment.decoder.wait_until_up()
    alone = local(deployment, wanted[:1])
    eventually(lambda: _works(deployment, wanted[0], alone[0]), 30, "requests work after the restart")
    return {"seconds_until_free": round(freed, 2)}


# ---- times


def timings(deployment: Deployment) -> Result:
    """Medians in ms of the prefill leg, the decode leg and the hand-over: the same request in one server beside it."""
    wanted = prompts(21, seed=9, shortest=939, longest=939)
    bootstrap = f"http://127.0.0.1:{deployment.bootstrap_port}"
    engine_id = json.loads(get(deployment.bootstrap_port, "/query")[1])["0"]["engine_id"]
    legs: dict[str, list[float]] = {"prefill_ms": [], "decode_ms": [], "first_token_ms": [], "alone_ms": []}
    for number, prompt in enumerate(wanted):
        transfer_id = f"xfer-time-{number}"
        p = {"do_remote_decode": True, "do_remote_prefill": False, "transfer_id": transfer_id}
        d = {
            "do_remote_decode": False,
            "do_remote_prefill": True,
            "transfer_id": transfer_id,
            "remote_bootstrap_addr": bootstrap,
            "remote_engine_id": engine_id,
        }
        began = time.perf_counter()
        post(
            deployment.prefiller.port,
            "/v1/completions",
            body_of(prompt, max_tokens=1, min_tokens=1, kv_transfer_params=p),
        ).read()
        prefilled = time.perf_counter()
        answer = post(
            deployment.decoder.port,
            "/v1/completions",
            body_of(prompt, stream=True, max_tokens=16, min_tokens=16, kv_transfer_params=d),
        )
        answer.readline()
        first = time.perf_counter()
        answer.read()
        ended = time.perf_counter()
        forget_prefixes(deployment.decoder)
        alone = time.perf_counter()
        post(
            deployment.decoder.port, "/v1/completions", body_of(prompt, stream=True, max_tokens=16, min_tokens=16)
        ).read()
        legs["alone_ms"].append(time.perf_counter() - alone)
        legs["prefill_ms"].append(prefilled - began)
        legs["first_token_ms"].append(first - prefilled)
        legs["decode_ms"].append(ended - prefilled)
        forget_prefixes(deployment.decoder)
    # The first request compiles and makes the first contact.
    return {name: round(1e3 * statistics.median(values[1:]), 1) for name, values in legs.items()} | {
        "first_contact_ms": round(1e3 * legs["first_token_ms"][0], 1),
        "blocks": blocks_of(939),
    }
