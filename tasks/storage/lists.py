"""LISTs through boto3, but for its parser: botocore reads some thousand keys a second, and twice at that.

boto3 signs, finds the address, sends, waits, tries again and names errors, here as everywhere. Between its receiving an answer
and its parsing it (the event before-parse) the answer is read by listing_answers.py instead, and boto3 is left an empty one. An
answer that is no listing goes the way of those that boto3 itself calls broken: it counts as status 500 and is asked for again.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from tasks.storage.listing_answers import ListedPage, NoListing, read_page

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client

_PAGE, _REASON = "ListedPage", "NoListing"


class FastLists:
    """The listings of one client, which several threads may share."""

    def __init__(self, client: S3Client) -> None:
        self._client = client
        # botocore itself looks at the answer under before-parse.s3.*, and parses all of it to do so. What has its star further
        # left is called before that, and leaves it nothing to parse.
        client.meta.events.register_first("before-parse.*.ListObjectsV2", _read_instead)

    def page(self, bucket: str, prefix: str, limit: int, start: dict[str, Any]) -> ListedPage:
        """A page of at most `limit` keys; `start` holds StartAfter or ContinuationToken. Raises NoListing and boto3's errors."""
        from botocore.exceptions import ClientError

        try:
            answer: Any = self._client.list_objects_v2(Bucket=bucket, Prefix=prefix, MaxKeys=limit, **start)
        except ClientError as error:
            told: Any = error.response
            if _REASON in told:
                raise NoListing(told[_REASON]) from error
            raise
        page: ListedPage = answer[_PAGE]
        return page


def _read_instead(response_dict: dict[str, Any], customized_response_dict: dict[str, Any], **_others: object) -> None:
    """What is put into the customized response comes out of the call, beside what boto3 makes of the answer's headers."""
    if response_dict["status_code"] >= 301:
        return
    try:
        customized_response_dict[_PAGE] = read_page(response_dict["body"])
    except NoListing as error:
        response_dict["status_code"] = 500
        if error.is_error:  # in the answer to a success, as S3 may do: boto3 names it
            return
        customized_response_dict[_REASON] = str(error)
    response_dict["body"] = b""
