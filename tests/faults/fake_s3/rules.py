"""Which requests a fault strikes, and how often it did."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field

_CREDENTIAL = re.compile(r"Credential=([^/]+)/[^/]+/([^/]+)/")


@dataclass(frozen=True)
class Request:
    """What was asked: `operation` is list, get, head, put or another word; `key` and `query` are decoded."""

    operation: str
    bucket: str
    key: bytes
    query: Mapping[str, str]
    headers: Mapping[str, str]
    body: bytes = b""

    @property
    def client(self) -> str:
        """Who asked: obstore or boto3."""
        return "obstore" if self.headers.get("user-agent", "").startswith("object_store/") else "boto3"

    @property
    def credential(self) -> str:
        """The access key that signed."""
        found = _CREDENTIAL.search(self.headers.get("authorization", ""))
        return found[1] if found else ""

    @property
    def region(self) -> str:
        """The region that it was signed for."""
        found = _CREDENTIAL.search(self.headers.get("authorization", ""))
        return found[2] if found else ""


@dataclass
class Rule:
    """A fault and the requests that it strikes: all that fit every condition which is set.

    Of those that fit, `skip` go through first; then every k-th is struck, until `times` were (0: without end). With `each`,
    every key is counted by itself. `put`, `delete` and `mark` (delete with a marker) change the bucket once the answer is made.
    """

    fault: str
    operation: str = ""
    prefix: str = ""
    client: str = ""
    credential: str = ""
    unless_region: str = ""
    skip: int = 0
    every: int = 1
    times: int = 0
    each: bool = False
    region: str = ""
    put: dict[str, str] = field(default_factory=dict)
    delete: list[str] = field(default_factory=list)
    mark: list[str] = field(default_factory=list)
    struck: int = 0
    seen: Counter[bytes] = field(default_factory=Counter)
    hit: Counter[bytes] = field(default_factory=Counter)

    def strikes(self, request: Request) -> bool:
        """Whether it strikes this request; it is counted."""
        if not self._fits(request):
            return False
        counted = request.key if self.each else b""
        self.seen[counted] += 1
        turn = self.seen[counted] - self.skip - 1
        if turn < 0 or turn % self.every or (self.times and self.hit[counted] >= self.times):
            return False
        self.hit[counted] += 1
        self.struck += 1
        return True

    def _fits(self, request: Request) -> bool:
        conditions = (
            (self.operation, request.operation == self.operation),
            (self.prefix, request.key.startswith(self.prefix.encode())),
            (self.client, request.client == self.client),
            (self.credential, request.credential == self.credential),
            (self.unless_region, request.region != self.unless_region),
        )
        return all(holds for wanted, holds in conditions if wanted)


class Rules:
    """All rules, in the order in which they came: the first that strikes decides."""

    def __init__(self) -> None:
        self.rules: list[Rule] = []
        self.requests: Counter[str] = Counter()

    def find(self, request: Request) -> Rule | None:
        """The rule that strikes a request."""
        self.requests[request.operation] += 1
        return next((rule for rule in self.rules if rule.strikes(request)), None)

    def clear(self) -> None:
        """No faults, and nothing counted."""
        self.rules.clear()
        self.requests.clear()
