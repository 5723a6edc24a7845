"""The control plane under ``/_emulator/``: what tests do in Python, for other processes.

GET    /_emulator/state               counts per folder, logins, requests, sends
POST   /_emulator/reset               forget calls, faults, tokens, readings; the mail anew
GET    /_emulator/requests            the calls so far
GET    /_emulator/readings            the readings in force
PUT    /_emulator/readings            change some: a JSON object of `Readings` fields
POST   /_emulator/faults              add one: a JSON object of `Fault` fields
DELETE /_emulator/faults              no more faults
GET    /_emulator/messages?folder=24  the messages of a folder
POST   /_emulator/messages?folder=24  deliver the ``.eml`` in the body
"""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from typing import TYPE_CHECKING, Any

from starlette.concurrency import run_in_threadpool
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from airflow_provider_r7mail.emulator.loading import parse
from airflow_provider_r7mail.emulator.mailbox import Refused, to_json
from airflow_provider_r7mail.emulator.readings import Fault

if TYPE_CHECKING:
    from starlette.requests import Request

    from airflow_provider_r7mail.emulator.app import Service


def routes() -> list[Route]:
    """The routes below ``/_emulator``."""
    return [
        Route("/state", _state),
        Route("/reset", _reset, methods=["POST"]),
        Route("/requests", _requests),
        Route("/readings", _readings, methods=["GET", "PUT"]),
        Route("/faults", _faults, methods=["POST", "DELETE"]),
        Route("/messages", _messages, methods=["GET"]),
        Route("/messages", _deliver, methods=["POST"]),
    ]


def _service(request: Request) -> Service:
    service: Service = request.app.state.service
    return service


async def _state(request: Request) -> Response:
    service = _service(request)
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
    # Making the mailbox anew takes seconds: other connections are served meanwhile.
    await run_in_threadpool(_service(request).reset)
    return await _state(request)


async def _requests(request: Request) -> Response:
    return _json(list(_service(request).requests))


async def _readings(request: Request) -> Response:
    service = _service(request)
    if request.method == "PUT":
        try:
            service.readings = replace(service.readings, **json.loads(await request.body()))
        except (TypeError, ValueError) as error:
            return _bad(error)
    return JSONResponse(asdict(service.readings))


async def _faults(request: Request) -> Response:
    service = _service(request)
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
        return _json(_service(request).mailbox.messages(folder))
    except Refused as refusal:
        return _bad(refusal)
    except ValueError as error:
        return _bad(error)


async def _deliver(request: Request) -> Response:
    try:
        folder = int(request.query_params.get("folder", "24"))
    except ValueError as error:
        return _bad(error)
    message = parse(await request.body())
    number = _service(request).mailbox.deliver_message(message, folder)
    return JSONResponse({"Id": number})


def _json(value: Any) -> Response:
    return Response(to_json(value), media_type="application/json")


def _bad(error: Exception) -> Response:
    return JSONResponse({"error": str(error)}, 400)
