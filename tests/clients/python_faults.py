"""Calls a tool of each server with the official Python SDK and prints, as JSON, how each call ended and after how long."""

import asyncio
import json
import sys
import time

from mcp.client.client import Client
from mcp.client.streamable_http import streamable_http_client
from mcp.shared._httpx_utils import create_mcp_http_client


async def call(url, headers, tool, patience):
    async with create_mcp_http_client(headers=headers) as http:
        async with Client(streamable_http_client(url, http_client=http)) as client:
            start = time.monotonic()
            try:
                result = await asyncio.wait_for(client.call_tool(tool, {}), patience)
                text = f"result: {result}"
            except asyncio.TimeoutError:
                text = "hangs"
            except Exception as error:
                text = f"error: {error}"
            return {"ms": int((time.monotonic() - start) * 1000), "text": text}


async def main():
    calls, headers, patience = json.loads(sys.argv[1]), json.loads(sys.argv[2]), float(sys.argv[3])
    ended = await asyncio.gather(
        *(call(url, headers, tool, patience) for url, tool in calls), return_exceptions=True
    )
    print(json.dumps([end if isinstance(end, dict) else {"ms": -1, "text": f"failed: {end!r}"} for end in ended]))


asyncio.run(main())
