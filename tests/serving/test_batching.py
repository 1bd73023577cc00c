import asyncio
import gc
import threading

import numpy as np
import pytest

from openpi_b1k.serving.batching import Batcher, Chunk, ModelFailedError
from openpi_b1k.serving.policies import Policies
from tests.serving.fakes import HORIZON, FakePolicy, expected, policies, profile


def sample(value):
    return {"proprio": np.full(256, value, np.float32), "prompt": "Go."}


def run(scenario, policy_source, **settings):
    """Runs `scenario(batcher)` in an event loop of its own."""

    async def main():
        batcher = Batcher(policy_source, **{"window_s": 0.0, **settings})
        try:
            return await scenario(batcher)
        finally:
            await batcher.close()

    return asyncio.run(main())


async def chunks_of(batcher, name, samples, client):
    """Returns the chunk of each sample, or its error."""
    return await asyncio.gather(*batcher.submit(name, samples, client), return_exceptions=True)


def values(chunks):
    return [float(chunk.actions[0, 0]) for chunk in chunks]


def test_a_chunk_per_sample_in_their_order():
    policy = FakePolicy()
    chunks = run(lambda batcher: chunks_of(batcher, "fake", [sample(3), sample(1)], "one"), policies(policy))
    np.testing.assert_array_equal(chunks[0].actions, [expected(3, step) for step in range(HORIZON)])
    assert values(chunks) == [3, 1]
    assert len(policy.batches) == 1


def test_what_is_asked_for_during_a_call_shares_the_next():
    policy = FakePolicy()

    async def scenario(batcher):
        policy.gate.clear()
        asks = [asyncio.create_task(chunks_of(batcher, "fake", [sample(1)], "first"))]
        await asyncio.to_thread(policy.entered.acquire)
        asks += [asyncio.create_task(chunks_of(batcher, "fake", [sample(value)], value)) for value in (2, 3)]
        await asyncio.sleep(0)  # lets both ask
        policy.gate.set()
        return await asyncio.gather(*asks)

    assert [values(chunks) for chunks in run(scenario, policies(policy))] == [[1], [2], [3]]
    assert [len(batch) for batch in policy.batches] == [1, 2]


def test_a_call_goes_off_when_all_clients_have_asked_or_the_window_is_over():
    policy = FakePolicy()

    async def both(batcher):
        return await asyncio.gather(*[chunks_of(batcher, "fake", [sample(value)], value) for value in (1, 2)])

    run(both, policies(policy), window_s=600.0, num_clients=lambda: 2)  # ten minutes, if it waited for the window
    assert [len(batch) for batch in policy.batches] == [2]
    alone = run(lambda batcher: chunks_of(batcher, "fake", [sample(1)], 1), policies(policy), num_clients=lambda: 2)
    assert values(alone) == [1]


@pytest.mark.parametrize(("num", "sizes"), [(1, [2]), (2, [2]), (3, [5]), (5, [5]), (6, [5, 2]), (12, [5, 5, 2])])
def test_calls_have_compiled_sizes(num, sizes):
    policy = FakePolicy()
    scenario = lambda batcher: chunks_of(batcher, "fake", [sample(i) for i in range(num)], "one")  # noqa: E731
    assert values(run(scenario, policies(policy), batch_sizes=(5, 2))) == list(range(num))
    assert [len(batch) for batch in policy.batches] == sizes


def test_warming_up_calls_every_size_once():
    policy = FakePolicy()
    run(lambda batcher: batcher.warm_up("fake", [sample(0), sample(1)]), policies(policy), batch_sizes=(3, 1))
    assert [[value for value, _ in batch] for batch in policy.batches] == [[0], [1], [0] * 3, [1] * 3]


def test_errors_belong_to_their_samples():
    policy = FakePolicy()
    samples = [sample(1), sample(np.nan), sample(666), sample(2)]
    chunks = run(lambda batcher: chunks_of(batcher, "fake", samples, "one"), policies(policy))
    assert isinstance(chunks[0], Chunk)
    assert isinstance(chunks[1], ValueError)  # in preparing it
    assert isinstance(chunks[2], RuntimeError)  # in the model: found by calling each alone
    assert values([chunks[0], chunks[3]]) == [1, 2]


def test_an_error_that_nobody_waits_for_is_no_matter(caplog):
    async def scenario(batcher):
        await asyncio.wait(batcher.submit("fake", [sample(np.nan)], "one"))

    run(scenario, policies(FakePolicy()))
    gc.collect()  # asyncio complains when what nobody looked at goes
    assert "never retrieved" not in caplog.text


def test_it_goes_on_after_a_failure():
    async def scenario(batcher):
        [error] = await chunks_of(batcher, "fake", [sample(666)], "one")
        return error, await chunks_of(batcher, "fake", [sample(1)], "one")

    error, chunks = run(scenario, policies(FakePolicy()))
    assert isinstance(error, ModelFailedError)
    assert str(error) == "RuntimeError: secret of the inside"
    assert values(chunks) == [1]


def test_one_thread_owns_the_policies_and_one_policy_is_in_memory():
    loaded, threads = [], set()

    class Owned(FakePolicy):
        def predict(self, inputs):
            threads.add(threading.current_thread().name)
            return super().predict(inputs)

    def load(name):
        threads.add(threading.current_thread().name)
        loaded.append(name)
        return Owned()

    source = Policies({name: profile(name) for name in "ab"}, load, {"turning_on_radio": "a", "can_meat": "b"})

    async def scenario(batcher):
        both = [chunks_of(batcher, "a", [sample(1), sample(2)], "one"), chunks_of(batcher, "b", [sample(3)], "two")]
        return [*await asyncio.gather(*both), await chunks_of(batcher, "b", [sample(4)], "one")]

    results = run(scenario, source, window_s=600.0, num_clients=lambda: 1)
    assert [values(chunks) for chunks in results] == [[1, 2], [3], [4]]
    assert loaded == ["a", "b"]
    assert len(threads) == 1


def test_a_policy_that_cannot_be_loaded_is_an_error_of_its_requests():
    def load(name):
        raise FileNotFoundError(f"no {name}")

    [error] = run(lambda batcher: chunks_of(batcher, "fake", [sample(1)], "one"), Policies({"fake": profile()}, load))
    assert isinstance(error, ModelFailedError)
    assert isinstance(error.__cause__, FileNotFoundError)


def test_timing_adds_up():
    [chunk] = run(lambda batcher: chunks_of(batcher, "fake", [sample(1)], "one"), policies(FakePolicy()))
    timing = chunk.timing
    assert min(timing.queue_wait_ms, timing.preprocess_ms, timing.model_ms, timing.post_ms) > 0


def test_images_are_resized_one_by_one_and_what_fails_is_left_for_prepare_to_refuse():
    resized, seen = [], []

    class Resizing(FakePolicy):
        def resize(self, image):
            resized.append(image)
            if image == "broken":
                raise ValueError("not this one")
            return f"small {image}"

        def prepare(self, sample):
            seen.append(sample["images"])
            if "broken" in sample["images"].values():
                raise ValueError("an image is broken")
            return super().prepare(sample)

    samples = [sample(1) | {"images": {"head": "a", "left_wrist": "b"}}, sample(2) | {"images": {"head": "broken"}}]
    before = [dict(one["images"]) for one in samples]
    chunk, error = run(lambda batcher: chunks_of(batcher, "fake", samples, "one"), policies(Resizing()))
    assert values([chunk]) == [1]
    assert str(error) == "an image is broken"
    assert sorted(resized) == ["a", "b", "broken"]
    assert sorted(seen, key=len) == [{"head": "broken"}, {"head": "small a", "left_wrist": "small b"}]
    assert [one["images"] for one in samples] == before
