"""What a refused login tells the subscriber, and what it tells the operator."""

from pathlib import Path

import pytest

from l2tpns.proto.ppp.credentials import Credentials
from l2tpns.radius.secrets_file import SecretsBackend
from l2tpns.radius.types import AuthRequest
from tests.lab.memory_log import MemoryLog

PAP = 0xC023


@pytest.mark.parametrize(
    ("name", "password", "why"),
    [
        (b"nobody", b"secret", "unknown user"),
        (b"alice", b"guess", "wrong password"),
        (b"carol", b"secret", "barred in the secrets file"),
    ],
)
def test_the_operator_learns_why_and_the_subscriber_not_whether_the_name_exists(
    tmp_path: Path, name: bytes, password: bytes, why: str
) -> None:
    file = tmp_path / "l2tpns.secrets"
    file.write_text("alice * secret *\ncarol * secret -\n")
    file.chmod(0o600)
    backend = SecretsBackend(file, "lns1", MemoryLog().get())
    credentials = Credentials(PAP, name, password=password, identifier=1)
    reply = backend.authenticate(AuthRequest(credentials, 1, "0001", "08002", "0401"))
    assert (reply.accepted, reply.why, reply.message) == (False, why, b"wrong name or password")
