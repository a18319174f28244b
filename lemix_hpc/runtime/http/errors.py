"""Errors as clients of the OpenAI API expect them."""

from __future__ import annotations

import math
from typing import Any

import msgspec


class ApiError(Exception):
    """`kind` is what OpenAI calls `type`; `retry_after`: seconds after which another try makes sense."""

    def __init__(
        self, status: int, message: str, kind: str, code: str | None = None, retry_after: int | None = None
    ) -> None:
        super().__init__(message)
        self.status = status
        self.message = message
        self.kind = kind
        self.code = code
        self.retry_after = retry_after

    @property
    def content(self) -> dict[str, Any]:
        return {"error": {"message": self.message, "type": self.kind, "param": None, "code": self.code}}

    @property
    def body(self) -> bytes:
        return msgspec.json.encode(self.content)

    @property
    def headers(self) -> list[tuple[str, str]]:
        headers = [("content-type", "application/json")]
        if self.retry_after is not None:
            headers.append(("retry-after", str(self.retry_after)))
        if self.status == 401:
            headers.append(("www-authenticate", "Bearer"))
        return headers


def bad_request(message: str) -> ApiError:
    return ApiError(400, message, "invalid_request_error")


def unauthorised() -> ApiError:
    message = "The API key is missing or wrong; send it in the header `Authorization: Bearer KEY`."
    return ApiError(401, message, "invalid_request_error", "invalid_api_key")


def forbidden(right: str) -> ApiError:
    message = f"This API key may not do that: it has no right to {right!r}."
    return ApiError(403, message, "invalid_request_error", "insufficient_permissions")


def spent(name: str, limit: str, wait_s: float) -> ApiError:
    message = f"The key {name!r} has reached its limit of {limit}."
    return ApiError(429, message, "rate_limit_error", "rate_limit_exceeded", retry_after=math.ceil(wait_s))


def malformed(why: str) -> ApiError:
    return ApiError(400, why, "invalid_request_error")


def crowded() -> ApiError:
    message = "There are too many connections; close those that are not needed."
    return ApiError(503, message, "service_unavailable_error", retry_after=1)


def too_slow(seconds: float) -> ApiError:
    return ApiError(408, f"The body did not come within {seconds:g} s.", "invalid_request_error", "request_timeout")


def too_much(why: str) -> ApiError:
    return ApiError(429, why, "rate_limit_error", "rate_limit_exceeded", retry_after=1)


def wrong_type(given: str, taken: str) -> ApiError:
    return ApiError(415, f"The content type is {given!r}; send {taken}.", "invalid_request_error")


def too_large(limit_mb: float) -> ApiError:
    return ApiError(413, f"The request is larger than the limit of {limit_mb:g} MB.", "invalid_request_error")


def too_many(limit: int) -> ApiError:
    message = f"There are {limit} requests under way already."
    return ApiError(429, message, "rate_limit_error", "rate_limit_exceeded", retry_after=1)


def starting() -> ApiError:
    return ApiError(503, "This run is starting: its engines are not ready.", "service_unavailable_error", retry_after=5)


def closing() -> ApiError:
    return ApiError(503, "This run is ending and takes no more requests.", "service_unavailable_error", retry_after=60)


def disk_full(why: str) -> ApiError:
    message = f"This run cannot write down what it promises ({why}), and takes no more requests until it can."
    return ApiError(503, message, "service_unavailable_error", retry_after=10)


def reused(id: str) -> ApiError:
    message = f"The X-Request-Id {id} is that of another call; give each call an id of its own, and the same one to call again."
    return ApiError(422, message, "invalid_request_error", "request_id_reused")


def under_way(id: str) -> ApiError:
    message = f"A call with the X-Request-Id {id} is under way; its answer can be had when it is done."
    return ApiError(409, message, "invalid_request_error", "request_id_under_way", retry_after=1)


def no_answer(seconds: float) -> ApiError:
    return ApiError(504, f"The model did not answer within {seconds:g} s.", "timeout_error", "timeout")


def cut_short() -> ApiError:
    return ApiError(502, "The model's server ended without an answer.", "server_error")
