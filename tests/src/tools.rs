//! The MCP server of the tests and the demo, made with the crate `rmcp`: sessions for the revisions of 2025, stateless
//! for 2026-07-28.

#![expect(deprecated, reason = "sampling is deprecated in 2026-07-28 and alive in the revisions of 2025")]

use std::{sync::Arc, time::Duration};

use rmcp::{
    ErrorData, Peer, RoleServer, ServerHandler, ServiceExt,
    handler::server::{router::tool::ToolRouter, wrapper::Parameters},
    model::{
        CreateMessageRequestParams, ElicitRequestParams, Implementation, ProgressNotificationParam,
        RequestMetaObject, SamplingMessage, ServerCapabilities, ServerConfig,
    },
    schemars::{self, JsonSchema},
    tool, tool_handler, tool_router,
    transport::streamable_http_server::{
        StreamableHttpServerConfig, StreamableHttpService, session::local::LocalSessionManager,
    },
};
use serde::Deserialize;

/// The tools.
#[derive(Debug, Clone)]
pub struct Tools {
    name: String,
    tool_router: ToolRouter<Self>,
}

/// The service that [`crate::upstream::Upstream`] serves.
pub type Service = StreamableHttpService<Tools, LocalSessionManager>;

/// A service with a server of this name.
#[must_use]
pub fn service(name: &str) -> Service {
    serving(name, LocalSessionManager::default(), StreamableHttpServerConfig::default())
}

/// The same without the empty event at the beginning of each stream (SEP-1699): Gemini CLI 0.61 takes its empty data for a
/// message and gives the server up, with or without moat.
#[must_use]
pub fn unprimed(name: &str) -> Service {
    let mut sessions = LocalSessionManager::default();
    sessions.session_config.sse_retry = None;
    serving(name, sessions, StreamableHttpServerConfig::default().with_sse_retry(None))
}

fn serving(name: &str, mut sessions: LocalSessionManager, config: StreamableHttpServerConfig) -> Service {
    let tools = Tools { name: name.to_owned(), tool_router: Tools::tool_router() };
    let config = config.with_sse_keep_alive(None).with_max_request_body_bytes(128 << 20);
    // By itself it ends a session in which nothing is said for five minutes, also while a call runs.
    sessions.session_config.keep_alive = None;
    StreamableHttpService::new(move || Ok(tools.clone()), Arc::new(sessions), config)
}

/// The same server on stdin and stdout, until stdin ends: what an agent starts itself.
///
/// # Errors
/// When the client does not speak MCP.
pub async fn on_stdio(name: &str) -> crate::Outcome {
    let tools = Tools { name: name.to_owned(), tool_router: Tools::tool_router() };
    let serving = tools.serve(rmcp::transport::stdio()).await;
    let serving = serving.map_err(|error| crate::Trouble::new(error.to_string()))?;
    serving.waiting().await.map(drop).map_err(|error| crate::Trouble::new(error.to_string()))
}

#[derive(Debug, Deserialize, JsonSchema)]
struct Text {
    text: String,
}

#[derive(Debug, Deserialize, JsonSchema)]
struct Sum {
    a: i64,
    b: i64,
}

#[derive(Debug, Deserialize, JsonSchema)]
struct Steps {
    count: u32,
    every_ms: u64,
}

#[derive(Debug, Deserialize, JsonSchema)]
struct Size {
    bytes: usize,
}

#[tool_handler(router = self.tool_router)]
impl ServerHandler for Tools {
    fn get_info(&self) -> ServerConfig {
        ServerConfig::new(ServerCapabilities::builder().enable_tools().build())
            .with_server_info(Implementation::new(self.name.clone(), env!("CARGO_PKG_VERSION")))
    }
}

#[tool_router]
impl Tools {
    #[tool(description = "Returns the text it was given")]
    async fn echo(&self, Parameters(Text { text }): Parameters<Text>) -> String {
        format!("{}: {text}", self.name)
    }

    #[tool(description = "Adds two numbers")]
    async fn add(&self, Parameters(Sum { a, b }): Parameters<Sum>) -> String {
        a.saturating_add(b).to_string()
    }

    #[tool(description = "Takes count steps, one every every_ms, and reports progress at each")]
    async fn steps(
        &self,
        Parameters(Steps { count, every_ms }): Parameters<Steps>,
        meta: RequestMetaObject,
        client: Peer<RoleServer>,
    ) -> Result<String, ErrorData> {
        let mut ticks = tokio::time::interval(Duration::from_millis(every_ms.max(1)));
        for step in 0..count {
            ticks.tick().await;
            if let Some(token) = meta.get_progress_token() {
                let progress =
                    ProgressNotificationParam::new(token, f64::from(step)).with_total(f64::from(count));
                client.notify_progress(progress).await.map_err(internal)?;
            }
        }
        Ok(format!("{count} steps"))
    }

    #[tool(description = "Returns a text of so many bytes")]
    async fn big(&self, Parameters(Size { bytes }): Parameters<Size>) -> String {
        "m".repeat(bytes.min(128 << 20))
    }

    #[tool(description = "Asks the client's model for an answer")]
    async fn ask_model(
        &self,
        Parameters(Text { text }): Parameters<Text>,
        client: Peer<RoleServer>,
    ) -> Result<String, ErrorData> {
        let question = CreateMessageRequestParams::new(vec![SamplingMessage::user_text(text)], 16);
        let answer = client.create_message(question).await.map_err(internal)?;
        Ok(format!("the model said {:?}", answer.message.content.first()))
    }

    #[tool(description = "Asks the client's user for a name")]
    async fn ask_user(
        &self,
        Parameters(Text { text }): Parameters<Text>,
        client: Peer<RoleServer>,
    ) -> Result<String, ErrorData> {
        let schema = serde_json::json!({"type": "object", "properties": {"name": {"type": "string"}}});
        let question = ElicitRequestParams::FormElicitationParams {
            meta: None,
            message: text,
            requested_schema: serde_json::from_value(schema).map_err(internal)?,
        };
        let answer = client.create_elicitation(question).await.map_err(internal)?;
        Ok(format!("the user said {:?}", answer.content))
    }
}

fn internal(error: impl std::fmt::Display) -> ErrorData {
    ErrorData::internal_error(error.to_string(), None)
}
