"""Let a message's two contents be paths of template files, and no other field."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from airflow_provider_r7mail.compat import BaseOperator

    Templated = BaseOperator
else:
    Templated = object

CONTENTS = frozenset({"html_content", "text_content"})


class TemplateFiles(Templated):
    """Base of what sends: a subject, link or name that ends in `.txt` is not a path.

    Airflow applies `template_ext` to every templated field, and to texts within them.
    """

    template_ext: Sequence[str]

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        # Without it, Airflow 3.3 maps the operators with the defaults of BaseOperator's parameters
        # (`_get_operator_defaults`), such as None for `inlets`.
        super().__init__(*args, **kwargs)

    def resolve_template_files(self) -> None:
        """Read the template files, when a DAG is parsed."""
        fields = self.template_fields
        self.template_fields = tuple(name for name in fields if name in CONTENTS)
        try:
            super().resolve_template_files()
        finally:
            self.template_fields = fields

    def _do_render_template_fields(
        self, parent: Any, template_fields: Iterable[str], *args: Any, **kwargs: Any
    ) -> None:
        fields = list(template_fields)
        contents = [name for name in fields if name in CONTENTS]
        super()._do_render_template_fields(parent, contents, *args, **kwargs)
        others = [name for name in fields if name not in CONTENTS]
        extensions = self.template_ext
        self.template_ext = ()
        try:
            super()._do_render_template_fields(parent, others, *args, **kwargs)
        finally:
            self.template_ext = extensions
