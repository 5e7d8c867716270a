"""Makes mcp-context7.enc as the Go implementation would, with an independent AES-GCM: key 32 x 0x42."""
import os
import pathlib

from cryptography.hazmat.primitives.ciphers.aead import AESGCM

JSON = (
    b'{"provider":"mcp:context7","token":"ctx7sk-0123456789","scopes":["read","write"],'
    b'"expires_at":"0001-01-01T00:00:00Z","created_at":"2026-01-25T10:23:44.512345678+02:00",'
    b'"metadata":{"token_source":"pat"}}'
)
nonce = os.urandom(12)
target = pathlib.Path(__file__).parent / "mcp-context7.enc"
target.write_bytes(nonce + AESGCM(bytes([0x42]) * 32).encrypt(nonce, JSON, None))
