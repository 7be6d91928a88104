"""Objects in S3 or anything that speaks its protocol, through boto3; miners reach it by presigned URLs.

Law: keys become object names below an optional prefix, nothing else. A presigned PUT has its exact Content-Length
signed; a presigned GET allows any range. boto3 blocks, so its calls run on a bounded pool of threads; presigning is
arithmetic and runs where it is called. boto3 repeats what failed for the moment; what still fails is `Unavailable`.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

import boto3
from botocore.config import Config
from botocore.exceptions import BotoCoreError, ClientError, NoCredentialsError

from subnet.errors import ConfigError, Unavailable
from subnet.protocol.keys import ObjectKey, parse
from subnet.storage.base import check_prefix

T = TypeVar("T")
_THREADS = 8
_PAGE = 1000
"""Objects per listing and per deletion: what S3 allows."""
_EXPIRY_MAX_S = 7 * 24 * 3600
"""S3 refuses longer grants."""
_MISSING = frozenset({"404", "NoSuchKey", "NotFound"})
_PAST_THE_END = frozenset({"416", "InvalidRange", "InvalidArgument"})
"""How stores answer to ranges past the end: S3 refuses those that begin there, others those that end there."""
_FORBIDDEN = frozenset({"401", "403", "AccessDenied", "InvalidAccessKeyId", "SignatureDoesNotMatch"})


class S3ObjectStore:
    """Objects of one bucket. Credentials come from the arguments or, when absent, from boto3's usual places."""

    def __init__(
        self,
        bucket: str,
        now: Callable[[], float],
        *,
        endpoint_url: str | None = None,
        region: str | None = None,
        access_key: str | None = None,
        secret_key: str | None = None,
        prefix: str = "",
    ) -> None:
        self._bucket, self._now, self._prefix = bucket, now, prefix
        self._executor = ThreadPoolExecutor(_THREADS, thread_name_prefix="s3")
        try:
            self._client: Any = boto3.client(
                "s3",
                endpoint_url=endpoint_url,
                region_name=region,
                aws_access_key_id=access_key,
                aws_secret_access_key=secret_key,
                config=Config(
                    signature_version="s3v4",
                    max_pool_connections=_THREADS,
                    connect_timeout=5,
                    read_timeout=30,
                    retries={"mode": "standard", "max_attempts": 3},
                    # checksums in trailers are an AWS matter; our digests bind, and other stores refuse them
                    request_checksum_calculation="when_required",
                    response_checksum_validation="when_required",
                    s3={"addressing_style": "path" if endpoint_url else "auto"},
                ),
            )
        except (BotoCoreError, ValueError) as error:
            raise ConfigError("--s3-endpoint", str(error), "check endpoint URL and region") from None

    async def check(self) -> None:
        """Look the bucket up once at start. Raises ConfigError when it is missing or closed to these credentials."""
        try:
            await self._call(lambda: self._client.head_bucket(Bucket=self._bucket))
        except KeyError:
            raise ConfigError("--s3-bucket", f"there is no bucket {self._bucket!r}", "create it first") from None

    async def put(self, key: ObjectKey, data: bytes) -> None:
        name = self._name(key)
        await self._call(lambda: self._client.put_object(Bucket=self._bucket, Key=name, Body=data))

    async def get(self, key: ObjectKey, offset: int = 0, length: int | None = None) -> bytes:
        name = self._name(key)
        if length == 0:
            if await self.size_bytes(key) is None:
                raise KeyError(key)
            return b""
        return await self._call(lambda: self._read(name, offset, length))

    async def size_bytes(self, key: ObjectKey) -> int | None:
        name = self._name(key)
        try:
            head = await self._call(lambda: self._client.head_object(Bucket=self._bucket, Key=name))
        except KeyError:
            return None
        return int(head["ContentLength"])

    async def delete_prefix(self, prefix: str) -> int:
        check_prefix(prefix)
        return await self._call(lambda: sum(self._delete(names) for names in self._pages(self._prefix + prefix)))

    def grant_put(self, key: ObjectKey, size_bytes: int, expires_at: float) -> str:
        return self._presign("put_object", key, expires_at, ContentLength=size_bytes)

    def grant_get(self, key: ObjectKey, expires_at: float) -> str:
        return self._presign("get_object", key, expires_at)

    def close(self) -> None:
        self._executor.shutdown()
        self._client.close()

    def _read(self, name: str, offset: int, length: int | None) -> bytes:
        where = {"Bucket": self._bucket, "Key": name}
        if offset or length is not None:
            where["Range"] = f"bytes={offset}-" + ("" if length is None else str(offset + length - 1))
        try:
            return bytes(self._client.get_object(**where)["Body"].read())
        except ClientError as error:
            if _code(error) not in _PAST_THE_END:
                raise
            rest = int(self._client.head_object(Bucket=self._bucket, Key=name)["ContentLength"]) - offset
            if rest > 0 and (length is None or length <= rest):
                raise
        return self._read(name, offset, rest) if rest > 0 else b""

    def _presign(self, operation: str, key: ObjectKey, expires_at: float, **more: int) -> str:
        seconds = min(max(1, math.floor(expires_at - self._now())), _EXPIRY_MAX_S)
        parameters = {"Bucket": self._bucket, "Key": self._name(key), **more}
        return str(self._client.generate_presigned_url(operation, Params=parameters, ExpiresIn=seconds))

    def _pages(self, prefix: str) -> Iterator[list[str]]:
        pages = self._client.get_paginator("list_objects_v2").paginate(
            Bucket=self._bucket, Prefix=prefix, PaginationConfig={"PageSize": _PAGE}
        )
        for page in pages:
            yield [entry["Key"] for entry in page.get("Contents", ())]

    def _delete(self, names: list[str]) -> int:
        if names:
            objects = {"Objects": [{"Key": name} for name in names], "Quiet": True}
            self._client.delete_objects(Bucket=self._bucket, Delete=objects)
        return len(names)

    def _name(self, key: ObjectKey) -> str:
        parse(key)
        return self._prefix + key

    async def _call(self, work: Callable[[], T]) -> T:
        try:
            return await asyncio.get_running_loop().run_in_executor(self._executor, work)
        except ClientError as error:
            code = _code(error)
            if code in _MISSING:
                raise KeyError(f"no such object in {self._bucket}") from None
            if code in _FORBIDDEN:
                remedy = "check the access key, the secret and the bucket's policy"
                raise ConfigError("S3 credentials", f"{self._bucket} answered {code}", remedy) from None
            raise Unavailable(f"S3 answered {code}") from None
        except NoCredentialsError:
            raise ConfigError("S3 credentials", "there are none", "set AWS_ACCESS_KEY_ID and its secret") from None
        except BotoCoreError as error:
            raise Unavailable(f"S3 is away: {error}") from None


def _code(error: ClientError) -> str:
    return str(error.response.get("Error", {}).get("Code", ""))
