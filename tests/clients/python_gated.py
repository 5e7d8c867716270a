"""An MCP server made with the official Python SDK, which lets in who has a token that the authorization server of the tests
calls good: it asks for introspection (RFC 7662), and checks audience and scope.

    python_gated.py CERTIFICATE KEY TRUST

Prints {"port"}, reads the issuer's URL from stdin, and prints a line for each token that it was shown. Ends with its stdin.
"""

import asyncio
import base64
import hashlib
import json
import os
import socket
import ssl
import sys
import threading
import urllib.parse
import urllib.request

import uvicorn
from mcp.server.auth.provider import AccessToken
from mcp.server.auth.settings import AuthSettings
from mcp.server.mcpserver import Context, MCPServer

certificate, key, trust = sys.argv[1:4]
listener = socket.create_server(("127.0.0.1", 0))
port = listener.getsockname()[1]
resource = f"https://localhost:{port}/mcp"
print(json.dumps({"port": port}), flush=True)
issuer = sys.stdin.readline().strip()


def introspect(token):
    """As a resource server, with credentials of its own."""
    pair = "{}:{}".format(*(urllib.parse.quote_plus(text) for text in ("secret", "s:+/ %")))
    request = urllib.request.Request(
        f"{issuer}/token/introspection",
        data=urllib.parse.urlencode({"token": token}).encode(),
        headers={"Authorization": "Basic " + base64.b64encode(pair.encode()).decode()},
    )
    with urllib.request.urlopen(request, context=ssl.create_default_context(cafile=trust), timeout=10) as answer:
        return json.load(answer)


class Introspection:
    async def verify_token(self, token):
        said = await asyncio.to_thread(introspect, token)
        seen = {"token": hashlib.sha256(token.encode()).hexdigest()[:12], "active": said.get("active", False)}
        print(json.dumps(seen), flush=True)
        if not seen["active"]:
            return None
        return AccessToken(
            token=token,
            client_id=said["client_id"],
            scopes=said.get("scope", "").split(),
            expires_at=said.get("exp"),
            resource=said.get("aud"),
            subject=said.get("sub"),
        )


server = MCPServer(
    "gated",
    token_verifier=Introspection(),
    auth=AuthSettings(
        issuer_url=issuer,
        resource_server_url=resource,
        required_scopes=["mcp:read"],
        validate_token_resource=True,
    ),
)


@server.tool()
def echo(text: str) -> str:
    """Returns the text it was given."""
    return f"gated: {text}"


@server.tool()
async def hold(ms: int) -> str:
    """Says nothing for so long."""
    await asyncio.sleep(ms / 1000)
    return f"held {ms}"


@server.tool()
async def steps(count: int, every_ms: int, ctx: Context) -> str:
    """Reports progress at each of its steps."""
    for step in range(count):
        await ctx.report_progress(step, count)
        await asyncio.sleep(every_ms / 1000)
    return f"{count} steps"


def leave_with_stdin():
    sys.stdin.read()
    os._exit(0)


threading.Thread(target=leave_with_stdin, daemon=True).start()
config = uvicorn.Config(
    server.streamable_http_app(), log_level="warning", ssl_certfile=certificate, ssl_keyfile=key, lifespan="on"
)
asyncio.run(uvicorn.Server(config).serve(sockets=[listener]))
