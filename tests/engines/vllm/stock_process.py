"""Greedy tokens of stock vLLM, in a process of its own: `MODEL REQUESTS TOKENS`.

The last two are JSON files: pairs of prompt tokens and the number of tokens wanted in, tokens out.
"""

import json
import sys
from pathlib import Path

from lemix_hpc.engines.vllm.environment import prepare

if __name__ == "__main__":
    prepare()
    from vllm import LLM, SamplingParams

    directory, requests = sys.argv[1], json.loads(Path(sys.argv[2]).read_text())
    llm = LLM(
        directory,
        skip_tokenizer_init=True,
        dtype="float32",
        enforce_eager=True,
        kv_cache_memory_bytes=128 << 20,
        max_num_seqs=8,
    )
    outputs = llm.generate(
        [{"prompt_token_ids": prompt} for prompt, _ in requests],
        [SamplingParams(max_tokens=wanted, temperature=0.0, ignore_eos=True) for _, wanted in requests],
        use_tqdm=False,
    )
    Path(sys.argv[3]).write_text(json.dumps([list(output.outputs[0].token_ids) for output in outputs]))
