"""The emulator's Disk, over a real socket, with plain httpx."""

from __future__ import annotations

from typing import Any

import httpx
import pytest

from airflow_provider_r7mail.emulator import Emulator, Fault, Mailbox, Readings
from tests.emulator.calls import Api, letter

GET = "/api/v1/DocumentDirectory/Get"
ADD = "/api/v1/DocumentDirectory/AddSubDirectory"
UPLOAD = "/api/v1/Documents/Upload"
DELETE = "/api/v1/Documents/Delete"
FILE = ("отчёт.csv", b"a,b\n", "text/csv")


def upload(api: Api, folder: int, data: bytes = FILE[1], **form: str) -> httpx.Response:
    """Upload a file, with the folder's id in the header."""
    headers = {"DirectoryId": str(folder)}
    file = (FILE[0], data, FILE[2])
    return api.http.post(UPLOAD, files={"file": file}, data=form, headers=headers)


def documents(api: Api, folder: int) -> list[dict[str, Any]]:
    """Return the files that the listing of a folder shows."""
    [listed] = api.http.get(GET, params={"id": folder}).json()
    assert listed["Id"] == folder
    found: list[dict[str, Any]] = listed["Documents"]
    return found


def test_a_file_goes_from_the_disk_into_a_message(mailbox: Mailbox, api: Api) -> None:
    """An upload is listed with the fields of an attachment, and Send takes it."""
    own, _ = api.http.get(GET).json()
    assert (own["Id"], own["Name"]) == (mailbox.disk.root, "Мои документы")
    folder = api.http.post(ADD, json={"ParentId": own["Id"], "Name": "Отчёты"}).json()["Id"]
    assert api.http.get(GET, params={"id": own["Id"]}).json()[0]["Children"][0]["Name"] == "Отчёты"

    number = upload(api, folder).json()

    [file] = documents(api, folder)
    assert file == {
        "Id": number,
        "Name": "отчёт.csv",
        "Size": 4,
        "MimeType": "text/csv",
        "FileId": file["FileId"],
        "DirectoryId": folder,
    }
    wanted = {name: file[name] for name in ("Id", "FileId", "Size", "MimeType")}
    attached = {**wanted, "FileName": "своё имя.csv"}
    sent = api.post("Send", letter(Attachments=[attached])).json()["Id"]
    assert [(file.file_name, file.data) for file in mailbox.files(sent)] == [
        ("своё имя.csv", b"a,b\n")
    ]
    assert api.http.post(DELETE, json={"Ids": [number]}).json() is True
    assert documents(api, folder) == []
    assert api.http.post(DELETE, json={"Ids": [number]}).status_code == 406


@pytest.mark.parametrize(
    ("readings", "answer"),
    [
        (Readings(), 301),
        (Readings(disk_answer="object"), {"Id": 301, "Name": "отчёт.csv"}),
        (Readings(disk_answer="array", names="camel"), [{"id": 301, "name": "отчёт.csv"}]),
        (Readings(disk_answer="nothing"), None),
    ],
)
def test_what_an_upload_answers(
    readings: Readings, answer: Any, server: Emulator, api: Api
) -> None:
    """An upload answers a number, an object, an array or nothing."""
    server.readings = readings

    got = upload(api, server.mailbox.disk.root)

    assert (got.json() if got.content else None) == answer


def test_the_envelope(server: Emulator, api: Api) -> None:
    """All of the Disk's answers may be in `Response.Data`."""
    server.readings = Readings(disk_envelope=True)

    assert api.http.get(GET).json()["Response"]["Data"][0]["Name"] == "Мои документы"


def test_where_the_folder_is_named(server: Emulator, api: Api) -> None:
    """The folder's id is read from the header, or from the form; else the file goes to the root."""
    disk = server.mailbox.disk
    folder = disk.add_directory("a", disk.root).id
    for place in ("header", "form"):
        server.readings = Readings(disk_directory=place)
        upload(api, folder)
        upload(api, disk.root, DirectoryId=str(folder))

    assert len(disk.files(folder)) == len(disk.files(disk.root)) == 2


def test_rows_of_other_folders(server: Emulator, api: Api) -> None:
    """A listing may show files of other folders, each with its own folder's id."""
    server.readings = Readings(disk_other_rows=True)
    disk = server.mailbox.disk
    disk.add("a", b"1", disk.add_directory("x", disk.root).id)

    [found] = documents(api, disk.root)
    assert found["DirectoryId"] != disk.root


@pytest.mark.parametrize("status", ["404", "405", "406"])
def test_no_disk(status: Any, server: Emulator, api: Api) -> None:
    """Where the Disk isn't, all its calls are refused, and mail works."""
    server.readings = Readings(disk=status)

    assert api.http.get(GET).status_code == int(status)
    assert upload(api, server.mailbox.disk.root).status_code == int(status)
    assert api.page()["Items"] == []


def test_the_disks_own_host(server: Emulator, api: Api) -> None:
    """The Disk may answer at one host name only."""
    server.readings = Readings(disk_host="localhost")

    assert api.http.get(GET).status_code == 405
    there = server.url.replace("127.0.0.1", "localhost")
    assert api.http.get(f"{there}{GET}").status_code == 200


@pytest.mark.parametrize(
    ("readings", "status", "stored"),
    [
        (Readings(disk_quota=3), 406, 0),
        (Readings(disk_quota=3, disk_full="507"), 507, 0),
        (Readings(disk_quota=3, disk_full="accepted"), 200, 0),
        (Readings(disk_max_bytes=3), 413, 0),
        (Readings(disk_quota=4, disk_max_bytes=4), 200, 1),
    ],
)
def test_limits(readings: Readings, status: int, stored: int, server: Emulator, api: Api) -> None:
    """A full Disk, or too large a file: a status, or silence."""
    server.readings = readings

    assert upload(api, server.mailbox.disk.root).status_code == status
    assert len(server.mailbox.disk.files()) == stored


@pytest.mark.parametrize(
    ("same", "statuses", "left"),
    [
        ("both", [200, 200], [b"1", b"22"]),
        ("replace", [200, 200], [b"22"]),
        ("refuse", [200, 500], [b"1"]),
    ],
)
def test_a_name_twice(
    same: Any, statuses: list[int], left: list[bytes], server: Emulator, api: Api
) -> None:
    """A second file of a name is stored too, replaces the first, or is refused."""
    server.readings = Readings(disk_same_name=same)
    root = server.mailbox.disk.root

    assert [upload(api, root, data).status_code for data in (b"1", b"22")] == statuses
    assert [file.data for file in server.mailbox.disk.files(root)] == left


def test_what_is_new_is_listed_later(server: Emulator, api: Api) -> None:
    """A listing shows new files after a delay."""
    server.readings = Readings(disk_delay_seconds=30)
    root = server.mailbox.disk.root
    upload(api, root)

    assert documents(api, root) == []
    assert len(server.mailbox.disk.files(root)) == 1


@pytest.mark.parametrize("stored", [False, True])
def test_a_cut_upload(stored: bool, server: Emulator, api: Api) -> None:
    """An upload may be reset halfway, and what had come may be stored."""
    server.faults.append(Fault("Upload", kind="cut", after_acting=stored))
    root, data = server.mailbox.disk.root, bytes(100_000)

    with pytest.raises(httpx.TransportError):
        upload(api, root, data)

    sizes = [len(file.data) for file in server.mailbox.disk.files(root)]
    assert len(sizes) == stored
    assert all(0 < size < len(data) for size in sizes)
    assert server.requests[-1]["status"] is None


@pytest.mark.parametrize(
    ("headers", "content"),
    [
        ({"Content-Type": "application/json"}, b"{}"),
        ({"Content-Type": "multipart/form-data; boundary=x"}, b"nothing of the kind"),
        ({"Content-Type": "multipart/form-data; boundary=x"}, b"--x\r\n\r\nno name\r\n--x--"),
    ],
)
def test_what_is_no_upload(headers: dict[str, str], content: bytes, api: Api) -> None:
    """A request without a file is refused."""
    assert api.http.post(UPLOAD, headers=headers, content=content).status_code == 500


def test_the_page_of_the_disk(server: Emulator, api: Api) -> None:
    """The web page shows the Disk's folders and files, escaped, and downloads them."""
    document = server.mailbox.disk.add("<b>.html", b"<script>", mime_type="text/html")

    page = api.http.get("/disk")
    file = api.http.get(f"/disk/{document.stored.id}")

    assert "Мои документы" in page.text
    assert "&lt;b&gt;.html" in page.text
    assert file.content == b"<script>"
    assert file.headers["content-type"] == "application/octet-stream"
    assert file.headers["content-disposition"].startswith("attachment")
    assert api.http.get("/disk/999").status_code == 404
