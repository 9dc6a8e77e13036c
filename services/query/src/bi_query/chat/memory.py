"""What a model chose for a question, remembered: in this process, and in Redis for the other replicas.

Redis is believed no more than a model is: what it holds is read as a reply is, and runs past guard and policies as one.
"""

from __future__ import annotations

from collections import OrderedDict

from ..redis_link import PREFIX, Link
from .budget import DAY_SECONDS
from .reply import Choice, Malformed, choice_from, choice_text

_MOST_CHOICES = 4096
_MOST_BYTES = 100_000


class PlanMemory:
    """Choices by key (event loop only). `link` None: this process alone."""

    def __init__(self, link: Link | None = None) -> None:
        self._link = link
        self._choices: OrderedDict[str, Choice] = OrderedDict()

    async def get(self, key: str) -> Choice | None:
        """The choice remembered under `key`."""
        choice = self._choices.get(key)
        if choice is None and self._link is not None:
            choice = await self._shared(self._link, key)
        if choice is not None:
            self._keep(key, choice)
        return choice

    async def put(self, key: str, choice: Choice) -> None:
        """Remember; in Redis for a day."""
        self._keep(key, choice)
        link = self._link
        if link is not None:
            text = choice_text(choice)
            await link.ask("set", lambda: link.client.set(_name(key), text, ex=DAY_SECONDS), None)

    async def forget(self, key: str) -> None:
        """Remember no more, nor the other replicas; one that holds it in its own memory forgets when it is asked."""
        self._choices.pop(key, None)
        link = self._link
        if link is not None:
            await link.ask("delete", lambda: link.client.delete(_name(key)), None)

    async def _shared(self, link: Link, key: str) -> Choice | None:
        data = await link.ask("get", lambda: link.client.get(_name(key)), None)
        if not isinstance(data, bytes) or len(data) > _MOST_BYTES:
            return None
        try:
            return choice_from(data.decode(errors="replace"))
        except Malformed as error:
            link.count_error("get", error)
            return None

    def _keep(self, key: str, choice: Choice) -> None:
        self._choices[key] = choice
        self._choices.move_to_end(key)
        if len(self._choices) > _MOST_CHOICES:
            self._choices.popitem(last=False)


def _name(key: str) -> str:
    return f"{PREFIX}plan:{key}"
