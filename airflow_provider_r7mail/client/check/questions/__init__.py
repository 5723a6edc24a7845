"""All questions of a check, in the order they are asked.

Add a question to the module of its subject, and to that module's QUESTIONS.
"""

from airflow_provider_r7mail.client.check.question import Question
from airflow_provider_r7mail.client.check.questions import (
    actions,
    attachments,
    bounds,
    dates,
    disk,
    empty_labels,
    errors,
    fields,
    foreign,
    labels,
    load,
    orders,
    paging,
    reach,
    repeats,
    sending,
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
    *orders.QUESTIONS,
    *dates.QUESTIONS,
    *threads.QUESTIONS,
    *actions.QUESTIONS,
    *disk.QUESTIONS,
    *tokens.SESSIONS,
    *load.QUESTIONS,
    *fields.QUESTIONS,
    *sending.QUESTIONS,
    *sorting.QUESTIONS,
    *foreign.QUESTIONS,
    *repeats.QUESTIONS,
    *zones.QUESTIONS,
)
