"""The project's errors, each with its HTTP status, in one place.

ServerError
├── BadRequest            400  the request must be changed
│   └── ContextTooLong    400  prompt and max_tokens do not fit the model
├── Unauthorized          401
├── NotFound              404  no such model or route
├── MethodNotAllowed      405
├── RequestTimeout        408  the body did not arrive in time
├── PayloadTooLarge       413
├── UnsupportedMediaType  415
├── Overloaded            429  the queue is full; retry after a while
├── Internal              500  a fault of the server; its details are only logged
├── Unavailable           503  a worker died or is starting; retry
└── DeadlineExceeded      504  the request's deadline passed
"""

from __future__ import annotations

from typing import ClassVar


class ServerError(Exception):
    """An error with an HTTP status and OpenAI's four fields."""

    status: ClassVar[int] = 500
    type: ClassVar[str] = "server_error"
    default_code: ClassVar[str | None] = None
    retry_after_s: int | None = None  # the default of the class

    def __init__(
        self,
        message: str,
        *,
        param: str | None = None,
        code: str | None = None,
        retry_after_s: int | None = None,
    ) -> None:
        super().__init__(message)
        self.message = message
        self.param = param
        self.code = code or self.default_code
        if retry_after_s is not None:
            self.retry_after_s = retry_after_s


class BadRequest(ServerError):
    """The request must be changed; the message says what."""

    status = 400
    type = "invalid_request_error"


class ContextTooLong(BadRequest):
    """Prompt and requested tokens do not fit the model's context."""

    default_code = "context_length_exceeded"


class Unauthorized(ServerError):
    """No valid API key was given."""

    status = 401
    type = "invalid_request_error"
    default_code = "invalid_api_key"


class NotFound(ServerError):
    """No such model or route."""

    status = 404
    type = "invalid_request_error"
    default_code = "not_found"


class MethodNotAllowed(ServerError):
    """The route exists for other methods."""

    status = 405
    type = "invalid_request_error"
    default_code = "method_not_allowed"


class RequestTimeout(ServerError):
    """The body did not arrive in time."""

    status = 408
    type = "invalid_request_error"
    default_code = "request_timeout"


class PayloadTooLarge(ServerError):
    """The body is over the limit."""

    status = 413
    type = "invalid_request_error"
    default_code = "payload_too_large"


class UnsupportedMediaType(ServerError):
    """The body is not JSON."""

    status = 415
    type = "invalid_request_error"
    default_code = "unsupported_media_type"


class Overloaded(ServerError):
    """The queue is full."""

    status = 429
    type = "rate_limit_error"
    default_code = "rate_limit_exceeded"
    retry_after_s = 1


class Internal(ServerError):
    """A fault of the server; its details are only logged."""

    default_code = "internal_error"


class Unavailable(ServerError):
    """No worker can take the request now."""

    status = 503
    default_code = "service_unavailable"
    retry_after_s = 2


class DeadlineExceeded(ServerError):
    """The request's deadline passed."""

    status = 504
    type = "timeout_error"
    default_code = "deadline_exceeded"
