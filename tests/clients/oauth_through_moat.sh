#!/bin/sh
# oauth_through_moat.sh MOAT CLIENT URL: what a person and an agent do with a server that wants OAuth. The person grants
# (the suite's authorization server approves by itself; the browser is curl), the agent's client runs in a sandbox. When the
# bridge says that a new authorization or more scopes are needed, the person grants again, three times at most.
set -u
moat=$1 client=$2 url=$3
work=$(mktemp -d /tmp/mt-XXXXXXXX)
export MOAT_HOME="$work/h" MOAT_KEYRING_BACKEND=file MOAT_NO_PROMPT=1 MOAT_RUNTIME=process BROWSER="$work/browser"
finish() {
    "$moat" proxy stop >/dev/null 2>&1
    rm -rf "$work"
}
trap finish EXIT
mkdir -p "$work/w/.git"
ln "$client" "$work/w/client" 2>/dev/null || cp "$client" "$work/w/client"
# shellcheck disable=SC2016
printf '#!/bin/sh\nexec curl -sSL -o /dev/null "$1"\n' >"$work/browser"
chmod +x "$work/browser"
printf 'mcp:\n  - name: suite\n    url: %s\n    auth: {grant: "oauth:t", header: Authorization}\n' "$url" >"$work/w/moat.yaml"
cd "$work/w" || exit 1
# What the suite registered beforehand, if anything.
given() { printf '%s' "${MCP_CONFORMANCE_CONTEXT-}" | sed -n "s/.*\"$1\" *: *\"\([^\"]*\)\".*/\1/p"; }
id=$(given client_id) secret=$(given client_secret)
grant() {
    set -- grant oauth t --url "$url" --timeout 10s "$@" \
        --client-metadata-url https://conformance-test.local/client-metadata.json
    [ -n "$id" ] && set -- "$@" --client-id "$id"
    [ -n "$secret" ] && set -- "$@" --client-secret "$secret"
    "$moat" "$@" </dev/null
}
grant || exit 1
for round in 1 2 3; do
    # shellcheck disable=SC2016
    "$moat" run . -e "MCP_CONFORMANCE_SCENARIO=${MCP_CONFORMANCE_SCENARIO-}" \
        -e "MCP_CONFORMANCE_CONTEXT=${MCP_CONFORMANCE_CONTEXT-}" \
        -e "MCP_CONFORMANCE_PROTOCOL_VERSION=${MCP_CONFORMANCE_PROTOCOL_VERSION-}" \
        -- sh -c 'exec ./client suite "$MOAT_RELAY_URL/mcp/suite"'
    code=$?
    scopes=$("$moat" audit --json 2>/dev/null | tr -d '\n' | sed -n 's/.*credential.scope_required[^}]*"scopes": *"\([^"]*\)".*/\1/p')
    rejected=$("$moat" audit --json 2>/dev/null | grep -cE 'credential.(rejected|refresh_failed)')
    if [ -n "$scopes" ] && [ "$round" -lt 3 ]; then
        grant --scopes "$scopes" || exit 1
    elif [ "$rejected" -gt 0 ] && [ "$round" -lt 3 ]; then
        grant || exit 1
    else
        [ -z "$scopes" ] && [ "$rejected" = 0 ] || code=1
        exit "$code"
    fi
done
