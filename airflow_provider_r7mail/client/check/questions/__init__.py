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
    errors,
    fields,
    labels,
    load,
    orders,
    paging,
    sending,
    threads,
    ties,
    tokens,
    undated,
)

QUESTIONS: tuple[type[Question], ...] = (
    *tokens.QUESTIONS,
    *paging.QUESTIONS,
    *bounds.QUESTIONS,
    *ties.QUESTIONS,
    *errors.QUESTIONS,
    *labels.QUESTIONS,
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
)
