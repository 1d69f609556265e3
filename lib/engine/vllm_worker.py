"""vLLM as a program: token ids completed, asked for and answered in lines of JSON. It runs in a Python that need not
have Sharpen, and so imports nothing of it."""

import json
import os
import queue
import sys
import threading
from typing import Any


def main() -> None:
    replies = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # what libraries print stays out of the replies
    asked = json.loads(sys.argv[1])
    os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "2")  # GiB, where there is no GPU; else most of the memory
    import torch
    import vllm
    from vllm.lora.request import LoRARequest

    def reply(number: int, **said: Any) -> None:
        print(json.dumps({"id": number} | said), file=replies, flush=True)

    engine = vllm.LLM(**options(asked, torch)).llm_engine
    tuned = None
    if asked["adapter"]:
        tuned = LoRARequest("tuned", 1, asked["adapter"])
    requests: queue.SimpleQueue = queue.SimpleQueue()
    threading.Thread(target=listen, args=[requests], daemon=True).start()
    reply(0, version=vllm.__version__)
    while True:
        while not (requests.empty() and engine.has_unfinished_requests()):
            request = requests.get()
            if request is None:
                return
            sampling = vllm.SamplingParams(
                temperature=0, max_tokens=request["count"], stop=request["stop"], include_stop_str_in_output=True,
                stop_token_ids=asked["ends"], detokenize=bool(request["stop"]),
            )  # fmt: skip
            prompt = {"prompt_token_ids": request["prompt"]}
            lora = tuned if request["tuned"] else None
            try:
                engine.add_request(str(request["id"]), prompt, sampling, lora_request=lora)
            except ValueError as error:  # a prompt that does not fit
                reply(request["id"], error=str(error))
        for output in engine.step():
            if output.finished:
                reply(int(output.request_id), tokens=list(output.outputs[0].token_ids))


def options(asked: dict, torch: Any) -> dict[str, Any]:
    """How vLLM holds the model: in 32 bit on a CPU; on a GPU in 16 bit, beside what is there already."""
    chosen = {
        "model": asked["model"], "max_model_len": asked["context"], "max_num_seqs": asked["slots"],
        "enable_prefix_caching": True, "generation_config": "vllm", "disable_log_stats": True, "seed": 0,
    }  # fmt: skip
    if asked["adapter"]:
        chosen |= {"enable_lora": True, "max_lora_rank": asked["rank"]}
    if asked["quantization"]:
        chosen["quantization"] = asked["quantization"]
    if torch.cuda.is_available():
        free, total = torch.cuda.mem_get_info()
        chosen["gpu_memory_utilization"] = 0.9 * free / total
        chosen["dtype"] = "bfloat16" if torch.cuda.is_bf16_supported() else "float16"
        return chosen
    # blocks of 128 tokens, which a CPU has by default, are longer than what answers go on from
    return chosen | {"dtype": "float32", "enforce_eager": True, "block_size": 32}


def listen(requests: queue.SimpleQueue) -> None:
    """Each line as a request; None at the end, when nobody asks any more."""
    for line in sys.stdin:
        requests.put(json.loads(line))
    requests.put(None)


if __name__ == "__main__":
    main()
