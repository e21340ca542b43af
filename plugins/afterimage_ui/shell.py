"""What all pages share: templates, how text and numbers are written, and how a problem is told."""

from __future__ import annotations

import logging
from datetime import UTC, datetime, timedelta
from hashlib import sha256
from pathlib import Path
from typing import Any
from urllib.parse import quote

from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from fastapi.templating import Jinja2Templates
from sqlalchemy.exc import SQLAlchemyError

from tasks.errors import AfterimageError
from tasks.tables import printable

log = logging.getLogger(__name__)

FOLDER = Path(__file__).parent
ASSETS = FOLDER / "assets"

templates = Jinja2Templates(FOLDER / "templates")


class PageProblem(Exception):
    """What a page tells instead of showing something; `status` is that of the answer."""

    def __init__(self, message: str, status: int = 404) -> None:
        super().__init__(message)
        self.status = status


def render(request: Request, template: str, status: int = 200, **shown: Any) -> Response:
    """A page. Every template has `root`, the address of the app, and `airflow`, that of Airflow."""
    root = request.scope.get("root_path", "")
    return templates.TemplateResponse(
        request, template, {"root": root, "airflow": f"{root}/..", **shown}, status_code=status
    )


def tell_problems(app: FastAPI) -> None:
    """Answer what goes wrong with a page that says what, and what to do."""

    @app.exception_handler(PageProblem)
    def _tell(request: Request, problem: PageProblem) -> Response:
        return _told(request, str(problem), problem.status)

    @app.exception_handler(RequestValidationError)
    def _tell_invalid(_request: Request, problem: RequestValidationError) -> Response:
        # FastAPI would send back what was found, which may be no text; our pages show what stands in `detail`.
        told = (f"{'.'.join(str(part) for part in error['loc'])}: {error['msg']}" for error in problem.errors())
        return JSONResponse({"detail": printable("; ".join(told))}, 422)

    @app.exception_handler(AfterimageError)
    def _tell_ours(request: Request, problem: AfterimageError) -> Response:
        return _told(request, str(problem), 503)

    @app.exception_handler(SQLAlchemyError)
    def _tell_database(request: Request, problem: SQLAlchemyError) -> Response:
        log.warning("%s: %s", request.url.path, problem)
        if "statement timeout" in str(problem) or "interrupted" in str(problem):
            told = "The cache took too long to answer, and the query was ended. Narrow the filter, or try again."
        else:
            told = "The cache could not be read. Run ./afterimage doctor where the API server runs."
        return _told(request, told, 503)


def _told(request: Request, problem: str, status: int) -> Response:
    """As a page, and to programs as JSON."""
    if request.url.path.startswith(f"{request.scope.get('root_path', '')}/api/"):
        return JSONResponse({"detail": problem}, status)
    return render(request, "problem.html", status, problem=problem)


def _count(value: float | None) -> str:
    return "" if value is None else f"{value:,.0f}"


def _share(value: float | None, digits: int = 1) -> str:
    return "" if value is None else f"{value:.{digits}%}"


def _duration(seconds: float | None) -> str:
    """3 s, 4 min, 1 h 20 min, 3 d: as exact as one wants to know it."""
    if seconds is None:
        return ""
    if seconds < 10:
        return f"{seconds:.1f} s"
    minutes, hours = round(seconds / 60), round(seconds / 3600)
    if seconds < 120:
        return f"{seconds:.0f} s"
    if minutes < 120:
        return f"{minutes} min"
    return f"{hours} h" if hours < 48 else f"{round(seconds / 86_400)} d"


def _moment(value: datetime | str | None) -> str:
    """2026-11-26 14:05 UTC; SQLite's views give text."""
    found = _parsed(value)
    return "" if found is None else f"{found.astimezone(UTC):%Y-%m-%d %H:%M} UTC"


def _age(value: datetime | str | None) -> str:
    found = _parsed(value)
    return "" if found is None else _duration(max(timedelta(), datetime.now(UTC) - found).total_seconds())


def _parsed(value: datetime | str | None) -> datetime | None:
    if value is None:
        return None
    found = datetime.fromisoformat(value) if isinstance(value, str) else value
    return found if found.tzinfo else found.replace(tzinfo=UTC)


def _money(value: float | None) -> str:
    if value is None:
        return ""
    return f"${value:,.2f}" if value >= 0.01 or value == 0 else f"${value:.4f}"


def _asset_version() -> str:
    content = b"".join(path.read_bytes() for path in sorted(ASSETS.iterdir()) if path.is_file())
    return sha256(content).hexdigest()[:12]


templates.env.filters.update(
    printable=printable,
    count=_count,
    share=_share,
    duration=_duration,
    moment=_moment,
    age=_age,
    money=_money,
    segment=lambda text: quote(str(text), safe=""),
)
templates.env.globals["asset_version"] = _asset_version()
