"""The control plane under ``/_emulator/``: for other processes what tests do in Python.

GET    /_emulator/state               return counts per folder, logins, requests, sent messages
POST   /_emulator/reset               clear calls, faults, tokens, readings; recreate the mail
GET    /_emulator/requests            return the calls so far
GET    /_emulator/readings            return the readings
PUT    /_emulator/readings            change some: a JSON object of `Readings` fields
POST   /_emulator/faults              add one: a JSON object of `Fault` fields
DELETE /_emulator/faults              clear the faults
GET    /_emulator/messages?folder=24  return the messages of a folder
POST   /_emulator/messages?folder=24  deliver the ``.eml`` in the body
"""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from typing import TYPE_CHECKING, Any

from airflow_provider_r7mail.emulator.extra import from_extra
from airflow_provider_r7mail.emulator.folders import to_json
from airflow_provider_r7mail.emulator.loading import parse
from airflow_provider_r7mail.emulator.readings import Fault
from airflow_provider_r7mail.emulator.service import service_of

with from_extra():
    from starlette.concurrency import run_in_threadpool
    from starlette.responses import JSONResponse, Response
    from starlette.routing import Route

if TYPE_CHECKING:
    from starlette.requests import Request


def routes() -> list[Route]:
    """Return the routes below ``/_emulator``."""
    return [
        Route("/state", _state),
        Route("/reset", _reset, methods=["POST"]),
        Route("/requests", _requests),
        Route("/readings", _readings, methods=["GET", "PUT"]),
        Route("/faults", _faults, methods=["POST", "DELETE"]),
        Route("/messages", _messages, methods=["GET"]),
        Route("/messages", _deliver, methods=["POST"]),
    ]


async def _state(request: Request) -> Response:
    service = service_of(request)
    mailbox = service.mailbox
    with mailbox.lock:
        folders = [
            {
                "id": folder,
                "name": name,
                "count": len(mailbox.contents(folder).records),
                "unread": mailbox.contents(folder).unread,
            }
            for folder, name in mailbox.folders.items()
        ]
    return JSONResponse(
        {
            "login": mailbox.login,
            "address": mailbox.address,
            "folders": folders,
            "logins": service.logins,
            "requests": len(service.requests),
            "sent": len(mailbox.sent),
            "faults": len(service.faults),
        }
    )


async def _reset(request: Request) -> Response:
    # Recreating the mailbox takes seconds: don't block other connections.
    await run_in_threadpool(service_of(request).reset)
    return await _state(request)


async def _requests(request: Request) -> Response:
    return _json(list(service_of(request).requests))


async def _readings(request: Request) -> Response:
    service = service_of(request)
    if request.method == "PUT":
        try:
            service.readings = replace(service.readings, **json.loads(await request.body()))
        except (TypeError, ValueError) as error:
            return _bad(error)
    return JSONResponse(asdict(service.readings))


async def _faults(request: Request) -> Response:
    service = service_of(request)
    if request.method == "DELETE":
        service.faults.clear()
    else:
        try:
            service.faults.append(Fault(**json.loads(await request.body())))
        except (TypeError, ValueError) as error:
            return _bad(error)
    return JSONResponse({"faults": len(service.faults)})


async def _messages(request: Request) -> Response:
    try:
        folder = int(request.query_params.get("folder", "24"))
        return _json(service_of(request).mailbox.messages(folder))
    except ValueError as error:  # a `Refused` is one
        return _bad(error)


async def _deliver(request: Request) -> Response:
    try:
        folder = int(request.query_params.get("folder", "24"))
    except ValueError as error:
        return _bad(error)
    message = parse(await request.body())
    number = service_of(request).mailbox.deliver_message(message, folder)
    return JSONResponse({"Id": number})


def _json(value: Any) -> Response:
    return Response(to_json(value), media_type="application/json")


def _bad(error: Exception) -> Response:
    return JSONResponse({"error": str(error)}, 400)
