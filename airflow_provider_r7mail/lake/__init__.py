"""Everything that is written: tables, files and windows. Knows neither Airflow nor HTTP."""

import sys

from airflow_provider_r7mail.exceptions import R7MailConfigError

if sys.platform == "win32":
    raise R7MailConfigError(
        "Extracts and attachments need Linux or macOS: Windows lacks the file locks (fcntl) that "
        "keep two runs apart. Use WSL or a container. The client and `r7mail check` work there."
    )
