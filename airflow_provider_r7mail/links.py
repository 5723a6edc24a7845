"""The link from a task's page to its folder in the R7 web client.

The URL comes from the connection (`web_url`). A task pushes it to XCom when it runs, so that
Airflow's web server needs neither the connection nor the mail server.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from airflow_provider_r7mail.compat import BaseOperatorLink, XCom

if TYPE_CHECKING:
    from airflow.sdk.types import TaskInstanceKey

    from airflow_provider_r7mail.compat import BaseOperator, Context


class R7MailFolderLink(BaseOperatorLink):
    """Opens the folder that a task works on; shown if the connection has a `web_url`."""

    name = "Open mailbox"
    key = "r7mail_folder_url"

    def get_link(self, operator: BaseOperator, *, ti_key: TaskInstanceKey) -> str:
        """Return the URL that the task pushed; "" for no link."""
        return XCom.get_value(key=self.key, ti_key=ti_key) or ""

    @classmethod
    def push(cls, context: Context, url: str | None) -> None:
        """Store the folder's URL for the link.

        :param context: the running task's context
        :param url: the result of `Settings.folder_url`; None for no link
        """
        if (ti := context.get("ti")) is not None:
            # Also for no link: after the task, Airflow 3 logs an error if it finds nothing here.
            ti.xcom_push(key=cls.key, value=url or "")
