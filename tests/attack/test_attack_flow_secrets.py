# SPDX-License-Identifier: Apache-2.0
"""Credentials that a rule asks for under a name of its own stand in no flow line."""

from __future__ import annotations

import pytest

from ext_authz.flow.text import Words

SECRET = b"s3cr3t"


@pytest.mark.parametrize(
    "name",
    ["Authorization", "proxy-authorization", "cookie", "X-API-Key", "x-vault-token", "X-Amz-Security-Token",
     "x-auth-request-access-token", "x_session_id", "X-CSRF-Token", "authentication", "x-hub-signature", "dpop-jwt"],
)  # fmt: skip
def test_credentials_stand_in_no_flow_line_whatever_their_headers_are_called(name: str) -> None:
    shown = Words(True).headers([(name.encode(), SECRET), (b"x-env", b"prod"), (b"x-author", b"me")])
    assert SECRET.decode() not in shown
    assert shown.count("HUBBLE_REDACTED") == 1
    assert SECRET.decode() in Words(False).headers([(name.encode(), SECRET)])
