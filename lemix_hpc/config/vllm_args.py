"""Arguments of `vllm serve` that are not for a recipe to give: the endpoint has its own address, keys and headers, stages are
our ranks, and some of what vLLM can do does not go together with training on its weights."""

from __future__ import annotations

_ELSEWHERE = {
    "api_key": "set serving.http.api_key_file",
    "host": "set serving.http.host",
    "port": "set serving.http.port",
}
_OF_ITS_SERVER = (
    "allow_credentials",
    "allowed_headers",
    "allowed_methods",
    "allowed_origins",
    "data_parallel_supervisor",
    "dp_supervisor",
    "enable_request_id_headers",
    "enable_ssl",
    "grpc",
    "h11_",
    "headless",
    "middleware",
    "root_path",
    "ssl_",
    "uds",
    "uvicorn_",
)
NO_TENSOR_PARALLELISM = (
    "a stage is one GPU, tensor parallelism is not built; cut the model into more stages (nodes.stages)"
)
NOT_BUILT = (
    (("tensor_parallel", "decode_context_parallel", "prefill_context_parallel"), NO_TENSOR_PARALLELISM),
    (("data_parallel",), "replicas are nodes here; set nodes.count"),
    (
        ("nnodes", "node_rank", "master_", "device_ids", "numa_bind", "worker_extension_cls", "max_parallel_loading"),
        "ranks are placed and started by the launcher; set nodes and cluster",
    ),
    (
        ("enable_expert_parallel", "enable_elastic_ep", "enable_eplb", "all2all_", "enable_dbo", "ubatch_size"),
        "mixtures of experts are not supported; remove it",
    ),
    (("quantization", "allow_deprecated_quantization"), "quantised weights cannot be trained; remove it"),
    (("speculative_config", "spec_"), "speculative decoding is not built; remove it"),
    (("enable_sleep_mode", "sleep_", "enable_nccl_comm_suspend"), "weights stay where training has them; remove it"),
    (
        ("cpu_offload", "offload_"),
        "weights stay where training has them; cut the model into more stages (nodes.stages)",
    ),
    (("weight_transfer_config",), "weights come from training; remove it"),
    (("kv_transfer_config", "kv_offloading", "ec_transfer_config"), "caches stay on their stage; remove it"),
)
"""What would fail long after the start, or hang: how the names begin, why, and what to do."""


def why_not(name: str) -> str | None:
    """What is wrong with an argument, and what to do instead; None if the recipe may give it."""
    if name in _ELSEWHERE:
        return f"`{name}` is not for vLLM to decide here; {_ELSEWHERE[name]}"
    if name.startswith(_OF_ITS_SERVER):
        return f"`{name}` is of vLLM's own web server, which is not started; remove it"
    if "lora" in name:
        return f"`{name}`: LoRA is not built; remove it"
    return next((f"`{name}`: {reason}" for beginnings, reason in NOT_BUILT if name.startswith(beginnings)), None)
