"""Makes one long, silent call with the official Python SDK, with its own limits, and prints what came as JSON."""

import asyncio
import json
import sys

from mcp.client.client import Client
from mcp.client.streamable_http import streamable_http_client


async def call(url, seconds):
    async with Client(streamable_http_client(url)) as client:
        result = await client.call_tool("steps", {"count": 2, "every_ms": seconds * 1000})
        print(json.dumps({"text": result.content[0].text}))


asyncio.run(call(sys.argv[1], int(sys.argv[2])))
