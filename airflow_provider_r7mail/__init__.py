"""Apache Airflow provider for the R7-Office mail server."""

from __future__ import annotations

__version__ = "0.1.0"

# Not imported from `typing`: every Airflow process reads this file.
TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

_INTEGRATION = "R7-Office Mail"


def get_provider_info() -> dict[str, Any]:
    """Describe this provider to Airflow (entry point `apache_airflow_provider`)."""
    return {
        "package-name": "airflow-provider-r7mail",
        "name": _INTEGRATION,
        "description": "Extract mail from an R7-Office mail server to Parquet, react to mail, and "
        "send mail safely.",
        "versions": [__version__],
        "integrations": [
            {
                "integration-name": _INTEGRATION,
                "external-doc-url": "https://r7-office.ru/",
                "tags": ["service"],
            }
        ],
        "hooks": [_modules("hooks")],
        "operators": [_modules("operators")],
        "sensors": [_modules("sensors")],
        "triggers": [_modules("triggers")],
        "transfers": [
            {
                "source-integration-name": _INTEGRATION,
                "target-integration-name": "Common IO",
                "python-module": "airflow_provider_r7mail.transfers",
            }
        ],
        "asset-uris": [
            {
                "schemes": ["r7mail"],
                "handler": "airflow_provider_r7mail.assets.sanitize_uri",
                "factory": "airflow_provider_r7mail.assets.create_asset",
                "to_openlineage_converter": "airflow_provider_r7mail.assets."
                "convert_asset_to_openlineage",
            }
        ],
        "notifications": ["airflow_provider_r7mail.notifications.R7MailNotifier"],
        "email-backends": ["airflow_provider_r7mail.emailer.send_email"],
        "extra-links": ["airflow_provider_r7mail.links.R7MailFolderLink"],
        "connection-types": [
            {
                "connection-type": "r7mail",
                "hook-class-name": "airflow_provider_r7mail.hooks.R7MailHook",
                "hook-name": _INTEGRATION,
                "ui-field-behaviour": {
                    "hidden-fields": [],
                    "relabeling": {"host": "Host or URL"},
                    "placeholders": {
                        "host": "mail.example.org or https://mail.example.org/path",
                        "port": "443",
                        "schema": "https",
                        "login": "the account's login",
                    },
                },
                "conn-fields": _connection_fields(),
            }
        ],
    }


def _modules(name: str) -> dict[str, Any]:
    return {
        "integration-name": _INTEGRATION,
        "python-modules": [f"airflow_provider_r7mail.{name}"],
    }


def _connection_fields() -> dict[str, dict[str, Any]]:
    # Every type includes null: Airflow's form requires fields that don't allow it.
    return {
        "folders": {
            "label": "Folders",
            "description": 'Names for folder ids, such as {"inbox": 24, "processed": 15}: the API '
            "can't list folders. The Test button reads the first one.",
            "schema": {"type": ["object", "null"]},
        },
        "verify": {
            "label": "Verify TLS",
            "description": "true verifies the server's certificate, false turns this off, a path "
            "verifies it against that CA bundle.",
            "schema": {"type": ["string", "null"], "default": "true"},
        },
        "cert": {
            "label": "Client certificate",
            "description": "Path of a PEM file with certificate and key, or two paths: cert,key.",
            "schema": {"type": ["string", "null"]},
        },
        "proxy": {
            "label": "Proxy",
            "description": "URL of an HTTP proxy, such as http://proxy.example.org:3128. If empty, "
            "the worker's HTTPS_PROXY, HTTP_PROXY and NO_PROXY apply; false means no proxy.",
            # A proxy's URL may contain a password. Airflow also masks it by the field's name.
            "schema": {"type": ["string", "null"], "format": "password"},
        },
        "timeout": {
            "label": "Timeout (seconds)",
            "description": "A request fails after this many seconds without receiving a byte.",
            "schema": {"type": ["number", "null"], "default": 60, "minimum": 1},
        },
        "max_concurrency": {
            "label": "Concurrent requests",
            "description": "Most requests that one task makes at the same time. To limit how many "
            "tasks run, use an Airflow pool.",
            "schema": {"type": ["integer", "null"], "default": 4, "minimum": 1},
        },
        "max_retries": {
            "label": "Retries",
            "description": "How many times a failed request is retried; 0 for never. Sending a "
            "message is not retried if it is unclear whether it was sent.",
            "schema": {"type": ["integer", "null"], "default": 5, "minimum": 0},
        },
        "web_url": {
            "label": "Web client",
            "description": "URL of a folder in the web client, for links from tasks to folders, "
            "such as https://mail.example.org/mail/{folder}. {folder} becomes the folder's id.",
            "schema": {"type": ["string", "null"]},
        },
        "disk_url": {
            "label": "Disk",
            "description": "Where the server's Disk answers, if not at Host, such as "
            "https://cddisk.example.org. It takes the files that are sent with mail.",
            "schema": {"type": ["string", "null"]},
        },
        "disk_folder": {
            "label": "Disk folder",
            "description": "Id of the Disk folder that takes the files that are sent. If empty, a "
            "folder Airflow is created in the account's own root folder.",
            "schema": {"type": ["integer", "null"], "minimum": 1},
        },
        "privacy_secret": {
            "label": "Privacy secret",
            "description": "Key for hashing addresses and names in extracts: a long random text. "
            "Never change it, or hashes of old and new mail won't match.",
            # Airflow also masks it by the field's name.
            "schema": {"type": ["string", "null"], "format": "password"},
        },
    }
