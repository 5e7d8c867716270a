"""Makes one long call with the official Python SDK, with its own limits, and prints what came as JSON.

The call begins with an event, and then nothing comes for as long as it takes: a server may keep its answer's head to
itself until it has something to say, and no relay can make up for that.
"""

import asyncio
import json
import sys

from mcp.client.client import Client
from mcp.client.streamable_http import streamable_http_client


async def heard(progress, total, message):
    del progress, total, message


async def call(url, seconds):
    async with Client(streamable_http_client(url)) as client:
        arguments = {"count": 2, "every_ms": seconds * 1000}
        result = await client.call_tool("steps", arguments, progress_callback=heard)
        print(json.dumps({"text": result.content[0].text}))


asyncio.run(call(sys.argv[1], int(sys.argv[2])))
