"""Visits an MCP server with the official Python SDK: lists its tools, calls echo, prints what came as JSON."""

import asyncio
import json
import sys

from mcp.client.client import Client
from mcp.client.streamable_http import streamable_http_client
from mcp.shared._httpx_utils import create_mcp_http_client


async def visit(url, headers):
    async with create_mcp_http_client(headers=headers) as http:
        async with Client(streamable_http_client(url, http_client=http)) as client:
            tools = await client.list_tools()
            result = await client.call_tool("echo", {"text": "hello"})
            names = sorted(tool.name for tool in tools.tools)
            print(json.dumps({"tools": names, "text": result.content[0].text}))


asyncio.run(visit(sys.argv[1], json.loads(sys.argv[2])))
