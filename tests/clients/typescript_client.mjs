// Visits an MCP server with the official TypeScript SDK: lists its tools, calls echo, prints what came as JSON.
// The SDK's modules lie in the directory that the third argument names.
import { pathToFileURL } from "node:url";

const [url, headers, modules] = process.argv.slice(2);
const sdk = (path) => import(pathToFileURL(`${modules}/@modelcontextprotocol/sdk/dist/esm/client/${path}`).href);
const { Client } = await sdk("index.js");
const { StreamableHTTPClientTransport } = await sdk("streamableHttp.js");

const client = new Client({ name: "typescript-client", version: "1.0.0" });
await client.connect(new StreamableHTTPClientTransport(new URL(url), { requestInit: { headers: JSON.parse(headers) } }));
const { tools } = await client.listTools();
const result = await client.callTool({ name: "echo", arguments: { text: "hello" } });
console.log(JSON.stringify({ tools: tools.map((tool) => tool.name).sort(), text: result.content[0].text }));
await client.close();
