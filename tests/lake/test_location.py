"""The paths and URLs that users give: what is taken, and which slips are refused."""

from __future__ import annotations

from pathlib import Path

import pytest

from airflow_provider_r7mail.exceptions import R7MailConfigError
from airflow_provider_r7mail.lake.location import parse_location


@pytest.mark.parametrize(
    ("given", "url"),
    [
        ("/data/mail", "file:///data/mail"),
        (Path("/data/mail"), "file:///data/mail"),
        ("/data/a #1?%41: b", "file:///data/a #1?%41: b"),
        ("file:///data/mail", "file:///data/mail"),
        ("s3://bucket/mail", "s3://bucket/mail"),
        ("s3://conn@bucket", "s3://conn@bucket"),
        ("S3://bucket/Mail", "s3://bucket/Mail"),
        ("FILE:///data/Mail", "file:///data/Mail"),
        ("gs://bucket/a:b/c", "gs://bucket/a:b/c"),
        ("abfs://container@account/mail", "abfs://container@account/mail"),
        ("memory://out", "memory://out"),
        ("memory:///out", "memory:///out"),
    ],
)
def test_places(given: str | Path, url: str) -> None:
    """An absolute path or any URL is a place."""
    assert parse_location(given, "output_path") == url


@pytest.mark.parametrize(
    ("given", "meant"),
    [
        ("s3:/bucket/x", "s3://bucket/x"),
        (Path("s3://bucket/x"), "s3://bucket/x"),
        (Path("s3://bucket/x").absolute(), "s3://bucket/x"),
        ("s3:bucket/x", "s3://bucket/x"),
        ("gs:/bucket/x", "gs://bucket/x"),
        ("S3:/bucket/x", "S3://bucket/x"),
        ("file:/data/x", "file:///data/x"),
        ("file:data/x", "file:///data/x"),
        ("file://data/x", "file:///data/x"),
        ("local://data/x", "local:///data/x"),
        ("file://localhost/data/x", "file:///data/x"),
        ("file:///s3:/bucket/x", "s3://bucket/x"),
        ("s3:///bucket/x", "s3://bucket/x"),
        ("s3://conn@/bucket/x", "s3://conn@bucket/x"),
        ("s3://", "s3://bucket/mail"),
        (" s3://bucket/x", "s3://bucket/x"),
        ("/data/x\n", "/data/x"),
        ("~/x", str(Path.home() / "x")),
        ("file:///~/x", str(Path.home() / "x")),
        ("~someone/x", "/data/mail"),
        ("data/x", "an absolute path"),
        ("./x", "an absolute path"),
        ("../x", "an absolute path"),
        ("None", "an absolute path"),
        ("s3//bucket/x", "an absolute path"),
        ("", "/data/mail"),
        ("  ", "/data/mail"),
        (None, "/data/mail"),
    ],
)
def test_slips(given: str | Path | None, meant: str) -> None:
    """A slip is an error with the parameter, the value, and what may have been meant."""
    with pytest.raises(R7MailConfigError) as caught:
        parse_location(given, "output_path")

    said = str(caught.value)
    assert said.startswith("output_path: ")
    assert meant in said


def test_on_a_command_line(tmp_path: Path) -> None:
    """In a shell, a path may be relative; other slips are errors there too."""
    assert parse_location("data/x", "--output", tmp_path) == f"file://{tmp_path}/data/x"
    for slip in ("s3:/bucket/x", "file://data/x", "~/x"):
        with pytest.raises(R7MailConfigError):
            parse_location(slip, "--output", tmp_path)
