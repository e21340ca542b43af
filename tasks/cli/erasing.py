"""`./afterimage erase`: an image leaves every table."""

from __future__ import annotations

import re
from typing import Annotated

import typer

from tasks import tables
from tasks.cache.erasing import Erased, Target, clear_log, unblock
from tasks.cache.erasing import erase as erase_rows
from tasks.cli.options import AsJson, Database, cache_of, settings_of
from tasks.cli.thumbnails import RemovedThumbnails, remove_thumbnails
from tasks.listing import can_be_stored

_DIGEST = re.compile(r"[0-9A-Fa-f]{64}")


def erase(
    key: Annotated[str | None, typer.Option(help="The key of an image: the whole path below bucket or folder.")] = None,
    digest: Annotated[
        str | None, typer.Option(help="sha256 of its bytes, 64 hex digits: every image that has them.")
    ] = None,
    source: Annotated[
        str | None, typer.Option(help="With --key: only in this source, as v_prediction names it.")
    ] = None,
    block: Annotated[
        bool, typer.Option("--block", help="No run predicts it again, also where it is still there.")
    ] = False,
    lift: Annotated[bool, typer.Option("--unblock", help="Erase nothing: lift the block.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Count, and erase nothing.")] = False,
    database: Database = None,
    as_json: AsJson = False,
) -> None:
    """Remove an image from every table, and its thumbnails: predictions, failures, listings. The object itself is not touched."""
    target = _target(key, digest, source)
    if lift and (block or dry_run):
        raise typer.BadParameter("--unblock stands alone: it lifts a block, and erases nothing")
    engine = cache_of(database)
    if lift:
        lifted = unblock(engine, target)
        typer.echo(tables.to_json({"lifted": lifted}) if as_json else f"Blocks lifted: {lifted}.")
        return
    erased = erase_rows(engine, target, block=block, dry_run=dry_run)
    is_clear = dry_run or clear_log(engine)
    thumbnails = remove_thumbnails(erased.digests, settings_of(database), dry_run=dry_run)
    if as_json:
        facts = {"removed": dict(erased.removed), "kept": erased.kept, "blocked": block, "dry_run": dry_run}
        typer.echo(tables.to_json({**facts, "thumbnails": thumbnails.count}))
    else:
        _tell(erased, thumbnails, target, block=block, dry_run=dry_run)
    if not is_clear:
        typer.echo(
            "Others are reading the cache, so what was erased is still in its write-ahead log (the file that ends in -wal). "
            "Give the command again when no run is under way.",
            err=True,
        )
    for problem in thumbnails.problems:
        typer.echo(problem, err=True)
    if thumbnails.problems:
        raise typer.Exit(1)


def _target(key: str | None, digest: str | None, source: str | None) -> Target:
    if (key is None) == (digest is None):
        raise typer.BadParameter("give --key or --digest, and one of them only")
    if digest is not None:
        if source is not None:
            raise typer.BadParameter("--source belongs to --key: the same bytes are erased wherever they lie")
        if not _DIGEST.fullmatch(digest):
            raise typer.BadParameter(
                f"--digest {digest!r} is no sha256: give 64 hex digits, as ./afterimage show --json prints"
            )
        return Target(digest=bytes.fromhex(digest))
    assert key is not None
    if not can_be_stored(key):
        raise typer.BadParameter(f"--key {key!r} is no text in UTF-8 without NUL, so no image has it: correct it")
    return Target(key=key, source=source)


def _tell(erased: Erased, thumbnails: RemovedThumbnails, target: Target, *, block: bool, dry_run: bool) -> None:
    rows = [{"table": table, "rows": count} for table, count in erased.removed.items()]
    tables.show(rows, tables.ERASED, "", as_json=False)
    what = repr(target.key) if target.digest is None else f"the digest {target.digest.hex()[:12]}..."
    if not erased.removed or not any(erased.removed.values()):
        typer.echo(f"Nothing is known of {what}. A key is the whole path below the bucket or the folder.")
    if erased.kept:
        typer.echo(
            f"Predictions kept: {erased.kept} other images have the same bytes; erase --digest removes them too."
        )
    if thumbnails.count:
        typer.echo(f"Thumbnails: {thumbnails.count}.")
    if dry_run:
        typer.echo("This was a dry run: nothing was erased.")
    elif block:
        typer.echo(f"Blocked: no run predicts {what} again. --unblock lifts that.")
    else:
        typer.echo("It is predicted anew by the next run that finds it, unless it is erased with --block.")
