"""Attachments out of S3: moto's server, which nobody here wrote, by way of s3fs."""

import hashlib
import os
import subprocess
import sys
from base64 import b64decode
from collections.abc import Iterator

import pytest

from actors.content.files import FileReader, UnreadFile
from tests.servers.conftest import need, own_folder
from tests.servers.install import installed
from tests.servers.server import free_port, listening
from tests.waiting import wait_until

MIB = 2**20
OBJECTS = {
    "invoices/7.pdf": b"%PDF-7" * 1000,
    "invoices/Grüße 100%.txt": "Grüße".encode(),
    "invoices/empty": b"",
    "invoices/large": bytes(25 * MIB + 1),
    "invoices/fits": bytes(25 * MIB),
    "invoices-other/7.pdf": b"other",
}


@pytest.fixture(scope="module")
def store() -> Iterator[str]:
    """A bucket with objects in it; gives the server's URL."""
    need("moto")
    import botocore.session  # comes with s3fs

    port = free_port()
    url = f"http://127.0.0.1:{port}"
    path = {"PYTHONPATH": str(installed("moto") / "usr")}
    with own_folder() as folder, (folder / "log").open("wb") as log:
        server = subprocess.Popen(
            [sys.executable, "-m", "moto.server", "-p", str(port)], env={**os.environ, **path}, stdout=log, stderr=log
        )
        try:
            wait_until(lambda: port in listening(), timeout=120, what="moto to listen")
            client = botocore.session.get_session().create_client(
                "s3",
                endpoint_url=url,
                region_name="us-east-1",
                aws_access_key_id="testing",
                aws_secret_access_key="testing",
            )
            client.create_bucket(Bucket="bucket")
            for name, content in OBJECTS.items():
                client.put_object(Bucket="bucket", Key=name, Body=content)
            yield url
        finally:
            server.kill()
            server.wait()


@pytest.fixture
def reader(store: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[FileReader]:
    """What reads the invoices in it."""
    for name, value in {
        "AWS_ENDPOINT_URL": store,
        "AWS_ACCESS_KEY_ID": "testing",
        "AWS_SECRET_ACCESS_KEY": "testing",
        "AWS_DEFAULT_REGION": "us-east-1",
    }.items():
        monkeypatch.setenv(name, value)
    reader = FileReader(["s3://bucket/invoices/"], 60.0)
    yield reader
    reader.close()


@pytest.mark.parametrize(
    ("url", "name"),
    [
        ("s3://bucket/invoices/7.pdf", "invoices/7.pdf"),
        ("s3://bucket/invoices/Gr%C3%BC%C3%9Fe%20100%25.txt", "invoices/Grüße 100%.txt"),
        ("s3://bucket/invoices/Grüße 100%25.txt", "invoices/Grüße 100%.txt"),
        ("s3://bucket/invoices/empty", "invoices/empty"),
        ("s3://bucket/invoices/fits", "invoices/fits"),
    ],
)
def test_an_object_comes_as_it_is(reader: FileReader, url: str, name: str) -> None:
    with reader.reading([url]) as found:
        assert [each.sha256 for each in found.found] == [hashlib.sha256(OBJECTS[name]).hexdigest()]
        assert b64decode(found.take()[0]) == OBJECTS[name]


@pytest.mark.parametrize(
    ("url", "reason"),
    [
        ("s3://bucket/invoices/none.pdf", "its file does not exist"),
        ("s3://bucket/invoices/large", "the files are more than 25 MiB together"),
        ("s3://bucket/invoices-other/7.pdf", "its file lies outside of DUEPOST_ATTACHMENT_ROOTS"),
        ("s3://bucket/invoices", "its file lies outside of DUEPOST_ATTACHMENT_ROOTS"),
        ("s3://other/invoices/7.pdf", "its file lies outside of DUEPOST_ATTACHMENT_ROOTS"),
        ("s3://bucket/invoices/../invoices-other/7.pdf", "its file lies outside of DUEPOST_ATTACHMENT_ROOTS"),
        ("file:///etc/hostname", "its file lies outside of DUEPOST_ATTACHMENT_ROOTS"),
    ],
)
def test_what_is_not_there_too_large_or_elsewhere_is_not_read(reader: FileReader, url: str, reason: str) -> None:
    with pytest.raises(UnreadFile) as unread, reader.reading(["s3://bucket/invoices/7.pdf", url]):
        pass
    assert (unread.value.place, unread.value.reason) == (1, reason)


def test_several_objects_are_too_large_together(reader: FileReader) -> None:
    urls = ["s3://bucket/invoices/fits", "s3://bucket/invoices/7.pdf"]
    with pytest.raises(UnreadFile, match="more than 25 MiB together"), reader.reading(urls):
        pass
