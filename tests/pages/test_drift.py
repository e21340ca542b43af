"""The page Drift: days beside a baseline."""

from __future__ import annotations

import html
import re
from typing import Any

import httpx
import pytest

PAGE = "/afterimage/pipelines/days/drift"


def text_of(markup: str) -> str:
    return html.unescape(re.sub(r"\s+", " ", re.sub(r"<[^>]+>", " ", markup))).strip()


def show(client: httpx.Client, **asked: Any) -> str:
    answer = client.get(PAGE, params=asked)
    assert answer.status_code == 200, answer.text
    return answer.text


def days(markup: str) -> dict[str, str]:
    """{day: its row of the table}."""
    table = re.search(r'data-testid="days".*?</table>', markup, re.DOTALL)
    assert table is not None
    rows = [text_of(row) for row in re.findall(r"<tr>.*?</tr>", table[0], re.DOTALL)]
    return {row[:10]: row for row in rows if row.startswith("2026")}


def test_days_are_judged_against_the_baseline_of_pipelines_toml(days_admin: httpx.Client) -> None:
    found = show(days_admin)
    assert "2026-10-01 to 2026-10-03 (pipelines.toml)" in text_of(found)
    rows = days(found)
    assert list(rows) == [f"2026-10-{day:02}" for day in (12, 10, 9, 8, 7, 6, 5, 4, 3, 2, 1)]
    assert rows["2026-10-05"] == "2026-10-05 60 0.000 0.000 stable"
    # Shares of 0.9 and 0.1 after 0.5 and 0.5: 0.4 ln 1.8 - 0.4 ln 0.2
    assert rows["2026-10-10"].startswith("2026-10-10 60 0.879 ")
    assert rows["2026-10-10"].endswith("significant")
    assert rows["2026-10-08"] == "2026-10-08 10 too few"
    assert rows["2026-10-12"].endswith("significant")


def test_labels_that_moved_are_named_as_text(days_admin: httpx.Client) -> None:
    found = show(days_admin, **{"from": "2026-10-07", "to": "2026-10-10"})
    table = re.search(r'data-testid="moved".*?</table>', found, re.DOTALL)
    assert table is not None
    assert "<b>bright</b> 50.0% 87.9% +37.9 points" in text_of(table[0])
    assert "dim & dark 50.0% 12.1% -37.9 points" in text_of(table[0])
    assert "<b>bright" not in found
    assert re.search(r'data-testid="verdict">significant<', found)


def test_the_baseline_and_the_days_can_be_chosen(days_admin: httpx.Client) -> None:
    asked = {"from": "2026-10-04", "to": "2026-10-06", "baseline_from": "2026-10-09", "baseline_to": "2026-10-10"}
    found = show(days_admin, **asked)
    assert list(days(found)) == ["2026-10-06", "2026-10-05", "2026-10-04"]
    assert "pipelines.toml)" not in found
    assert all(row.endswith("significant") for row in days(found).values())
    for name, value in asked.items():
        assert f'name="{name}" value="{value}"' in found


def test_the_scores_of_a_day_stand_beside_those_of_the_baseline(days_admin: httpx.Client) -> None:
    found = show(days_admin, day="2026-10-10")
    assert "Scores of 2026-10-10" in found
    chart = re.search(r'<svg class="beside".*?</svg>', found, re.DOTALL)
    assert chart is not None
    assert len(re.findall("<title>", chart[0])) == 40
    shares = [float(share) for share in re.findall(r"<title>[^<]*baseline: ([\d.]+)%</title>", chart[0])]
    assert sum(shares) == pytest.approx(100, abs=0.5)
    assert "Scores of all days" in show(days_admin, day="2020-01-01")


def test_gaps_stay_gaps_in_the_line(days_admin: httpx.Client) -> None:
    """Ten days with a PSI among eleven; the eighth has too few images, and the others stay in their places."""
    found = show(days_admin)
    chart = re.search(r'<svg class="line".*?</svg>', found, re.DOTALL)
    assert chart is not None
    places = [float(x) for x in re.findall(r'class="dot" d="M([\d.]+) ', chart[0])]
    assert places == [0, 100, 200, 300, 400, 500, 600, 800, 900, 1000]
    assert chart[0].count('class="limit') == 2


@pytest.mark.parametrize(
    ("asked", "status", "told"),
    [
        ({"from": "soon"}, 400, "is no day"),
        ({"from": "2026-10-05", "to": "2026-10-01"}, 400, "Turn the two days round"),
        ({"from": "2000-01-01", "to": "2026-10-01"}, 400, "more than 366 days"),
        ({"model": "nonsense"}, 404, "no model"),
    ],
)
def test_what_cannot_be_shown_is_told(days_admin: httpx.Client, asked: dict[str, str], status: int, told: str) -> None:
    answer = days_admin.get(PAGE, params=asked)
    assert answer.status_code == status
    assert told in text_of(answer.text)


def test_days_without_images_and_pipelines_without_runs_have_a_sentence(days_admin: httpx.Client) -> None:
    assert "No images of 2020-01-01" in show(days_admin, **{"from": "2020-01-01", "to": "2020-01-02"})
    never = days_admin.get("/afterimage/pipelines/secret/drift")
    assert never.status_code == 200
    assert "not run with success yet" in never.text


def test_one_day_is_a_page_as_well(admin: httpx.Client) -> None:
    answer = admin.get("/afterimage/pipelines/photos/drift")
    assert answer.status_code == 200
    assert len(days(answer.text)) == 1
    assert "aria-current" in answer.text
