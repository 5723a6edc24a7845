"""Verify the server's TLS certificate, show the client's, and explain what is wrong with one."""

from __future__ import annotations

import ssl
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx

from airflow_provider_r7mail.exceptions import R7MailConfigError

CONVERT = (
    "Give a PEM file. `openssl x509 -inform der` converts a DER file, `openssl pkcs7 -print_certs` "
    "a .p7b, and `openssl pkcs12 -nodes` a .pfx; a key must not be encrypted."
)
_VERIFY_HINT = "Set verify in the connection to the path of a bundle with the CA that issued it."
_CLOCK_HINT = "Renew it on the server, or correct this machine's clock."
_HOST_HINT = "Set Host in the connection to a name in the certificate."
_REISSUE_HINT = "Have it, or its CA's certificate, reissued."
_HINTS = {  # by OpenSSL's X509_V_ERR_*
    **dict.fromkeys((2, 18, 19, 20, 21), _VERIFY_HINT),
    **dict.fromkeys((9, 10), _CLOCK_HINT),
    **dict.fromkeys((62, 64), _HOST_HINT),
}


def make_context(verify: bool | str | None, cert: str | tuple[str, str] | None) -> ssl.SSLContext:
    """Create a TLS context.

    :param verify: see `ClientConfig`; None trusts no CA at all, where there is no TLS
    :param cert: see `ClientConfig`
    :raises R7MailConfigError: a file is missing or has no certificate; the error names it
    """
    if isinstance(verify, str):
        with _naming("verify", verify):
            context = _trusting(Path(verify))
    elif verify is None:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    else:
        # httpx only has certifi's CAs, not those that a company adds to its systems.
        context = httpx.create_ssl_context(verify=verify, trust_env=False)
        context.load_default_certs()
    # Python 3.13 sets this. It refuses CAs without key usage, as companies often have. All that
    # earlier versions of Python check is still checked.
    context.verify_flags &= ~ssl.VERIFY_X509_STRICT
    if cert is not None:
        files = [cert] if isinstance(cert, str) else list(cert)
        for path in files:
            with _naming("cert", path):
                Path(path).read_bytes()
        with _naming("cert", ",".join(files)):
            # Without a password, OpenSSL would prompt for that of an encrypted key.
            context.load_cert_chain(files[0], files[1] if files[1:] else None, password="")
    return context


def _trusting(path: Path) -> ssl.SSLContext:
    """Create a context that trusts the CAs in a file, in PEM or DER, or in a folder."""
    if path.is_dir():
        return ssl.create_default_context(capath=path)
    data = path.read_bytes()
    if b"-----BEGIN" in data:
        return ssl.create_default_context(cafile=path)
    return ssl.create_default_context(cadata=data)


@contextmanager
def _naming(field: str, path: str) -> Iterator[None]:
    try:
        yield
    except (OSError, ValueError) as error:
        hint = CONVERT if isinstance(error, ssl.SSLError | ValueError) else "Check the path."
        reason = getattr(error, "strerror", None) or error
        raise R7MailConfigError(
            f"{field} of the connection: no certificate could be read from {path!r} on this "
            f"machine ({reason}). {hint}"
        ) from error


def certificate_problem(error: BaseException | None) -> tuple[str, str] | None:
    """Return why the server's certificate was refused, and what to do; None if it was not.

    :param error: what the HTTP library raised
    """
    while error is not None:
        message = getattr(error, "verify_message", None)  # aiohttp's own error lacks it
        if isinstance(error, ssl.SSLCertVerificationError) and message:
            reason = f"the server's TLS certificate could not be verified: {message.rstrip('.')}"
            return reason, _HINTS.get(error.verify_code, _REISSUE_HINT)
        error = error.__cause__ or error.__context__
    return None
