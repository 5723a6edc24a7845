"""Composing a message: addresses in every form that users and templates give them."""

from __future__ import annotations

from airflow_provider_r7mail.client.compose import parse_addresses


def test_addresses_as_templates_render_them() -> None:
    """A list that a template rendered to text is still a list of addresses."""
    assert parse_addresses("['a@b.ru', 'c@d.ru']", "to") == ("a@b.ru", "c@d.ru")
    assert parse_addresses('["a@b.ru"]', "to") == ("a@b.ru",)
    assert parse_addresses(" a@b.ru, ", "to") == ("a@b.ru",)
    assert parse_addresses(None, "to") == ()
