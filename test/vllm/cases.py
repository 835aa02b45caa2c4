"""The cases: what users see of a pair of servers with kvferry between them. Each runs on a deployment that is up."""

from __future__ import annotations

import http.client
import signal
import statistics
import threading
import time
import urllib.parse
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from itertools import product
from typing import Any

from asking import TIMEOUT, Answer, AskError, ask, ask_all, body_of, post, prompts
from checking import BLOCK_TOKENS, CheckError, Ledger, check, check_equal, eventually, forget_prefixes
from legs import decode_params, prefill
from servers import Deployment, Server, get, running, used_blocks

Result = dict[str, Any]
Case = Callable[[Deployment], Result]

LIMIT = 30.0
"""Seconds for what comes soon: half of what a read may take, and leases that a case does not wait for have 480."""
TRIES = 3
"""For what has a limit of its own on a machine that may stand still."""


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


def swapped_kv(deployment: Deployment) -> Result:
    """Each of two prompts with one length and last token is asked for with the other's KV. On vLLM's own connector it
    gets the other's answer, which shows that the comparison can fail; KVFerryConnector refuses."""
    one, other = prompts(2, seed=4, shortest=900, longest=900)
    other[-1] = one[-1]
    alone = local(deployment, [one, other])
    check(not alone[0].equals(alone[1]), "two prompts have the same answer")
    ledger = Ledger(deployment)
    for prompt, transfer_id in ((one, "xfer-one"), (other, "xfer-other")):
        prefill(deployment, prompt, transfer_id)
    for prompt, transfer_id, theirs in ((one, "xfer-other", alone[1]), (other, "xfer-one", alone[0])):
        params = decode_params(deployment, transfer_id)
        if deployment.setup.connector == "mooncake":
            got = ask(deployment.decoder.port, prompt, kv_transfer_params=params)
            check_equal([got], [theirs])
        else:
            answer = post(deployment.decoder.port, "/v1/completions", body_of(prompt, kv_transfer_params=params))
            answer.read()
            check(answer.status == 500, f"the KV of another prompt is answered with {answer.status}")
    _free(deployment)
    forget_prefixes(deployment.decoder)
    return ledger.close([one, other] if deployment.setup.connector == "mooncake" else [])


def both_ways(deployment: Deployment) -> Result:
    """Servers of the role kv_both: each reads from the other."""
    moved: list[dict[str, int]] = []
    for seed in (13, 14):
        wanted = prompts(4, seed, shortest=300)
        alone = local(deployment, wanted)
        ledger = Ledger(deployment)
        got = []
        for number, prompt in enumerate(wanted):
            transfer_id = f"xfer-both-{seed}-{number}"
            prefill(deployment, prompt, transfer_id)
            params = decode_params(deployment, transfer_id)
            got.append(ask(deployment.decoder.port, prompt, kv_transfer_params=params))
        check_equal(got, alone)
        moved.append(ledger.close(wanted))
        _free(deployment)
        deployment.swap()
    return {key: moved[0][key] + moved[1][key] for key in moved[0]}


def planted_fault(deployment: Deployment) -> Result:
    """The comparison is made: without the last layer's KV, answers differ and bytes are missed."""
    wanted = prompts(2, seed=10, shortest=900)
    alone = local(deployment, wanted)
    ledger = Ledger(deployment)
    deployment.plant.touch()
    try:
        got = ask_all(deployment.proxy.port, wanted)
    finally:
        deployment.plant.unlink()
    check(not any(a.equals(b) for a, b in zip(got, alone, strict=True)), "answers do not depend on the last layer's KV")
    try:
        told = ledger.close(wanted)
    except CheckError as missed:
        check(str(missed).startswith("bytes read are not"), f"bytes are not what is missed: {missed}")
    else:
        raise CheckError(f"nothing is missed of a layer that was not moved: {told}")
    forget_prefixes(deployment.decoder)
    return {}


# ---- endings


def _free(deployment: Deployment) -> float:
    """A few ms where nothing else runs, up to half a second on a busy machine, more where it stands still; the lease
    has 480 s."""
    return eventually(lambda: used_blocks(deployment.prefiller) == 0, LIMIT, "the prefiller has all of its blocks back")


def _count(server: Server, metric: str, **labels: str) -> Callable[[], bool]:
    """Whether it has grown since now."""
    before = server.metric(metric, **labels)
    return lambda: server.metric(metric, **labels) > before


def _stages(deployment: Deployment) -> dict[str, Callable[[], bool]]:
    """When a client leaves."""
    published = _count(deployment.prefiller, "vllm:kvferry_parcels_published_total")
    return {
        "sent": lambda: True,
        # Its metrics show a prompt of one step only when that has ended; then it may have been seen too late.
        "computing": lambda: deployment.proxy.metric("kvferry_proxy_backend_requests", role="prefill") > 0
        or published(),
        "published": published,
        "read": _count(deployment.decoder, "vllm:kvferry_read_bytes_total"),
        "decoding": _count(deployment.decoder, "vllm:generation_tokens_total"),
    }


def post_only(port: int, body: bytes) -> http.client.HTTPConnection:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=TIMEOUT)
    connection.request("POST", "/v1/completions", body, {"Content-Type": "application/json"})
    return connection


def _free_for_good(deployment: Deployment, began: float) -> float:
    """Seconds from `began` until the prefiller had all of its blocks back and kept them: what reaches it late shows."""
    since: float | None = None

    def stays_free() -> bool:
        nonlocal since
        is_free = running(deployment.prefiller) == 0 and used_blocks(deployment.prefiller) == 0
        seen = time.monotonic()
        since = (since or seen) if is_free else None
        return since is not None and seen - since > 0.3

    eventually(stays_free, LIMIT, "the prefiller has all of its blocks back")
    assert since is not None
    return since - began


def _leave(deployment: Deployment, stage: str, stream: bool, seed: int) -> float:
    """A client leaves at this stage: how long until the prefiller has its blocks back."""
    (prompt,) = prompts(1, seed, shortest=1700)
    reached = _stages(deployment)[stage]
    # Until then the prefiller may not have the request yet, and looks as if it had given it back.
    was_sent_on = _count(deployment.proxy, "kvferry_proxy_legs_total", leg="prefill")
    connection = post_only(deployment.proxy.port, body_of(prompt, stream, max_tokens=200, min_tokens=200))
    eventually(reached, LIMIT, f"the request gets as far as {stage}")
    began = time.monotonic()
    connection.close()
    eventually(was_sent_on, LIMIT, "the proxy is done with the prefiller")
    seconds = _free_for_good(deployment, began)
    eventually(lambda: running(deployment.decoder) == 0, LIMIT, "the decoder has ended the request")
    return seconds


def client_gone(deployment: Deployment) -> Result:
    """A client that leaves at each stage: the prefiller has its blocks back within a second."""
    worst = 0.0
    for number, (stage, stream) in enumerate(product(_stages(deployment), (False, True))):
        took: list[float] = []
        while not took or (took[-1] >= 1 and len(took) < TRIES):
            took.append(_leave(deployment, stage, stream, seed=100 + TRIES * number + len(took)))
        check(min(took) < 1, f"a client that left when {stage} (streamed: {stream}) held blocks for {took} s")
        worst = max(worst, min(took))
    (prompt,) = prompts(1, seed=99, shortest=600)
    check_equal([ask(deployment.proxy.port, prompt)], local(deployment, [prompt]))
    return {"seconds_until_free": round(worst, 3)}


def nobody_comes(deployment: Deployment) -> Result:
    """A prompt that was computed and that no decoder asks for is released at once by DELETE."""
    transfer_id = "xfer-nobody"
    (prompt,) = prompts(1, seed=5, shortest=900)
    prefill(deployment, prompt, transfer_id)
    eventually(lambda: used_blocks(deployment.prefiller) > 0, LIMIT, "the prefiller keeps the blocks")
    path = f"/v1/parcels/{urllib.parse.quote(transfer_id)}?force=1"
    began = time.monotonic()
    eventually(lambda: get(deployment.bootstrap_port, path, "DELETE")[0] == 200, LIMIT, "the parcel is released")
    _free(deployment)
    return {"seconds_until_free": round(time.monotonic() - began, 3)}


def _abort_prefill(deployment: Deployment, number: int) -> tuple[int, float]:
    """What the decoder that waits for the prompt answers, and how long after the prefiller's client has left."""
    ahead = prompts(12, seed=15, shortest=1700)
    (prompt,) = prompts(1, seed=150 + number, shortest=900)
    transfer_id = f"xfer-aborted-{number}"
    params = {"do_remote_decode": True, "do_remote_prefill": False, "transfer_id": transfer_id}
    decode = body_of(prompt, kv_transfer_params=decode_params(deployment, transfer_id))
    answered = _count(deployment.decoder, "vllm:request_success_total")
    others = [post_only(deployment.prefiller.port, body_of(one, max_tokens=100)) for one in ahead]
    asked = post_only(deployment.prefiller.port, body_of(prompt, max_tokens=1, min_tokens=1, kv_transfer_params=params))
    waiting = post_only(deployment.decoder.port, decode)
    eventually(
        lambda: (running(deployment.decoder) > 0 and running(deployment.prefiller) > len(ahead)) or answered(),
        LIMIT,
        "the prompt waits, and the decoder for it",
    )
    asked.close()
    left = time.monotonic()
    answer = waiting.getresponse()
    answer.read()
    took = time.monotonic() - left
    for other in [*others, waiting]:
        other.close()
    eventually(lambda: running(deployment.prefiller) == 0, LIMIT, "the prefiller has ended the requests")
    _free(deployment)
    forget_prefixes(deployment.prefiller)
    forget_prefixes(deployment.decoder)
    return answer.status, took


def prefill_aborted(deployment: Deployment) -> Result:
    """A decoder that waits for a prompt hears at once that it will not come. The prompt is behind others, and may have
    its turn before its client has left all the same: then the decoder answers, and it is tried again."""
    for attempt in range(5):
        status, took = _abort_prefill(deployment, attempt)
        if status == 500:
            check(took < LIMIT, f"the decoder waited for {took:.1f} s")
            return {"seconds_until_told": round(took, 3), "attempts": attempt + 1}
        check(status == 200, f"the decoder answers {status}")
    raise CheckError("the prompt was never aborted before it was computed")


def lease_ends(deployment: Deployment) -> Result:
    """With a lease of 4 s: a decoder that comes too late fails the request, and never answers from what it read."""
    warm, prompt = prompts(2, seed=6, shortest=900, longest=901)
    ask(deployment.prefiller.port, warm)  # what is compiled for a server's first prompt takes longer than the lease
    eventually(lambda: used_blocks(deployment.prefiller) == 0, LIMIT, "the prefiller is idle")
    published = _count(deployment.prefiller, "vllm:kvferry_parcels_published_total")
    expired = _count(deployment.prefiller, "vllm:kvferry_parcels_expired_total")
    prefill(deployment, prompt, "xfer-late")
    eventually(published, LIMIT, "the prompt is published")
    held = eventually(expired, LIMIT, "the lease ends")
    _free(deployment)
    late = decode_params(deployment, "xfer-late")
    answer = post(deployment.decoder.port, "/v1/completions", body_of(prompt, kv_transfer_params=late))
    answer.read()
    check(answer.status == 500, f"a decoder that comes too late answers {answer.status}")
    return {"seconds_held": round(held, 2)}


class Asked:
    """Requests on their way, each in a thread of its own; some of them may fail."""

    def __init__(self, port: int, wanted: list[list[int]]) -> None:
        self._answers: list[Answer | None] = [None] * len(wanted)
        self._threads = [threading.Thread(target=self._ask, args=(port, i, wanted[i])) for i in range(len(wanted))]
        for thread in self._threads:
            thread.start()

    def end(self, alone: list[Answer]) -> int:
        """Every one ends, with the right answer or an error; how many were answered."""
        deadline = time.monotonic() + 120
        for thread in self._threads:
            thread.join(deadline - time.monotonic())
        check(not any(thread.is_alive() for thread in self._threads), "every request ends")
        answered = [(answer, right) for answer, right in zip(self._answers, alone, strict=True) if answer is not None]
        check_equal([answer for answer, _ in answered], [right for _, right in answered])
        return len(answered)

    def _ask(self, port: int, number: int, prompt: list[int]) -> None:
        with suppress(AskError, OSError):
            self._answers[number] = ask(port, prompt)


def slow_decoder(deployment: Deployment) -> Result:
    """With a lease of 4 s, a decoder that is stopped for longer: it reads nothing that is not valid any more."""
    wanted = prompts(6, seed=11, shortest=900)
    alone = local(deployment, wanted)
    published = _count(deployment.prefiller, "vllm:kvferry_parcels_published_total")
    expired = _count(deployment.prefiller, "vllm:kvferry_parcels_expired_total")
    asked = Asked(deployment.proxy.port, wanted)
    eventually(published, LIMIT, "the prefiller has published a prompt")
    deployment.decoder.send_signal(signal.SIGSTOP)
    try:
        eventually(expired, LIMIT, "a lease ends")
        eventually(lambda: used_blocks(deployment.prefiller) == 0, LIMIT, "the prefiller has its blocks back")
    finally:
        deployment.decoder.send_signal(signal.SIGCONT)
    answered = asked.end(alone)
    if deployment.setup.policy == "recompute":
        check(answered == len(wanted), f"{answered} of {len(wanted)} requests were answered")
    forget_prefixes(deployment.decoder)
    for prompt, right in zip(wanted, alone, strict=True):
        eventually(partial(_is_answered, deployment, prompt, right), 60, "requests work afterwards")
    return {"answered": answered, "asked": len(wanted)}


def _is_answered(deployment: Deployment, prompt: list[int], right: Answer) -> bool:
    """It may fail, as a lease may end before a busy machine comes to read; a wrong answer may not be."""
    try:
        got = ask(deployment.proxy.port, prompt)
    except (AskError, OSError):
        return False
    check_equal([got], [right])
    return True


def prefiller_killed(deployment: Deployment) -> Result:
    """In the middle of requests, and started again: the next request works without anything else restarted."""
    wanted = prompts(8, seed=7, shortest=900)
    alone = local(deployment, wanted)
    asked = Asked(deployment.proxy.port, wanted)
    eventually(lambda: used_blocks(deployment.prefiller) > 0, LIMIT, "the prefiller computes")
    deployment.prefiller.kill()
    began = time.monotonic()
    answered = asked.end(alone)
    bounded = time.monotonic() - began
    check(get(deployment.decoder.port, "/health")[0] == 200, "the decoder lives")
    deployment.prefiller = deployment.start_prefiller(deployment.prefiller.port)
    deployment.prefiller.wait_until_up()
    eventually(lambda: _reads(deployment, wanted[0], alone[0]), 60, "KV is read from the prefiller after its restart")
    forget_prefixes(deployment.decoder)
    ledger = Ledger(deployment)
    check_equal(ask_all(deployment.proxy.port, wanted), alone)
    return ledger.close(wanted) | {"answered": answered, "seconds_until_all_ended": round(bounded, 2)}


def _works(deployment: Deployment, prompt: list[int], wanted: Answer) -> bool:
    try:
        return ask(deployment.proxy.port, prompt).equals(wanted)
    except (AskError, OSError):
        return False


def _reads(deployment: Deployment, prompt: list[int], wanted: Answer) -> bool:
    """The proxy lets the decoder compute prompts itself while there is no prefiller."""
    forget_prefixes(deployment.decoder)
    read = _count(deployment.decoder, "vllm:kvferry_read_bytes_total")
    return _works(deployment, prompt, wanted) and read()


def decoder_killed(deployment: Deployment) -> Result:
    """In the middle of requests: the prefiller has its blocks back once the decoder counts as dead."""
    wanted = prompts(6, seed=8, shortest=1500)
    alone = local(deployment, wanted)
    read = _count(deployment.decoder, "vllm:kvferry_read_bytes_total")
    asked = Asked(deployment.proxy.port, wanted)
    eventually(read, LIMIT, "the decoder has read a parcel")
    deployment.decoder.kill()
    answered = asked.end(alone)
    freed = eventually(lambda: used_blocks(deployment.prefiller) == 0, LIMIT, "the prefiller has its blocks back")
    deployment.decoder = deployment.start_decoder(deployment.decoder.port)
    deployment.decoder.wait_until_up()
    eventually(lambda: _works(deployment, wanted[0], alone[0]), 60, "requests work after the restart")
    return {"answered": answered, "seconds_until_free": round(freed, 2)}


# ---- times


def _first_and_last(port: int, body: bytes) -> tuple[float, float]:
    """Seconds until a streamed answer's first token and its end."""
    began = time.perf_counter()
    answer = post(port, "/v1/completions", body)
    answer.readline()
    first = time.perf_counter()
    answer.read()
    return first - began, time.perf_counter() - began


def timings(deployment: Deployment, rounds: int = 21) -> Result:
    """Medians in ms. Each request is then repeated on the decoder, which has all of its blocks now (the hand-over is
    what the first token took longer before), and once more in the decoder alone, when it has forgotten them."""
    # Whole blocks and one token, which the decoder computes in each case.
    wanted = prompts(rounds, seed=9, shortest=7 * BLOCK_TOKENS + 1, longest=7 * BLOCK_TOKENS + 1)
    decoder = deployment.decoder
    legs: dict[str, list[float]] = {"prefill_ms": [], "decode_ms": [], "handover_ms": [], "alone_ms": []}
    for number, prompt in enumerate(wanted):
        transfer_id = f"xfer-time-{number}"
        d = decode_params(deployment, transfer_id)
        sixteen = {"max_tokens": 16, "min_tokens": 16}
        began = time.perf_counter()
        prefill(deployment, prompt, transfer_id)
        legs["prefill_ms"].append(time.perf_counter() - began)
        first, whole = _first_and_last(decoder.port, body_of(prompt, True, kv_transfer_params=d, **sixteen))
        cached, _ = _first_and_last(decoder.port, body_of(prompt, True, **sixteen))
        forget_prefixes(decoder)
        _, alone = _first_and_last(decoder.port, body_of(prompt, True, **sixteen))
        forget_prefixes(decoder)
        legs["decode_ms"].append(whole)
        legs["handover_ms"].append(first - cached)
        legs["alone_ms"].append(alone)
    # The first request compiles and makes the first contact.
    return {name: round(1e3 * statistics.median(values[1:]), 1) for name, values in legs.items()}
