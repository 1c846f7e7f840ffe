"""Credentials from files: secrets, certificate authorities; errors name the variable only."""

from __future__ import annotations

import ssl
from pathlib import Path


class CredentialsUnreadable(Exception):
    """A file of credentials cannot be read now; the message names its variable."""


def read_secret(path: Path, variable: str) -> str:
    """The text of a file without the line end that editors add.

    Raises:
        CredentialsUnreadable: it is missing, empty, or no text.

    """
    try:
        text = path.read_text().strip("\r\n")
    except (OSError, UnicodeDecodeError) as error:
        # An error of decoding would show bytes of the secret.
        reason = error.strerror if isinstance(error, OSError) else "not UTF-8"
        raise CredentialsUnreadable(f"{variable}: {path}: {reason}") from None
    if not text:
        raise CredentialsUnreadable(f"{variable}: {path} is empty")
    return text


def bearer(path: Path | None, variable: str) -> str:
    """The Authorization header with a file's key; empty without a file. Errors are `read_secret`'s."""
    return f"Bearer {read_secret(path, variable)}" if path is not None else ""


def tls_context(ca_file: Path | None, variable: str) -> ssl.SSLContext:
    """A client's TLS that trusts one file of authorities; none: the system's.

    Raises:
        CredentialsUnreadable: the file is missing or has no certificate.

    """
    try:
        return ssl.create_default_context(cafile=ca_file)
    except OSError as error:
        raise CredentialsUnreadable(f"{variable}: {ca_file}: {error}") from error
