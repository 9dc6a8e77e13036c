"""Who asks a question, and how; and those who ask the same at once."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

from ..access import Principal
from .budget import Asking, Tokens

STEPS = ("matching", "asking_model", "running_query", "running_sql")


@dataclass
class Asked:
    """A question's way through the service: who asks and how, and what became known of it, for the audit log."""

    principal: Principal
    is_streamed: bool = False
    is_fresh: bool = False
    """No cached answer and no remembered plan will do."""
    step: Callable[[str], None] = lambda _: None
    """Told what is being done, one of `STEPS`."""
    tokens: Tokens = field(default_factory=Tokens)
    found: dict[str, Any] = field(default_factory=dict)
    """`query`, `sql` and `params` as chosen last."""

    @property
    def who(self) -> str:
        """Whose tokens are spent: the key's name, else the client's."""
        return self.principal.name or self.principal.client


class Together:
    """One question and all who wait for its answer. Its tokens are on the line of who has waited longest."""

    def __init__(self, first: Asked, seconds: float) -> None:
        self.waiting = [first]
        self.asked = replace(first, found={})
        """As the first asked it; `found` is everybody's."""
        self.asking = Asking(first.who, time.monotonic() + seconds, first.is_streamed, first.tokens)

    def leave(self, asked: Asked) -> None:
        """`asked` waits no more. What the model uses from now on is on the line of one who still does."""
        asked.found = self.asked.found
        self.waiting = [other for other in self.waiting if other is not asked]
        if self.waiting:
            self.asking.tokens = self.waiting[0].tokens
