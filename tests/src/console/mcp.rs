//! A visit to an MCP server with the real client of the crate `rmcp`.

#![expect(deprecated, reason = "sampling is deprecated in 2026-07-28 and alive in the revisions of 2025")]

use std::{collections::BTreeMap, sync::Arc};

use http::{HeaderName, HeaderValue};
use rmcp::{
    ClientHandler, ClientLifecycleMode, ClientServiceExt, ErrorData, RoleClient,
    model::{
        CallToolRequestParams, ClientCapabilities, ClientConfig, CreateMessageRequestParams,
        CreateMessageResult, ElicitRequestParams, ElicitResult, ElicitationAction, Implementation,
        ProtocolVersion, SamplingMessage, ServerNotification, SubscriptionFilter,
    },
    service::{NotificationContext, RequestContext},
    transport::{StreamableHttpClientTransport, streamable_http_client::StreamableHttpClientTransportConfig},
};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use tokio::sync::Notify;

use crate::Outcome;

/// Where to go and what to do there.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Visit {
    /// The server's URL.
    pub url: String,
    /// Headers of every request.
    pub headers: BTreeMap<String, String>,
    /// The revision 2026-07-28, without a session; else `initialize`.
    pub modern: bool,
    /// Tools to call, with their arguments.
    pub calls: Vec<(String, Value)>,
    /// Then wait until the server says that its tools changed, and list them again.
    #[serde(default)]
    pub listen: bool,
}

/// Goes there. The answer is `{"server": .., "tools": [..], "results": [..], "then": [..]}`.
///
/// # Errors
/// When the server cannot be reached or refuses.
pub async fn visit(visit: Visit) -> Outcome<Value> {
    let mut headers = std::collections::HashMap::new();
    for (name, value) in visit.headers {
        headers.insert(HeaderName::try_from(name)?, HeaderValue::try_from(value)?);
    }
    let config = StreamableHttpClientTransportConfig::with_uri(visit.url).custom_headers(headers);
    let transport = StreamableHttpClientTransport::from_config(config);
    let lifecycle = if visit.modern {
        ClientLifecycleMode::Discover { preferred_versions: vec![ProtocolVersion::V_2026_07_28] }
    } else {
        ClientLifecycleMode::Initialize
    };
    let visitor = Visitor::default();
    let changed = Arc::clone(&visitor.changed);
    let client = visitor.serve_with_lifecycle(transport, lifecycle).await?;
    let tools: Vec<String> =
        client.list_all_tools().await?.into_iter().map(|tool| tool.name.to_string()).collect();
    let mut results = Vec::new();
    for (tool, arguments) in visit.calls {
        let mut call = CallToolRequestParams::new(tool);
        call.arguments = arguments.as_object().cloned();
        // A refusal is a result of the visit, not its failure.
        results.push(match client.call_tool(call).await {
            Ok(result) => json!({"result": result}),
            Err(error) => json!({"error": error.to_string()}),
        });
    }
    let mut then: Vec<String> = Vec::new();
    if visit.listen {
        if visit.modern {
            let wanted = SubscriptionFilter::builder().tools_list_changed().build();
            let mut subscription = client.listen(wanted).await?;
            while !matches!(
                subscription.next().await?,
                Some(ServerNotification::ToolListChangedNotification(_))
            ) {}
        } else {
            changed.notified().await;
        }
        then = client.list_all_tools().await?.into_iter().map(|tool| tool.name.to_string()).collect();
    }
    let server = client.peer_info().map(|info| json!(*info));
    client.cancel().await?;
    Ok(json!({"server": server, "tools": tools, "results": results, "then": then}))
}

/// The client's own side: it answers what servers ask.
#[derive(Debug, Clone, Default)]
struct Visitor {
    changed: Arc<Notify>,
}

impl ClientHandler for Visitor {
    fn get_info(&self) -> ClientConfig {
        let capabilities = ClientCapabilities::builder().enable_sampling().enable_elicitation().build();
        ClientConfig::new(capabilities, Implementation::new("moat-fixture-client", env!("CARGO_PKG_VERSION")))
    }

    async fn on_tool_list_changed(&self, _context: NotificationContext<RoleClient>) {
        self.changed.notify_one();
    }

    async fn create_message(
        &self,
        _question: CreateMessageRequestParams,
        _context: RequestContext<RoleClient>,
    ) -> Result<CreateMessageResult, ErrorData> {
        Ok(CreateMessageResult::new(
            SamplingMessage::assistant_text("forty-two"),
            "no model at all".to_owned(),
        ))
    }

    async fn create_elicitation(
        &self,
        _question: ElicitRequestParams,
        _context: RequestContext<RoleClient>,
    ) -> Result<ElicitResult, ErrorData> {
        Ok(ElicitResult::new(ElicitationAction::Accept).with_content(json!({"name": "Ada"})))
    }
}
