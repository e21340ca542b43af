"""A queue in SQS, or in a server that speaks as it does, through boto3.

The queue's URL says where it is. Who signs is the same as for the bucket: the settings, or what boto3 finds.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

from tasks.errors import AccessDenied, ConfigurationError, TransientStorageError
from tasks.settings import Settings

log = logging.getLogger(__name__)

# What SQS gives and takes at once.
MOST_MESSAGES = 10
MOST_WAIT_SECONDS = 20

_REGION = re.compile(r"(?:^|\.)sqs(?:-fips)?\.([a-z0-9-]+)\.")
_MISSING = {"AWS.SimpleQueueService.NonExistentQueue", "QueueDoesNotExist", "InvalidAddress"}
_DENIED = {"AccessDenied", "AccessDeniedException", "InvalidClientTokenId", "SignatureDoesNotMatch", "ExpiredToken"}


@dataclass(frozen=True, slots=True)
class Message:
    """What was taken from the queue; with `receipt` it can be removed."""

    body: str
    receipt: str


class Queue:
    """One queue. Its calls block: give them a thread of their own. Nothing is sent before the first call."""

    def __init__(self, url: str, settings: Settings) -> None:
        self.url = url
        self._client = _client(url, settings)

    def receive(self, wait_seconds: int, hidden_seconds: int) -> list[Message]:
        """Up to ten messages, waiting for the first; nobody else is given them for `hidden_seconds`.

        Raises ConfigurationError (no such queue), AccessDenied or TransientStorageError.
        """
        try:
            answer = self._client.receive_message(
                QueueUrl=self.url,
                MaxNumberOfMessages=MOST_MESSAGES,
                WaitTimeSeconds=wait_seconds,
                VisibilityTimeout=hidden_seconds,
            )
        except Exception as error:
            raise _translated(error, self.url) from error
        return [Message(found["Body"], found["ReceiptHandle"]) for found in answer.get("Messages", [])]

    def remove(self, receipts: Sequence[str]) -> int:
        """Remove messages for good; how many could not be removed, and will come again."""
        left = 0
        for start in range(0, len(receipts), MOST_MESSAGES):
            part = receipts[start : start + MOST_MESSAGES]
            entries = [{"Id": str(number), "ReceiptHandle": receipt} for number, receipt in enumerate(part)]
            try:
                left += len(self._client.delete_message_batch(QueueUrl=self.url, Entries=entries).get("Failed", []))
            except Exception as error:
                raise _translated(error, self.url) from error
        return left


def _client(url: str, settings: Settings) -> Any:
    import boto3.session
    from botocore.config import Config

    parts, secret = urlsplit(url), settings.s3_secret_key
    region = _REGION.search(parts.hostname or "")
    return boto3.session.Session().client(
        "sqs",
        endpoint_url=f"{parts.scheme}://{parts.netloc}",
        region_name=region[1] if region else settings.s3_region or "us-east-1",
        aws_access_key_id=settings.s3_access_key,
        aws_secret_access_key=secret.get_secret_value() if secret else None,
        config=Config(
            connect_timeout=5,
            read_timeout=MOST_WAIT_SECONDS + 10,
            retries={"mode": "standard", "total_max_attempts": 3},
        ),
    )


def _translated(error: Exception, url: str) -> Exception:
    from botocore.exceptions import BotoCoreError, ClientError, NoCredentialsError

    if isinstance(error, ClientError):
        code = str(error.response.get("Error", {}).get("Code", ""))
        if code in _MISSING:
            return ConfigurationError(f"The queue {url} does not exist. Create it, or correct `events`.")
        if code in _DENIED:
            return AccessDenied(
                f"The queue {url}: {code}. Give these credentials sqs:ReceiveMessage and sqs:DeleteMessage on it."
            )
        return TransientStorageError(f"The queue {url}: {code}. It is tried again.")
    if isinstance(error, NoCredentialsError):
        return ConfigurationError(
            f"The queue {url}: no credentials were found. Set AFTERIMAGE_S3_ACCESS_KEY and AFTERIMAGE_S3_SECRET_KEY, the Airflow "
            "Connection afterimage_storage, or any source that boto3 reads."
        )
    if isinstance(error, BotoCoreError | OSError):
        return TransientStorageError(f"The queue {url}: {error}. It is tried again; look at the network if it stays.")
    return error
