//! The client that the official suite tests: connects to the URL it is given and does what its scenario wants.

#![expect(deprecated, reason = "sampling is deprecated in 2026-07-28 and alive in the revisions of 2025")]

use std::{future::Future, time::Duration};

use rmcp::{
    ClientHandler, ClientLifecycleMode, ClientServiceExt, ErrorData, RoleClient,
    model::{
        CallToolRequestParams, ClientCapabilities, ClientConfig, CreateMessageRequestParams,
        CreateMessageResult, ElicitRequestParams, ElicitResult, ElicitationAction, Implementation,
        ProtocolVersion, SamplingMessage, Tool,
    },
    service::RequestContext,
    transport::{StreamableHttpClientTransport, streamable_http_client::StreamableHttpClientTransportConfig},
};
use serde_json::{Map, Value, json};

use super::patient::Patient;
use crate::{Outcome, Trouble};

/// The suite kills a client after 30 s; ours leaves before, and says why.
const PATIENCE: Duration = Duration::from_secs(20);

/// Plays the scenario that the environment names against the server at `url`.
///
/// # Errors
/// When a call fails that the scenario needs, or nothing answers in time.
pub async fn play(url: &str) -> Outcome {
    let read = |name: &str| std::env::var_os(name).unwrap_or_default().to_string_lossy().into_owned();
    let scenario = read("MCP_CONFORMANCE_SCENARIO");
    let modern = read("MCP_CONFORMANCE_PROTOCOL_VERSION") == "2026-07-28";
    let context: Value = serde_json::from_str(&read("MCP_CONFORMANCE_CONTEXT")).unwrap_or_default();
    let playing: std::pin::Pin<Box<dyn Future<Output = Outcome> + '_>> =
        Box::pin(play_scenario(url, &scenario, modern, &context));
    tokio::time::timeout(PATIENCE, playing)
        .await
        .map_err(|_| Trouble::new(format!("{scenario}: not done within {PATIENCE:?}")))?
}

async fn play_scenario(url: &str, scenario: &str, modern: bool, context: &Value) -> Outcome {
    // This scenario's server knows no `server/discover`, whatever its revision.
    let lifecycle = if modern && scenario != "json-schema-ref-no-deref" {
        ClientLifecycleMode::Discover { preferred_versions: vec![ProtocolVersion::V_2026_07_28] }
    } else {
        ClientLifecycleMode::Initialize
    };
    let config = StreamableHttpClientTransportConfig::with_uri(url);
    let transport =
        StreamableHttpClientTransport::with_client(Patient::new(reqwest::Client::default()), config);
    let client = Player { modern }.serve_with_lifecycle(transport, lifecycle).await?;
    let tools = client.list_all_tools().await?;
    let calls = match (scenario, context["toolCalls"].as_array()) {
        ("initialize" | "json-schema-ref-no-deref", _) => Vec::new(),
        ("json-schema-2020-12-preservation", _) => round_trip(&tools),
        (_, Some(wanted)) => wanted.iter().map(wanted_call).collect(),
        (_, None) => tools.iter().map(|tool| with(tool.name.to_string(), arguments_of(tool))).collect(),
    };
    for call in calls {
        // A tool may refuse: the suite judges what was asked.
        let _refused = client.call_tool(call).await;
    }
    if scenario == "http-standard-headers" {
        headers_of_reads(&client).await?;
    }
    client.cancel().await?;
    Ok(())
}

/// The requests besides `tools/call` that carry their name in a header.
async fn headers_of_reads(client: &rmcp::service::RunningService<RoleClient, Player>) -> Outcome {
    use rmcp::model::{GetPromptRequestParams, ReadResourceRequestParams};
    for resource in client.list_all_resources().await? {
        client.read_resource(ReadResourceRequestParams::new(resource.uri.clone())).await?;
    }
    for prompt in client.list_all_prompts().await? {
        client.get_prompt(GetPromptRequestParams::new(prompt.name.clone())).await?;
    }
    Ok(())
}

fn with(name: String, arguments: Map<String, Value>) -> CallToolRequestParams {
    CallToolRequestParams::new(name).with_arguments(arguments)
}

fn wanted_call(wanted: &Value) -> CallToolRequestParams {
    let name = wanted["name"].as_str().unwrap_or_default().to_owned();
    with(name, wanted["arguments"].as_object().cloned().unwrap_or_default())
}

/// The required arguments of a tool, by their types.
fn arguments_of(tool: &Tool) -> Map<String, Value> {
    let schema = Value::Object((*tool.input_schema).clone());
    let required = schema["required"].as_array().into_iter().flatten().filter_map(Value::as_str);
    required
        .map(|name| {
            let value = match schema["properties"][name]["type"].as_str() {
                Some("number" | "integer") => json!(1),
                Some("boolean") => json!(true),
                _ => json!("text"),
            };
            (name.to_owned(), value)
        })
        .collect()
}

/// Hands the first tool's schema to the second one, as it was received.
fn round_trip(tools: &[Tool]) -> Vec<CallToolRequestParams> {
    let rich = tools.iter().find(|tool| tool.name == "json_schema_2020_12_tool");
    let echo = tools.iter().find(|tool| tool.name != "json_schema_2020_12_tool");
    let call = |(rich, echo): (&Tool, &Tool)| {
        let schema = Value::Object((*rich.input_schema).clone());
        with(echo.name.to_string(), Map::from_iter([("schema".to_owned(), schema)]))
    };
    rich.zip(echo).map(call).into_iter().collect()
}

/// The client's own side.
#[derive(Debug, Clone)]
struct Player {
    modern: bool,
}

impl ClientHandler for Player {
    fn get_info(&self) -> ClientConfig {
        let mut capabilities = ClientCapabilities::builder().enable_sampling().enable_elicitation().build();
        // The form's defaults are applied, which a client says with this.
        capabilities.elicitation =
            serde_json::from_value(json!({"form": {"schemaValidation": true, "applyDefaults": true}})).ok();
        let own = Implementation::new("moat-fixture-client", env!("CARGO_PKG_VERSION"));
        let mut config = ClientConfig::new(capabilities, own);
        if !self.modern {
            config.protocol_version = ProtocolVersion::V_2025_11_25;
        }
        config
    }

    async fn create_message(
        &self,
        _question: CreateMessageRequestParams,
        _context: RequestContext<RoleClient>,
    ) -> Result<CreateMessageResult, ErrorData> {
        let answer = SamplingMessage::assistant_text("forty-two");
        Ok(CreateMessageResult::new(answer, "no model at all".to_owned()))
    }

    async fn create_elicitation(
        &self,
        question: ElicitRequestParams,
        _context: RequestContext<RoleClient>,
    ) -> Result<ElicitResult, ErrorData> {
        let question = json!(question);
        let properties = question["requestedSchema"]["properties"].as_object().cloned().unwrap_or_default();
        let defaults: Map<String, Value> = properties
            .into_iter()
            .filter_map(|(name, field)| Some((name, field.get("default")?.clone())))
            .collect();
        Ok(ElicitResult::new(ElicitationAction::Accept).with_content(Value::Object(defaults)))
    }
}
