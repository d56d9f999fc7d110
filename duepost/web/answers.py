"""What the console and the server of public links have in common: how a form comes in, and plain answers."""

import asyncio
from typing import Final

from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, PlainTextResponse, Response

from models.errors import DuepostError

#: Seconds that a form may take to come in.
FORM_TIMEOUT: Final = 10.0


class Refused(DuepostError):
    """What was asked for cannot be shown or done; the message says why.

    Attributes:
        status: of the answer.
    """

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


async def read_body(request: Request, most: int) -> bytes:
    """What a form holds, at most `most` bytes.

    Raises:
        Refused: it is too large, is not whole, or takes too long to come in.
    """
    body = b""
    try:
        async with asyncio.timeout(FORM_TIMEOUT):
            async for piece in request.stream():
                body += piece
                if len(body) > most:
                    raise Refused(413, "The form is too large.")
    except TimeoutError:
        raise Refused(408, "The form took too long.") from None
    except ClientDisconnect:
        raise Refused(400, "The form is not whole.") from None
    return body


def health(_request: Request) -> Response:
    """This server answers; what of Duepost works is what `duepost doctor` tells."""
    return JSONResponse({"status": "ok"})


def not_found(_request: Request, _error: Exception) -> Response:
    """There is nothing at this URL."""
    return PlainTextResponse("There is no such page.\n", 404)


def not_so(request: Request, _error: Exception) -> Response:
    """This URL is not asked in this way."""
    return PlainTextResponse(f"This URL takes no {request.method}.\n", 405)
