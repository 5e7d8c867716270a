// Visits a legacy HTTP+SSE server with the official TypeScript SDK: calls echo, prints what came as JSON.
// The SDK's modules lie in the directory that the second argument names.
import { pathToFileURL } from "node:url";

const [url, modules] = process.argv.slice(2);
const sdk = (path) => import(pathToFileURL(`${modules}/@modelcontextprotocol/sdk/dist/esm/client/${path}`).href);
const { Client } = await sdk("index.js");
const { SSEClientTransport } = await sdk("sse.js");

const client = new Client({ name: "typescript-client", version: "1.0.0" });
await client.connect(new SSEClientTransport(new URL(url)));
const result = await client.callTool({ name: "echo", arguments: { message: "hello" } });
console.log(JSON.stringify({ text: result.content[0].text }));
await client.close();
