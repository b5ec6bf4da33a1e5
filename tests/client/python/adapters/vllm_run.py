"""Runs prompts through vLLM on the CPU, in a process of its own: vllm_run.py JSON. It reads `model`, `prompts` (lists
of tokens), `transfer` (a kv_transfer_config, or null) and `tokens`, and prints of each prompt the tokens that follow,
their log-probabilities, and how many tokens of it were loaded."""

import json
import os
import sys

os.environ.update(
    VLLM_ENABLE_V1_MULTIPROCESSING="0", VLLM_CPU_KVCACHE_SPACE="1", VLLM_CPU_OMP_THREADS_BIND="nobind",
    VLLM_NO_USAGE_STATS="1", HF_HUB_OFFLINE="1")


def main():
    from vllm import LLM, SamplingParams

    told = json.loads(sys.argv[1])
    engine = LLM(
        told["model"], skip_tokenizer_init=True, enforce_eager=True, max_model_len=1024, block_size=32,
        dtype="bfloat16", kv_transfer_config=told["transfer"])
    sampling = SamplingParams(temperature=0, max_tokens=told["tokens"], logprobs=0, ignore_eos=True, detokenize=False)
    answers = []
    for prompt in told["prompts"]:
        (output,) = engine.generate({"prompt_token_ids": prompt}, sampling, use_tqdm=False)
        (found,) = output.outputs
        answers.append({
            "tokens": list(found.token_ids),
            "logprobs": [step[token].logprob for step, token in zip(found.logprobs, found.token_ids, strict=True)],
            "loaded": output.num_cached_tokens})
    engine.llm_engine.engine_core.shutdown()
    print("\n" + json.dumps(answers))


if __name__ == "__main__":
    main()
