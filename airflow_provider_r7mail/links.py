"""The link from a task's page to its folder in the R7 web client.

The connection has the page's URL (`web_url`). A task pushes the URL when it runs: Airflow's web
server only reads it, and needs neither the connection nor the mail server.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from airflow_provider_r7mail.compat import BaseOperatorLink, XCom

if TYPE_CHECKING:
    from airflow.sdk.types import TaskInstanceKey

    from airflow_provider_r7mail.compat import BaseOperator, Context


class R7MailFolderLink(BaseOperatorLink):
    """Opens the folder that a task works on; no link where the connection has no `web_url`."""

    name = "Open mailbox"
    key = "r7mail_folder_url"

    def get_link(self, operator: BaseOperator, *, ti_key: TaskInstanceKey) -> str:
        """Tell the URL that the task has pushed, "" if it has not."""
        return XCom.get_value(key=self.key, ti_key=ti_key) or ""

    @classmethod
    def push(cls, context: Context, url: str | None) -> None:
        """Remember the folder's URL for the link.

        :param context: the running task's context
        :param url: the URL, as `Settings.folder_url` tells it; with None there is no link
        """
        if url and (ti := context.get("ti")) is not None:
            ti.xcom_push(key=cls.key, value=url)
