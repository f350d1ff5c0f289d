"""Copies a folder into a bucket, from the under-store's own host.

    python -m chaos.put ENDPOINT BUCKET ACCESS SECRET FOLDER

A process of its own since it must run inside that host's network. Waits until the
server takes objects: it answers long before.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path

import boto3
from botocore.config import Config
from botocore.exceptions import BotoCoreError, ClientError

READY_WITHIN_S = 60.0


def main() -> None:
    endpoint, bucket, access, secret, folder = sys.argv[1:]
    client = boto3.client(
        "s3",
        endpoint_url=endpoint,
        aws_access_key_id=access,
        aws_secret_access_key=secret,
        region_name="us-east-1",
        config=Config(s3={"addressing_style": "path"}, retries={"max_attempts": 1}),
    )
    deadline_s = time.monotonic() + READY_WITHIN_S
    while True:
        try:
            if bucket not in [each["Name"] for each in client.list_buckets()["Buckets"]]:
                client.create_bucket(Bucket=bucket)
            for path in sorted(Path(folder).iterdir()):
                client.upload_file(str(path), bucket, path.name)
        except (BotoCoreError, ClientError, OSError) as error:
            if time.monotonic() > deadline_s:
                raise SystemExit(f"the under-store takes no objects: {error}") from error
            time.sleep(0.2)
        else:
            return


if __name__ == "__main__":
    main()
