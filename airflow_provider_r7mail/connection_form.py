"""The form of a connection in Airflow before 3.2, which takes it from the hook."""

from __future__ import annotations

from typing import Any

from airflow_provider_r7mail import get_provider_info


def form_widgets() -> dict[str, Any]:
    """Make the form's fields from those of the provider info (`conn-fields`)."""
    # Only the web server has these packages. Airflow 3.0 and 3.1 replace them by their own classes.
    from flask_appbuilder import fieldwidgets  # noqa: PLC0415
    from wtforms import PasswordField, StringField  # noqa: PLC0415

    hidden = fieldwidgets.BS3PasswordFieldWidget()
    # Hides the value on the screen only: saving the form would lose a value it doesn't contain. Not
    # an argument of the constructor, which takes none in Airflow 3.0 and 3.1.
    hidden.hide_value = False
    kinds = {
        "password": (PasswordField, hidden),
        None: (StringField, fieldwidgets.BS3TextFieldWidget()),
    }
    widgets = {}
    for name, described in _form()["conn-fields"].items():
        kind, widget = kinds[described["schema"].get("format")]
        widgets[name] = kind(
            described["label"], description=described["description"], widget=widget
        )
    return widgets


def form_behaviour() -> dict[str, Any]:
    """Make the form's labels and placeholders from those of the provider info."""
    return {name.replace("-", "_"): value for name, value in _form()["ui-field-behaviour"].items()}


def _form() -> dict[str, Any]:
    form: dict[str, Any] = get_provider_info()["connection-types"][0]
    return form
