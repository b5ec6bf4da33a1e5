"""Runs prompts through SGLang on the CPU, in a process of its own: sglang_run.py JSON. It reads `model`, `prompts`
(lists of tokens), `storage` (the extra configuration of a dynamic HiCache storage, or null) and `tokens`, and prints
of each prompt the tokens that follow, their log-probabilities, and how many tokens of it were loaded from the
storage. It returns when `files` files lie below the storage's path."""

import json
import pathlib
import sys
import time

PAGE = 64


def main():
    from sglang.srt.entrypoints.engine import Engine

    told = json.loads(sys.argv[1])
    cache = {
        "enable_hierarchical_cache": True, "hicache_ratio": 2.0, "hicache_write_policy": "write_through",
        "hicache_io_backend": "direct", "hicache_mem_layout": "page_first", "hicache_storage_backend": "dynamic",
        "hicache_storage_prefetch_policy": "wait_complete",
        "hicache_storage_backend_extra_config": json.dumps(told["storage"])} if told["storage"] else {}
    engine = Engine(
        model_path=told["model"], device="cpu", attention_backend="torch_native", sampling_backend="pytorch",
        grammar_backend="none", skip_tokenizer_init=True, disable_overlap_schedule=True, max_total_tokens=4096,
        page_size=PAGE, dtype="bfloat16", context_length=1024, log_level="error", enable_cache_report=True, **cache)
    answers = []
    for prompt in told["prompts"]:
        output = engine.generate(
            input_ids=prompt, return_logprob=True,
            sampling_params={"temperature": 0, "max_new_tokens": told["tokens"], "ignore_eos": True})
        described = output["meta_info"]
        answers.append({
            "tokens": output["output_ids"], "logprobs": [found[0] for found in described["output_token_logprobs"]],
            "loaded": (described.get("cached_tokens_details") or {}).get("storage", 0)})
    deadline = time.monotonic() + 60
    while told["storage"] and time.monotonic() < deadline:  # the storage's threads are at work
        if len(list(pathlib.Path(told["storage"]["path"]).rglob("*.kvc"))) >= told["files"]:
            break
        time.sleep(0.1)
    print("\n" + json.dumps(answers), flush=True)
    engine.shutdown()


if __name__ == "__main__":
    main()
