"""All questions of a check, in the order they are asked.

Add a question to the module of its subject, and to that module's QUESTIONS.
"""

from airflow_provider_r7mail.client.check.question import Question
from airflow_provider_r7mail.client.check.questions import (
    actions,
    attachments,
    bounds,
    empty_labels,
    errors,
    fields,
    foreign,
    labels,
    load,
    paging,
    reach,
    repeats,
    several_labels,
    sorting,
    threads,
    ties,
    tokens,
    undated,
    zones,
)

QUESTIONS: tuple[type[Question], ...] = (
    *tokens.QUESTIONS,
    *paging.QUESTIONS,
    *empty_labels.QUESTIONS,
    *reach.QUESTIONS,
    *bounds.QUESTIONS,
    *ties.QUESTIONS,
    *errors.QUESTIONS,
    *labels.QUESTIONS,
    *several_labels.QUESTIONS,
    *undated.QUESTIONS,
    *attachments.QUESTIONS,
    *threads.QUESTIONS,
    *actions.QUESTIONS,
    *load.QUESTIONS,
    *fields.QUESTIONS,
    *sorting.QUESTIONS,
    *foreign.QUESTIONS,
    *repeats.QUESTIONS,
    *zones.QUESTIONS,
)
