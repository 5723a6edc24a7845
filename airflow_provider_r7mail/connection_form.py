"""The form of a connection in Airflow before 3.2, which takes it from the hook."""

from __future__ import annotations

from typing import Any

from airflow_provider_r7mail import get_provider_info


def form_widgets() -> dict[str, Any]:
    """Make the form's fields from those of the provider info (`conn-fields`)."""
    # Only Airflow 2's web server has these packages.
    from flask_appbuilder import fieldwidgets  # noqa: PLC0415
    from wtforms import StringField  # noqa: PLC0415

    widgets = {
        # Hides the value on the screen only: saving the form would lose a value it doesn't contain.
        "password": fieldwidgets.BS3PasswordFieldWidget(hide_value=False),
        None: fieldwidgets.BS3TextFieldWidget(),
    }
    return {
        name: StringField(
            described["label"],
            description=described["description"],
            widget=widgets[described["schema"].get("format")],
        )
        for name, described in _form()["conn-fields"].items()
    }


def form_behaviour() -> dict[str, Any]:
    """Make the form's labels and placeholders from those of the provider info."""
    return {name.replace("-", "_"): value for name, value in _form()["ui-field-behaviour"].items()}


def _form() -> dict[str, Any]:
    form: dict[str, Any] = get_provider_info()["connection-types"][0]
    return form
