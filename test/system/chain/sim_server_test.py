"""kvferry-sim as a server: OpenAI's API, the hand-over by parcels, and what is left behind."""

import asyncio
import json
import unittest

from fixture import PROMPT, ChainTest, body, until

from chain.client import Json, Manners, ask, fetch
from chain.metrics import Page

COMPLETIONS, CHAT = "/v1/completions", "/v1/chat/completions"


class SimServer(ChainTest):
    async def used_blocks(self, url: str) -> float:
        return Page.parse(await self.page(url + "/metrics")).total("kvferry_sim_blocks", state="used")

    async def at_rest(self) -> None:
        for url in (self.prefiller, self.decoder):

            async def free(url: str = url) -> bool:
                return await self.used_blocks(url) == 0

            await until(free)

    async def produce(self, transfer_id: str, **more: str) -> None:
        params = {"do_remote_decode": True, "do_remote_prefill": False, "transfer_id": transfer_id}
        answer = await ask(self.prefiller, COMPLETIONS, body(max_tokens=1, kv_transfer_params=params, **more))
        self.assertTrue(answer.complete, answer)

    async def consume_params(self, transfer_id: str) -> Json:
        query = json.loads(await self.page(self.bootstrap + "/query"))
        return {
            "do_remote_decode": False,
            "do_remote_prefill": True,
            "transfer_id": transfer_id,
            "remote_bootstrap_addr": self.bootstrap,
            "remote_engine_id": query["0"]["engine_id"],
        }

    async def test_answers_are_the_same_streamed_or_not_and_split_or_not(self) -> None:
        single = await ask(self.single, COMPLETIONS, body())
        self.assertTrue(single.complete, single)
        self.assertEqual(12, len(single.tokens))
        for stream in (False, True):
            for url in (self.single, self.proxy):
                answer = await ask(url, COMPLETIONS, body(stream=stream))
                self.assertTrue(answer.same(single), (url, stream, answer))
        moved = Page.parse(await self.page(self.decoder + "/metrics")).total("kvferry_sim_fetched_bytes_total")
        self.assertGreater(moved, 0)
        await self.at_rest()

    async def test_chat_with_logprobs_is_the_same_through_the_chain(self) -> None:
        chat = body(messages=[{"role": "user", "content": PROMPT}], logprobs=True, top_logprobs=2, stream=True)
        del chat["prompt"]
        single, split = await ask(self.single, CHAT, chat), await ask(self.proxy, CHAT, chat)
        self.assertTrue(single.complete and len(single.logprobs) == 12, single)
        self.assertTrue(split.same(single), split)

    async def test_pages_and_refusals(self) -> None:
        models = json.loads(await self.page(self.single + "/v1/models"))
        self.assertEqual("kvferry-sim", models["data"][0]["id"])
        for path, method, sent, status in (
            ("/nothing", "GET", b"", 404),
            (COMPLETIONS, "GET", b"", 405),
            (COMPLETIONS, "POST", b"{", 400),
            (COMPLETIONS, "POST", json.dumps(body(model="another")).encode(), 404),
        ):
            got, text = await fetch(self.single + path, method, sent)
            self.assertEqual(status, got, text)
            self.assertIn("error", json.loads(text))
        params = await self.consume_params("x")
        answer = await ask(self.prefiller, COMPLETIONS, body(kv_transfer_params=params))
        self.assertEqual(400, answer.status, "a prefiller does not decode")

    async def test_a_client_that_leaves_gives_its_blocks_back_at_once(self) -> None:
        long = body(max_tokens=2000, stream=True)
        left = await ask(self.single, COMPLETIONS, long, Manners(leave_after_s=0.5))
        self.assertEqual("left", left.error)

        async def free() -> bool:
            return await self.used_blocks(self.single) == 0

        await until(free)

    async def test_a_parcel_that_nobody_reads_is_released_by_delete(self) -> None:
        await self.produce("unread")

        async def pinned() -> bool:  # the page tells of the last step, which may be before the answer's
            return await self.used_blocks(self.prefiller) > 0

        await until(pinned)

        async def released() -> bool:  # 202: not yet at all ranks
            status, text = await fetch(f"{self.bootstrap}/v1/parcels/unread?force=1", "DELETE")
            self.assertIn(status, (200, 202), text)
            return status == 200

        await until(released)
        await self.at_rest()

    async def test_a_parcel_that_is_gone_fails_its_request(self) -> None:
        await self.produce("gone")
        await fetch(f"{self.bootstrap}/v1/parcels/gone?force=1", "DELETE")
        params = await self.consume_params("gone")
        answer = await ask(self.decoder, COMPLETIONS, body(stream=True, kv_transfer_params=params))
        self.assertEqual(500, answer.status, answer)
        self.assertNotEqual("", answer.error)
        await self.at_rest()

    async def restart_prefiller(self) -> None:
        self.chain.prefillers[0].kill()
        self.chain.prefillers[0].start()
        await self.chain.prefillers[0].ready()

    async def test_a_prefiller_that_was_restarted_is_not_waited_for(self) -> None:
        for known in (False, True):  # whether the decoder has met the instance that is killed
            with self.subTest(known=known):
                await self.restart_prefiller()
                if known:
                    await self.produce("before")
                    params = await self.consume_params("before")
                    answer = await ask(self.decoder, COMPLETIONS, body(kv_transfer_params=params))
                    self.assertTrue(answer.complete, answer)
                await self.produce("lost", cache_salt="lost")
                params = await self.consume_params("lost")
                await self.restart_prefiller()
                answer = await ask(self.decoder, COMPLETIONS, body(kv_transfer_params=params, cache_salt="lost"))
                self.assertIn(answer.status, (500, 503), answer)
                self.assertNotEqual("", answer.error)
                self.assertLess(answer.total_s, 30, "the time that a load may take is 60 s")
                await self.at_rest()

    async def test_kv_of_another_prompt_is_refused(self) -> None:
        await self.produce("other")
        params = await self.consume_params("other")
        answer = await ask(self.decoder, COMPLETIONS, body(PROMPT[1:] + "!", kv_transfer_params=params))
        self.assertEqual(500, answer.status, answer)
        self.assertIn("fingerprint", answer.error)

    async def test_a_refused_request_releases_its_parcel(self) -> None:
        await self.produce("refused")
        params = await self.consume_params("refused")
        answer = await ask(self.decoder, COMPLETIONS, body(model="another", kv_transfer_params=params))
        self.assertEqual(404, answer.status)
        await self.at_rest()

    async def test_a_prefiller_that_is_killed_is_found_again(self) -> None:
        single = await ask(self.single, COMPLETIONS, body())
        self.assertTrue((await ask(self.proxy, COMPLETIONS, body(cache_salt="1"))).same(single))
        self.chain.prefillers[0].kill()
        without = await ask(self.proxy, COMPLETIONS, body(cache_salt="2"))
        self.assertTrue(without.same(single), without)  # computed by the decoder alone
        self.chain.prefillers[0].start()
        await self.chain.prefillers[0].ready()
        fetched = Page.parse(await self.page(self.decoder + "/metrics")).total("kvferry_sim_fetched_bytes_total")

        async def moves_again() -> bool:
            answer = await ask(self.proxy, COMPLETIONS, body(cache_salt=str(asyncio.get_running_loop().time())))
            self.assertTrue(answer.same(single), answer)
            page = Page.parse(await self.page(self.decoder + "/metrics"))
            return page.total("kvferry_sim_fetched_bytes_total") > fetched

        await until(moves_again)


if __name__ == "__main__":
    unittest.main()
