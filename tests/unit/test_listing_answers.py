"""The own reader of listings beside boto3's, over every shape of answer and every key."""

from __future__ import annotations

import gzip
import pickle
import re
from dataclasses import FrozenInstanceError, replace

import pytest
from botocore.parsers import ResponseParserError
from hypothesis import example, given, settings
from hypothesis import strategies as st

from tasks.storage import ImageObject, listing_answers
from tasks.storage.listing_answers import ListedPage, NoListing, _any, _usual, read_page
from tests.list_answers import AWS, MOMENT, ODD_SHAPES, SHAPES, Shape, answer, as_boto3_reads_it

ODD_KEYS = (
    *("a b", "a+b", "a%2Bb", "a%2Fb", "%", "%%", "%4", "%zz", "a&amp;b", "<&>\"'", "]]>", "&#65;", "a//b", "/", ""),
    *(
        "a\nb",
        "a\rb",
        "a\r\nb",
        "a\tb",
        "a\x01b",
        "a\0b",
        "\x7f",
        "\u0085",
        "\u2028",
        "\ufeffa",
        "\ufffe",
        "é",
        "e\u0301",
    ),
    *("\U0001f408", "k" * 1_024, "<Contents>", "</Contents>", "<!DOCTYPE a>", " a ", "dt=2026-03-01/a.jpg"),
)
ANY_KEY = st.sampled_from(ODD_KEYS) | st.text(st.characters(codec="utf-8"), max_size=30)
ANY_SHAPE = st.sampled_from(sorted(SHAPES | ODD_SHAPES)).map((SHAPES | ODD_SHAPES).__getitem__)


@settings(max_examples=150, deadline=None)
@given(keys=st.lists(ANY_KEY, max_size=6), shape=ANY_SHAPE, token=st.none() | st.text("aA1/+=&<é", min_size=1))
@example(list(ODD_KEYS), AWS, "t")
@example([key for key in ODD_KEYS if "\0" not in key], AWS, None)
@example(["a\xe9b"], replace(AWS, encoded=False), None)
def test_every_key_in_every_shape_is_what_boto3_reads(keys: list[str], shape: Shape, token: str | None) -> None:
    body = answer(keys, token, shape)
    try:
        expected = as_boto3_reads_it(body)
    except ResponseParserError:
        with pytest.raises(NoListing, match=r"is no XML|holds NUL"):
            read_page(body)
        return

    assert read_page(body) == expected
    if shape.encoded:
        assert [image.key for image in expected.images] == keys


@pytest.mark.parametrize("name", SHAPES)
def test_the_usual_shapes_take_the_fast_road(name: str) -> None:
    body = answer([key for key in ODD_KEYS if key], "more", SHAPES[name])

    assert _usual(body) == _any(body) == as_boto3_reads_it(body)


def test_the_slow_road_is_not_asked_where_the_fast_one_goes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(listing_answers, "_any", None)

    assert [image.key for image in read_page(answer(["a"])).images] == ["a"]


@pytest.mark.parametrize("name", ODD_SHAPES)
def test_every_other_shape_is_read_all_the_same(name: str) -> None:
    body = answer(["a", "b c"], "more", ODD_SHAPES[name])

    assert _usual(body) in (None, _any(body))
    assert read_page(body) == as_boto3_reads_it(body)
    assert [image.key for image in read_page(body).images] == ["a", "b c"]
    assert {image.last_modified.replace(microsecond=0) for image in read_page(body).images} == {MOMENT}


MARKS = [
    b"<",
    b">",
    b"&",
    b'"',
    b"/",
    b"\0",
    b"\x01",
    b"\xff",
    b"<!--",
    b"-->",
    b"<![CDATA[",
    b"]]>",
    b"<Key>",
    b"<Contents>",
]
MARKS += [
    b"</Contents>",
    b"</Key>",
    b"<Size>5</Size>",
    b"<Contents/>",
    b"<?x",
    b"?>",
    b"&amp;",
    b"%",
    b" ",
    b"\n",
    b"9",
    b"Z",
    b"",
]


@settings(max_examples=400, deadline=None)
@given(data=st.data(), name=st.sampled_from(sorted(SHAPES)))
def test_the_fast_road_takes_nothing_that_the_other_refuses(data: st.DataObject, name: str) -> None:
    """Answers that are damaged in one or two places: a mark put in, or put over some bytes."""
    body = answer(["a/b c", "d%", "e"], "more", SHAPES[name])
    for _ in range(data.draw(st.integers(1, 2))):
        at = data.draw(st.integers(0, len(body)))
        end = at + data.draw(st.integers(0, 12))
        body = body[:at] + data.draw(st.sampled_from(MARKS)) + body[end:]

    fast = _usual(body) if not _is_refused(_usual, body) else None

    assert fast is None or fast == _any(body)


@pytest.mark.parametrize(
    ("opened", "closed"),
    [
        ("<!--", "-->"),
        ("<![CDATA[", "]]>"),
        ("<?p ", "?>"),
        ('<a b="', '"/>'),
        ("<CommonPrefixes>", "</CommonPrefixes>"),
    ],
)
def test_entries_where_none_may_be_are_none(opened: str, closed: str) -> None:
    body = answer(["a"]).replace(b"<Contents>", opened.encode() + b"<Contents>")
    body = body.replace(b"</Contents>", b"</Contents>" + closed.encode())

    assert _is_refused(read_page, body) or read_page(body).images == []


def _is_refused(read: object, body: bytes) -> bool:
    try:
        read(body)  # type: ignore[operator]
    except NoListing:
        return True
    return False


# What is refused

LAUGHS = '<!DOCTYPE a [<!ENTITY a "ha"><!ENTITY b "&a;&a;&a;&a;&a;&a;">]>'
FILE = '<!DOCTYPE a [<!ENTITY a SYSTEM "file:///etc/passwd">]>'


def with_declaration(declaration: str) -> str:
    return answer(["a"], shape=replace(AWS, declaration=declaration)).decode().replace("<Prefix>", "<Prefix>&a;", 1)


@pytest.mark.parametrize("doctype", [LAUGHS, FILE, "<!DOCTYPE a>", '<!DOCTYPE a SYSTEM "http://127.0.0.1:1/a.dtd">'])
def test_a_document_type_is_refused(doctype: str) -> None:
    for declaration in (doctype, f'<?xml version="1.0" encoding="UTF-8"?>{doctype}'):
        with pytest.raises(NoListing, match=r"declares a document type \('a'\)"):
            read_page(with_declaration(declaration).encode())


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le", "utf-16-be", "utf-32", "utf-7", "latin-1", "cp037"])
def test_a_document_type_hides_in_no_encoding(encoding: str) -> None:
    for declared in ("UTF-8", encoding):
        with pytest.raises(NoListing, match=r"document type|UTF-8|no XML"):
            read_page(with_declaration(f'<?xml version="1.0" encoding="{declared}"?>{LAUGHS}').encode(encoding))


@pytest.mark.parametrize("encoding", ["ISO-8859-1", "UTF-16", "nonsense"])
def test_another_encoding_is_refused(encoding: str) -> None:
    body = answer(["a"], shape=replace(AWS, declaration=f'<?xml version="1.0" encoding="{encoding}"?>'))

    with pytest.raises(NoListing, match=f"declares the encoding '{encoding}'; S3 answers in UTF-8"):
        read_page(body)


GOOD = answer(["a.png", "b.png"])


@pytest.mark.parametrize(
    ("body", "says"),
    [
        (b"", "is empty"),
        (b"Bad gateway", "is no XML, or not all of it: .* it begins with 'Bad gateway'"),
        (b"<html><body>Log in</body></html>", "is no <ListBucketResult> but <html>"),
        (b"<!DOCTYPE html><html><br></html>", "declares a document type"),
        (GOOD[:-30], "or not all of it"),
        (GOOD[: len(GOOD) // 2], "or not all of it"),
        (GOOD + GOOD, "or not all of it"),
        (gzip.compress(GOOD), "is no UTF-8"),
        (GOOD.replace(b"<ETag>&quot;abc&quot;</ETag>", b""), "has an object without ETag: 'a.png'"),
        (GOOD.replace(b"<Size>7</Size>", b"", 1), "has an object without Size: 'a.png'"),
        (GOOD.replace(b"<Key>b.png</Key>", b""), "has an object without Key: ''"),
        (GOOD.replace(b"</ListBucketResult>", b"<Contents/></ListBucketResult>"), "has an object without Key"),
        (GOOD.replace(b"<Size>7", b"<Size>-7"), "gives 'a.png' the Size '-7'"),
        (GOOD.replace(b"<Size>7", b"<Size>7</Size><Size>7", 1), "gives Size twice"),
        (
            GOOD.replace(b"2026-03-01T06", b"2026-13-01T06", 1),
            "the LastModified '2026-13-01T06:00:00.000Z', which is no",
        ),
        (GOOD.replace(b"2026-03-01T06:00:00.000Z", b"yesterday", 1), "the LastModified 'yesterday'"),
        (GOOD.replace(b">false<", b">False<"), "IsTruncated is 'False'"),
        (GOOD.replace(b"<IsTruncated>false</IsTruncated>", b""), "IsTruncated is 'missing'"),
        (GOOD.replace(b"</IsTruncated>", b"</IsTruncated><IsTruncated>true</IsTruncated>"), "'false and true'"),
        (GOOD.replace(b"a.png", b"&undefined;"), "undefined entity"),
    ],
)
def test_what_is_no_listing_is_refused_by_its_reason(body: bytes, says: str) -> None:
    with pytest.raises(NoListing, match=says) as refused:
        read_page(body)
    assert not refused.value.is_error


@pytest.mark.parametrize("name", ["Key", "Size", "LastModified", "IsTruncated"])
def test_a_reason_is_short_whatever_is_in_the_answer(name: str) -> None:
    body = re.sub(rf"<{name}>[^<]*", f"<{name}>{'x' * 10_000}", GOOD.decode())
    body = body.replace("<ETag>&quot;abc&quot;</ETag>", "") if name == "Key" else body
    for text in (body, f"<{'x' * 10_000}/>", f"<!DOCTYPE {'x' * 10_000}>", "x" * 10_000):
        with pytest.raises(NoListing) as refused:
            read_page(text.encode())
        assert len(str(refused.value)) < 250


def test_an_error_in_the_place_of_a_listing_is_one() -> None:
    with pytest.raises(NoListing, match="but <Error>") as refused:
        read_page(b"<Error><Code>SlowDown</Code></Error>")
    assert refused.value.is_error


# Particular values


def test_an_empty_page_is_a_page() -> None:
    assert read_page(answer([])) == ListedPage([], False, None)
    assert read_page(answer([], "more")) == ListedPage([], True, "more")


def test_every_number_of_digits_and_every_offset_is_a_moment_in_utc() -> None:
    for text in ("06:00:00Z", "06:00:00.0Z", "06:00:00.000000Z", "08:00:00+02:00", "06:00:00", "00:30:00-05:30"):
        (image,) = read_page(answer(["a"], shape=replace(AWS, moment=f"2026-03-01T{text}"))).images
        assert image == ImageObject("a", "abc", 7, MOMENT)
        assert image.last_modified.utcoffset() == MOMENT.utcoffset()


def test_an_etag_is_given_without_its_quotes() -> None:
    for quote in ("", '"', "&quot;", "&#34;", "&#x22;"):
        (image,) = read_page(answer(["a"], shape=replace(AWS, quote=quote), etag="d41d8-2")).images
        assert image.etag == "d41d8-2"


def test_a_key_with_nul_does_not_shift_the_others() -> None:
    keys = ["a\0b", "c", "\0", "d"]

    assert [image.key for image in read_page(answer(keys)).images] == keys


def test_objects_of_the_fast_road_are_as_any_others() -> None:
    (image,) = _usual(answer(["a"])).images  # type: ignore[union-attr]

    assert hash(image) == hash(ImageObject("a", "abc", 7, MOMENT))
    assert pickle.loads(pickle.dumps(image)) == image
    with pytest.raises(FrozenInstanceError):
        image.key = "b"  # type: ignore[misc]
