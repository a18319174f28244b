"""Arguments of `vllm serve` that are not for a recipe to give: the endpoint has its own address, keys and headers."""

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
    "data_parallel",
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


def why_not(name: str) -> str | None:
    """What is wrong with an argument, and what to do instead; None if the recipe may give it."""
    if name in _ELSEWHERE:
        return f"`{name}` is not for vLLM to decide here; {_ELSEWHERE[name]}"
    if name.startswith(_OF_ITS_SERVER):
        return f"`{name}` is of vLLM's own web server, which is not started; remove it"
    return None
