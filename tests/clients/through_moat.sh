#!/bin/sh
# through_moat.sh MOAT CLIENT DIRECTORY URL: the suite's client in a sandbox of its own, with the suite's server as its
# one MCP server. Its URL is the relay's, never the suite's.
set -eu
moat=$1 client=$2 url=$4
work=$(mktemp -d "$3/run.XXXXXX")
mkdir "$work/.git"
ln "$client" "$work/client" 2>/dev/null || cp "$client" "$work/client"
printf 'mcp:\n  - name: suite\n    url: %s\n' "$url" >"$work/moat.yaml"
# shellcheck disable=SC2016
exec "$moat" run "$work" \
    -e "MCP_CONFORMANCE_SCENARIO=${MCP_CONFORMANCE_SCENARIO-}" \
    -e "MCP_CONFORMANCE_CONTEXT=${MCP_CONFORMANCE_CONTEXT-}" \
    -e "MCP_CONFORMANCE_PROTOCOL_VERSION=${MCP_CONFORMANCE_PROTOCOL_VERSION-}" \
    -- sh -c 'exec ./client suite "$MOAT_RELAY_URL/mcp/suite"'
