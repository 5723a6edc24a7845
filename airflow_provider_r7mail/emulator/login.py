"""What Login responds with: tokens and the user, field by field as in the manual's example."""

from __future__ import annotations

import uuid
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

from airflow_provider_r7mail.emulator.dates import text_of_ticks, ticks_of

if TYPE_CHECKING:
    from airflow_provider_r7mail.emulator.mailbox import Mailbox
    from airflow_provider_r7mail.emulator.readings import Readings

_MOSCOW_HOURS = 3
_TOKEN_HOURS = 12


def envelope(data: Mapping[str, Any]) -> dict[str, Any]:
    """Wrap data as a response of Login."""
    response = {"TypeName": "AuthResponse", "Data": data}
    return {"Status": 200, "StatusCode": 200, "Response": response}


def auth_data(mailbox: Mailbox, token: str | None, readings: Readings) -> dict[str, Any]:
    """Return the data of a successful login (R12, R41)."""
    tokens = {
        "Id": 2,
        "User": None,
        "ClientHash": uuid.uuid4().hex + uuid.uuid4().hex,
        "AuthToken": token,
        "RefreshToken": str(uuid.uuid4()),
        "UserId": 3,
        "ExpiredAt": _expired_at(readings.expired_at),
        "Type": None,
    }
    if readings.expired_at == "absent":
        del tokens["ExpiredAt"]
    modules = ["Disk", "Admin", "Mail", "Calendar", "Draw", "Contacts", "Projects"]
    if not readings.mail_module:
        modules.remove("Mail")
    return {"Tokens": tokens, "State": "Login", "User": _user(mailbox), "ModulesAccess": modules}


def _expired_at(reading: str) -> str:
    now = datetime.now(UTC)
    match reading:
        case "past":
            return text_of_ticks(ticks_of(now - timedelta(hours=_TOKEN_HOURS)), 7)
        case "other_zone":
            local = ticks_of(now + timedelta(hours=_TOKEN_HOURS + _MOSCOW_HOURS))
            return text_of_ticks(local, 7).replace("Z", f"+{_MOSCOW_HOURS:02d}:00")
        case _:
            return text_of_ticks(ticks_of(now + timedelta(hours=_TOKEN_HOURS)), 7)


def _user(mailbox: Mailbox) -> dict[str, Any]:
    surname, first, middle = (*mailbox.name.split(maxsplit=2), "", "", "")[:3]
    role = {
        "Id": 3,
        "CustomerId": 1,
        "Type": 4,
        "Name": "Все R7",
        "ParentId": None,
        "ExternalId": None,
        "Parent": None,
        "Timestamp": "2025-06-19T13:19:53.792505Z",
        "ChangeDate": None,
        "OwnerId": None,
    }
    customer = {
        "Id": 1,
        "Status": 1,
        "Title": "R7",
        "Company": "P7-Офис",
        "Description": "P7-Офис",
        "CreatedAt": "2025-06-19T13:19:53.776659Z",
        **dict.fromkeys(("ParentId", "ParentName", "AuthType")),
        "IsParentSettings": False,
        **dict.fromkeys(("OwnerId", "Alias", "Domain", "Children")),
        "IsRoot": True,
        "RealmId": None,
    }
    return {
        "Id": 3,
        "Login": mailbox.login,
        "Name": mailbox.name,
        "Surname": surname,
        "FirstName": first,
        "MiddleName": middle,
        **dict.fromkeys(("Company", "Department", "Position")),
        "Jid": "13627706386606492567",
        **dict.fromkeys(("BirthDate", "PhoneNumber", "MobilePhone", "WorkPhone")),
        "Email": mailbox.address,
        "NotApproved": [{"Type": "Email", "Value": mailbox.address}],
        "About": None,
        "Modified": "0001-01-01T00:00:00",
        "ContactId": 3,
        "Type": 0,
        "Status": 1,
        "Roles": [role],
        **dict.fromkeys(("Group", "Avatar", "Interests", "City")),
        "Customer": customer,
        **dict.fromkeys(("DataStorageQuota", "Profile")),
        "HasAvatar": False,
    }
