"""`python -m demo.seed`: write the demo's bucket and model into S3, at the places that the pipeline `digits` names."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from hashlib import md5
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

from botocore.exceptions import ClientError

from tasks.location import Location, parse_location
from tasks.pipelines import find_pipeline
from tasks.settings import Settings, load_settings
from tasks.storage.s3 import S3Store, client

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client


def main() -> None:
    """Write what is missing; a second run writes nothing."""
    settings = load_settings()
    pipeline = find_pipeline(settings.pipelines, "digits")
    images, model = bucket_of(pipeline.images), bucket_of(pipeline.models[0].rstrip("/") + "/")
    for location in (images, model):
        ensure_bucket(client(settings), location.root)
    sys.stdout.write(f"{write_images(settings, images):,} objects written to {pipeline.images}\n")
    sys.stdout.write(f"{write_model(settings, model):,} files written to {pipeline.models[0]}\n")


def bucket_of(uri: str) -> Location:
    """A place in S3. A folder is for `make demo`."""
    location = parse_location(uri)
    if location.scheme != "s3":
        raise SystemExit(f"{uri} is not in S3. Point AFTERIMAGE_PIPELINES at docker/pipelines.toml, or run make demo.")
    return location


def ensure_bucket(s3: S3Client, name: str) -> None:
    """Create a bucket that does not exist."""
    try:
        s3.head_bucket(Bucket=name)
    except ClientError as error:
        if error.response["ResponseMetadata"]["HTTPStatusCode"] != 404:
            raise SystemExit(f"The bucket {name!r}: {error}. Check AFTERIMAGE_S3_ENDPOINT and its keys.") from None
        s3.create_bucket(Bucket=name)


def write_images(settings: Settings, location: Location) -> int:
    """Write the objects of the demo's bucket that are missing or differ. Returns how many were written."""
    from demo.bucket import objects

    there = etags(settings, location)
    wanted = ((location.prefix + key, data) for key, data in objects())
    return put(settings, location.root, [(key, data) for key, data in wanted if there.get(key) != etag_of(data)])


def write_model(settings: Settings, location: Location) -> int:
    """Train the demo's network and write its bundle; a bundle that is there already stays.

    model.toml is written last: a bundle without it is not complete, and the next run writes it again.
    """
    from demo import network

    manifest = location.prefix + "model.toml"
    if manifest in etags(settings, location):
        return 0
    with TemporaryDirectory() as folder:
        network.write_model(Path(folder))
        files = {location.prefix + path.name: path.read_bytes() for path in Path(folder).iterdir()}
    last = files.pop(manifest)
    return put(settings, location.root, files.items()) + put(settings, location.root, [(manifest, last)])


def etags(settings: Settings, location: Location) -> dict[str, str]:
    """Key and ETag of what lies there."""
    pages = S3Store(location.root, settings).pages(location.prefix)
    return {found.key: found.etag for page in pages for found in page}


def etag_of(data: bytes) -> str:
    """The ETag that S3 gives to an object which was put in one piece."""
    return md5(data, usedforsecurity=False).hexdigest()


def put(settings: Settings, bucket: str, objects: Iterable[tuple[str, bytes]]) -> int:
    """Write objects, several at the same time. Returns how many."""
    s3 = client(settings)

    def put_one(item: tuple[str, bytes]) -> None:
        s3.put_object(Bucket=bucket, Key=item[0], Body=item[1])

    with ThreadPoolExecutor(min(16, settings.readers)) as pool:
        return sum(1 for _ in pool.map(put_one, objects))


if __name__ == "__main__":
    main()
