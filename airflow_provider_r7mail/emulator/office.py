"""The default mailbox: some months of a Russian office's mail, generated.

Each kind of correspondence is a method that returns one exchange of messages starting at a given
time. Exchanges are added until there are enough messages, which are then delivered by date.
"""

from __future__ import annotations

import random
import uuid
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

from airflow_provider_r7mail.emulator import office_files as files
from airflow_provider_r7mail.emulator import office_texts as texts
from airflow_provider_r7mail.emulator.folders import INBOX, PROCESSED, SENT
from airflow_provider_r7mail.emulator.messages import Attachment, MailMessage, html_of_text

if TYPE_CHECKING:
    from airflow_provider_r7mail.emulator.office_texts import Person
    from airflow_provider_r7mail.emulator.store import Store

CLIENTS_LABEL, FINANCE_LABEL, REPORTS_LABEL, SUPPLIERS_LABEL = 1, 2, 3, 4

_MOSCOW = timedelta(hours=3)
_PRICE_LIST_DAYS = 3
# Sent at night, so that the newest price list is from the last day, whatever time it is.
_PRICE_LIST_BEFORE_MIDNIGHT = timedelta(minutes=1)
_RECENT = timedelta(days=3)

Filed = tuple[int, MailMessage]


def fill(
    store: Store, name: str, *, seed: int, messages: int, days: int, end: datetime | None
) -> None:
    """Deliver an office's mail.

    :param store: where to deliver it; its address is that of the recipient.
    :param name: the recipient's name.
    :param seed: the same seed and end give the same mail.
    :param messages: number of messages.
    :param days: number of days they span before ``end``.
    :param end: all messages are older; midnight today (UTC) when None.
    """
    last = end or datetime.now(UTC).replace(hour=0, minute=0, second=0, microsecond=0)
    for folder, project in texts.PROJECTS:
        store.add_folder(folder, project)
    office = _Office(store.address, name, seed, last, days)
    for folder, message in office.mail(messages):
        store.deliver_message(message, folder)


@dataclass
class _Office:
    address: str
    name: str
    seed: int
    end: datetime
    days: int

    def __post_init__(self) -> None:
        self.random = random.Random(self.seed)
        self.begin = self.end - timedelta(days=self.days)
        self._number = 1_000
        self._make_files()

    def _make_files(self) -> None:
        """Generate a few dozen files, which many messages share."""
        shuffle, products = self.random, texts.PRODUCTS
        self.reports = [
            files.sales_report(f"Отчёт о продажах, неделя {week:02d}.xlsx", products, shuffle)
            for week in range(1, 9)
        ]
        self.tables = [
            files.table(f"остатки_{number:02d}.csv", encoding, products, shuffle)
            for number in range(1, 6)
            for encoding in ("cp1251", "utf-8")
        ]
        self.documents = [files.document("", 1_400 + number, shuffle) for number in range(12)]
        self.pictures = [files.picture(shade) for shade in (40, 90, 200)]

    def mail(self, count: int) -> list[Filed]:
        """Generate messages, sorted by date."""
        found = self._price_lists()[:count]
        # How often each kind of exchange occurs in an office, as weights.
        kinds: dict[Callable[[datetime], list[Filed]], int] = {
            self._enquiry: 16,
            self._invoice: 12,
            self._project: 18,
            self._report: 10,
            self._meeting: 8,
            self._ticket: 12,
            self._alerts: 4,
            self._news_of_staff: 5,
            self._newsletter: 14,
            self._goods: 7,
            self._holiday_letter: 1,
        }
        names, weights = list(kinds), list(kinds.values())
        while len(found) < count:
            exchange = self.random.choices(names, weights)[0](self._working_time())
            dated = [item for item in exchange if _date(item) < self.end]
            found += dated[: count - len(found)]
        return [self._as_handled(item) for item in sorted(found, key=_date)]

    def _as_handled(self, item: Filed) -> Filed:
        """Mark old mail as read, and half of the newest; file some of it."""
        folder, message = item
        if folder == SENT or message.sender == texts.PRICE_SENDER.address:
            return item
        recent = _date(item) > self.end - _RECENT
        read = self.random.random() < (0.5 if recent else 0.96)
        if folder == INBOX and not recent and self.random.random() < 0.12:
            folder = PROCESSED
        return folder, replace(message, was_read=read)

    # Times and texts

    def _working_time(self) -> datetime:
        """Return a time in office hours, 9 to 19 in Moscow, rarely on a weekend."""
        while True:
            day = self.begin + timedelta(days=self.random.randrange(self.days))
            local = datetime(day.year, day.month, day.day, tzinfo=UTC)
            hour = self.random.triangular(9, 19, 11)
            moment = local + timedelta(seconds=int(hour * 3_600)) - _MOSCOW
            weekend = moment.weekday() >= 5 and self.random.random() > 0.08
            if not weekend and self.begin <= moment < self.end:
                return moment

    def _later(self, moment: datetime, hours: float) -> datetime:
        """Return a time for a reply: some hours later, or the next morning if that is at night."""
        answer = moment + timedelta(seconds=int(self.random.uniform(0.1, 1.0) * hours * 3_600))
        local = answer + _MOSCOW
        if local.hour >= 20 or local.hour < 8:
            morning = (local + timedelta(hours=12)).replace(
                hour=9, minute=self.random.randrange(50)
            )
            answer = morning - _MOSCOW
        return answer

    def _next_number(self) -> int:
        self._number += self.random.randrange(1, 4)
        return self._number

    def _mime_id(self, address: str) -> str:
        made = uuid.UUID(int=self.random.getrandbits(128), version=4)
        return f"{made}@{address.rpartition('@')[2]}"

    def _letter(
        self, sender: Person, moment: datetime, subject: str, *paragraphs: str
    ) -> MailMessage:
        """Return a signed message to the mailbox's owner."""
        signature = f"--\n{sender.name}\n{sender.post}".rstrip()
        body = "\n\n".join((self._greeting(), *paragraphs, signature))
        return MailMessage(
            subject=subject,
            body=body,
            html_body=html_of_text(body).replace("\n", "<br>\n"),
            sender=sender.address,
            sender_name=sender.name if self.random.random() < 0.8 else None,
            to=[self.address],
            date=moment,
            mime_message_id=self._mime_id(sender.address),
        )

    def _robot(self, sender: Person, moment: datetime, subject: str, body: str) -> MailMessage:
        """Return an automatic message."""
        return MailMessage(
            subject=subject,
            body=body,
            sender=sender.address,
            sender_name=sender.name,
            to=[self.address],
            date=moment,
            mime_message_id=self._mime_id(sender.address),
            fields={"IsAutoSubmitted": True, "IsAutogenerated": True},
        )

    def _answer(self, to: MailMessage, moment: datetime, *paragraphs: str) -> MailMessage:
        """Return the owner's reply, with the message quoted below."""
        asked = _date((0, to)) + _MOSCOW
        quoted = "\n".join(f"> {line}" for line in (to.body or "").splitlines())
        above = "\n\n".join((self._greeting(), *paragraphs, f"--\n{self.name}"))
        intro = f"{asked:%d.%m.%Y, %H:%M}, {to.sender_name or to.sender} <{to.sender}>:"
        body = f"{above}\n\n{intro}\n{quoted}"
        page = (
            html_of_text(above)
            + f"<p>{intro.replace('<', '&lt;').replace('>', '&gt;')}</p>"
            + f'<blockquote type="cite">{to.html_body}</blockquote>'
        )
        return MailMessage(
            subject=_reply_subject(to.subject),
            body=body,
            html_body=page,
            sender=self.address,
            sender_name=self.name,
            to=[to.sender],
            cc=to.cc,
            # The server dates what it sends to the microsecond, as in the manual's example.
            date=moment + timedelta(microseconds=self.random.randrange(1, 999_999)),
            was_read=True,
            mime_message_id=self._mime_id(self.address),
            in_reply_to=to.mime_message_id,
            fields={"WasSent": True},
        )

    def _greeting(self) -> str:
        return self.random.choice(("Добрый день!", "Здравствуйте!", "Коллеги, добрый день!"))

    def _pick(self, options: Sequence[str]) -> str:
        return self.random.choice(options)

    # Kinds of correspondence

    def _price_lists(self) -> list[Filed]:
        """A supplier's price list every third night; the newest is unread, in the inbox."""
        found = []
        for age in range(0, self.days, _PRICE_LIST_DAYS):
            moment = self.end - timedelta(days=age) - _PRICE_LIST_BEFORE_MIDNIGHT
            local = moment + _MOSCOW
            listed = files.price_list(local, texts.PRODUCTS, self.random)
            message = self._robot(
                texts.PRICE_SENDER,
                moment,
                f"Прайс-лист на {local:%d.%m.%Y}",
                "Добрый день!\n\nНаправляем актуальный прайс-лист и остатки на складе.\n"
                "Цены действительны три дня.\n\n--\nООО «Поставщик»",
            )
            newest = age == 0
            labelled = replace(
                message,
                attachments=[listed],
                labels=[SUPPLIERS_LABEL],
                was_read=not newest,
            )
            found.append((INBOX if newest else PROCESSED, labelled))
        return found

    def _enquiry(self, moment: datetime) -> list[Filed]:
        """A client asks for a quote; the owner replies; the client agrees, or is away."""
        client = self.random.choice(texts.CLIENTS)
        count = self.random.randrange(1, 60)
        product = self._pick(texts.PRODUCTS)
        asked = replace(
            self._letter(
                client,
                moment,
                f"Запрос цены: {product}",
                f"Просим выставить предложение: {product} — {count} шт.",
                self._pick(texts.QUESTIONS),
            ),
            labels=[CLIENTS_LABEL],
            important=self.random.random() < 0.15,
        )
        if self.random.random() < 0.08:  # two logos with the same file name
            asked = replace(asked, attachments=self.random.sample(self.pictures, 2))
        exchange: list[Filed] = [(INBOX, asked)]
        if self.random.random() < 0.75:
            answer = self._answer(asked, self._later(moment, 6), self._pick(texts.ANSWERS))
            exchange.append((SENT, answer))
            exchange.append((INBOX, self._client_again(client, answer)))
        return exchange

    def _client_again(self, client: Person, answer: MailMessage) -> MailMessage:
        if self.random.random() < 0.15:
            moment = _date((0, answer)).replace(microsecond=0) + timedelta(seconds=4)
            robot = self._robot(
                client, moment, f"Автоответ: {answer.subject}", self._pick(texts.ABSENCES)
            )
            return replace(robot, in_reply_to=answer.mime_message_id)
        moment = self._later(_date((0, answer)).replace(microsecond=0), 20)
        letter = self._letter(client, moment, answer.subject or "", self._pick(texts.CONFIRMATIONS))
        quoted = "\n".join(f"> {line}" for line in (answer.body or "").splitlines())
        body = f"{letter.body}\n\n{quoted}"
        return replace(
            letter,
            body=body,
            html_body=f"{letter.html_body}<blockquote>{answer.html_body}</blockquote>",
            in_reply_to=answer.mime_message_id,
            labels=[CLIENTS_LABEL],
        )

    def _invoice(self, moment: datetime) -> list[Filed]:
        number = self._next_number()
        local = moment + _MOSCOW
        name = self._pick(texts.INVOICE_NAMES).format(number=number, date=f"{local:%d.%m.%Y}")
        sender = self.random.choice((*texts.SUPPLIERS, texts.COLLEAGUES[1]))
        document = replace(self.random.choice(self.documents), file_name=name)
        letter = self._letter(
            sender,
            moment,
            f"Счёт № {number}",
            f"Направляю счёт № {number}, просьба оплатить до конца недели.",
            "Оригиналы отправлены почтой, закрывающие документы — после отгрузки.",
        )
        labels = [FINANCE_LABEL, SUPPLIERS_LABEL] if sender in texts.SUPPLIERS else [FINANCE_LABEL]
        return [(INBOX, replace(letter, attachments=[document], labels=labels))]

    def _project(self, moment: datetime) -> list[Filed]:
        """Colleagues discuss something; the thread is filed in the project's folder."""
        folder, project = self.random.choice(texts.PROJECTS)
        first, second = self.random.sample(texts.COLLEAGUES, 2)
        subject = f"{project}: {self._pick(texts.TOPICS)}"
        opening = replace(
            self._letter(first, moment, subject, self._pick(texts.REMARKS)),
            cc=[second.address],
        )
        exchange: list[Filed] = [(folder, opening)]
        before = opening
        for _ in range(self.random.randrange(1, 4)):
            moment = self._later(moment, 5)
            reply = self._letter(second, moment, _reply_subject(subject), self._pick(texts.REMARKS))
            quoted = "\n".join(f"> {line}" for line in (before.body or "").splitlines())
            reply = replace(
                reply,
                body=f"{reply.body}\n\n{quoted}",
                html_body=f"{reply.html_body}<blockquote>{before.html_body}</blockquote>",
                cc=[first.address],
                in_reply_to=before.mime_message_id,
            )
            if self.random.random() < 0.15:
                reply = replace(reply, attachments=[self.random.choice(self.reports)])
            exchange.append((folder, reply))
            before, first, second = reply, second, first
        if self.random.random() < 0.4:
            answer = self._answer(before, self._later(moment, 5), self._pick(texts.REMARKS))
            exchange.append((SENT, answer))
        return exchange

    def _report(self, moment: datetime) -> list[Filed]:
        """The morning reports: several robots write in the same second."""
        morning = moment.replace(hour=6, minute=0, second=0)
        day = f"{morning + _MOSCOW:%d.%m.%Y}"
        sales = self._robot(
            texts.REPORTS, morning, f"Отчёт о продажах за {day}", "Отчёт во вложении."
        )
        stock = self._robot(
            texts.REPORTS, morning, f"Остатки на складах на {day}", "Выгрузка во вложении."
        )
        return [
            (
                INBOX,
                replace(sales, attachments=[self._choose(self.reports)], labels=[REPORTS_LABEL]),
            ),
            (
                INBOX,
                replace(stock, attachments=[self._choose(self.tables)], labels=[REPORTS_LABEL]),
            ),
        ]

    def _choose(self, options: Sequence[Attachment]) -> Attachment:
        return self.random.choice(options)

    def _meeting(self, moment: datetime) -> list[Filed]:
        organizer = self.random.choice(texts.COLLEAGUES)
        topic = self._pick(texts.MEETINGS)
        start = (moment + timedelta(days=self.random.randrange(1, 6))).replace(minute=0, second=0)
        local = start + _MOSCOW
        letter = self._letter(
            organizer,
            moment,
            f"Приглашение: {topic}",
            f"Приглашаю на встречу «{topic}» {local:%d.%m.%Y} в {local:%H:%M} (МСК), "
            f"переговорная {self.random.randrange(1, 6)}.",
        )
        uid = self._mime_id(organizer.address)
        invite = files.invitation(uid, start, topic, organizer.address, self.address)
        asked = replace(letter, attachments=[invite], fields={"EventInviteStatus": 1})
        exchange: list[Filed] = [(INBOX, asked)]
        if self.random.random() < 0.3:
            exchange.append((SENT, self._answer(asked, self._later(moment, 3), "Принято, буду.")))
        return exchange

    def _ticket(self, moment: datetime) -> list[Filed]:
        """A service desk ticket: registered, in progress, solved; some steps in the same second."""
        number, what = self._next_number(), self._pick(texts.TICKETS)
        steps = (
            f"Ваше обращение зарегистрировано под номером SD-{number}. Срок решения — 8 часов.",
            f"Обращение SD-{number} взято в работу. Исполнитель: Котов Д. П.",
            f"Обращение SD-{number} решено. Если проблема осталась, ответьте на это письмо.",
        )
        subject = f"[SD-{number}] {what}"
        exchange: list[Filed] = []
        for step in steps[: self.random.randrange(1, 4)]:
            exchange.append((INBOX, self._robot(texts.SERVICE_DESK, moment, subject, step)))
            if self.random.random() < 0.7:
                moment = self._later(moment, 4)
        return exchange

    def _alerts(self, moment: datetime) -> list[Filed]:
        """A burst of alerts with the same date."""
        return [
            (
                INBOX,
                replace(
                    self._robot(
                        texts.MONITORING, moment, f"[ALERT] {what}", f"{what}\nУзел: n-{n}"
                    ),
                    important=True,
                ),
            )
            for n, what in enumerate(self.random.sample(texts.ALERTS, self.random.randrange(1, 4)))
        ]

    def _news_of_staff(self, moment: datetime) -> list[Filed]:
        subject, text = self.random.choice(texts.HR_NEWS)
        return [(INBOX, self._letter(texts.COLLEAGUES[3], moment, subject, text))]

    def _newsletter(self, moment: datetime) -> list[Filed]:
        name, address = self.random.choice(texts.NEWSLETTERS)
        headlines = self.random.sample(texts.HEADLINES, 4)
        body = "\n\n".join(
            f"{number}. {headline}\nhttps://{address.rpartition('@')[2]}/{self._next_number()}"
            for number, headline in enumerate(headlines, start=1)
        )
        cells = "".join(
            '<tr><td style="padding:12px 24px;font-family:Arial,sans-serif;font-size:16px;'
            f'color:#222222;border-bottom:1px solid #eeeeee">{headline}</td></tr>'
            for headline in headlines
        )
        page = (
            '<html><head><meta charset="utf-8"><style>body{margin:0;background:#f4f4f4}</style>'
            '</head><body><table width="600" align="center" cellpadding="0" cellspacing="0">'
            f'<tr><td><h1 style="font-family:Arial">{name}</h1></td></tr>{cells}'
            "<tr><td><small>Вы получили это письмо, потому что подписаны на рассылку. "
            '<a href="https://news.example/unsubscribe">Отписаться</a></small></td></tr>'
            "</table></body></html>"
        )
        message = MailMessage(
            subject=f"{name}: {headlines[0]}",
            body=body,
            html_body=page,
            sender=address,
            sender_name=name,
            to=[self.address],
            date=moment,
            mime_message_id=self._mime_id(address),
            fields={"IsAutogenerated": True},
        )
        return [(INBOX, message)]

    def _goods(self, moment: datetime) -> list[Filed]:
        supplier = self.random.choice(texts.SUPPLIERS)
        number, product = self._next_number(), self._pick(texts.PRODUCTS)
        letter = self._letter(
            supplier,
            moment,
            f"Отгрузка по заказу {number}",
            f"Заказ {number} ({product}) собран, отгрузка завтра. Остатки — в таблице.",
        )
        table = self._choose(self.tables)
        return [(INBOX, replace(letter, attachments=[table], labels=[SUPPLIERS_LABEL]))]

    def _holiday_letter(self, moment: datetime) -> list[Filed]:
        letter = self._letter(
            self.random.choice(texts.COLLEAGUES),
            moment,
            "🎉 С днём рождения компании!",
            "Поздравляем всех! Торт и чай в 16:00 в большой переговорной. 🎂",
        )
        card = Attachment("🎉 открытка (итог).txt", "Ура!\n".encode(), "text/plain")
        return [(INBOX, replace(letter, attachments=[card]))]


def _date(item: Filed) -> datetime:
    date = item[1].date
    if not isinstance(date, datetime):
        raise TypeError(f"generated mail must have a datetime, not {date!r}")
    return date


def _reply_subject(subject: str | None) -> str:
    text = subject or ""
    return text if text.startswith("Re: ") else f"Re: {text}"
