//! The server that the official suite is run against: everything it asks for, in both eras, made with `rmcp`.
//!
//! What it has stands in `catalog`; here is what it does.

#![expect(deprecated, reason = "sampling, logging and subscriptions are alive in the revisions of 2025")]

mod replies;

use std::{
    collections::{HashMap, HashSet},
    convert::Infallible,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use http::Request;
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use rmcp::{
    ErrorData, RoleServer, ServerHandler,
    model::{
        CallToolRequestParams, CallToolResponse, CancelTaskParams, ClientCapabilities, CompleteRequestParams,
        CompleteResult, CreateTaskResult, GetPromptRequestParams, GetPromptResponse, GetTaskParams,
        GetTaskResult, Implementation, InputResponses, ListPromptsResult, ListResourceTemplatesResult,
        ListResourcesResult, ListToolsResult, LoggingLevel, LoggingMessageNotificationParam,
        PaginatedRequestParams, ReadResourceRequestParams, ReadResourceResponse, ServerCapabilities,
        ServerConfig, SetLevelRequestParams, SubscribeRequestParams, SubscriptionFilter, Tool,
        UnsubscribeRequestParams, UpdateTaskParams,
    },
    service::{RequestContext, SubscriptionContext},
    task_manager::{TaskContext, TaskExit, TaskFuture, TaskManager, TaskOptions},
    transport::streamable_http_server::{
        StreamableHttpServerConfig, StreamableHttpService, session::local::LocalSessionManager,
    },
};
use serde_json::{Value, json};
use tokio::sync::broadcast;

use self::replies::{
    ask_in, ask_model, ask_user, asks, complete, done, ended, internal, listed, name_form, progress,
    required, say, slow, tampered,
};
use super::catalog::{self, question, words};
use crate::{
    Outcome,
    listen::{Answer, Listening},
    seen::{Event, Request as SeenRequest, Seen},
};

/// A running server.
#[derive(Debug)]
pub struct SuiteServer {
    listening: Listening,
    /// What reached it.
    pub seen: Seen,
}

impl SuiteServer {
    /// Over plain HTTP, on a free port of 127.0.0.1.
    ///
    /// # Errors
    /// When no port is free.
    pub fn start() -> Outcome<Self> {
        let everything = Everything::default();
        let config = StreamableHttpServerConfig::default().with_sse_keep_alive(None).with_allowed_origins([
            "http://localhost:*",
            "http://127.0.0.1:*",
            "http://[::1]:*",
        ]);
        let mut sessions = LocalSessionManager::default();
        sessions.session_config.sse_retry = Some(Duration::from_millis(200));
        let service: Service =
            StreamableHttpService::new(move || Ok(everything.clone()), Arc::new(sessions), config);
        let seen = Seen::default();
        let noted = seen.clone();
        let listening =
            Listening::http(None, move |request| answer(service.clone(), noted.clone(), request))?;
        Ok(Self { listening, seen })
    }

    /// Its URL.
    #[must_use]
    pub fn url(&self) -> String {
        format!("http://127.0.0.1:{}/mcp", self.listening.port())
    }
}

type Service = StreamableHttpService<Everything, LocalSessionManager>;

async fn answer(service: Service, seen: Seen, request: Request<Incoming>) -> Answer {
    let (head, body) = request.into_parts();
    let mut noted = SeenRequest::of(&head);
    let body = body.collect().await.map(|body| body.to_bytes()).unwrap_or_default();
    noted.body = body.to_vec();
    let text = String::from_utf8_lossy(&body);
    let resumes = text.contains("\"test_reconnection\"") && head.headers.contains_key("mcp-session-id");
    seen.note(Event::Request(noted));
    let response = service.handle(Request::from_parts(head, Full::new(body))).await;
    let (head, mut body) = response.into_parts();
    if resumes {
        // The priming event, and then the stream ends: the answer comes on the one that resumes it.
        let first = body.frame().await.and_then(Result::ok).and_then(|frame| frame.into_data().ok());
        let body = Full::new(first.unwrap_or_default());
        return Answer::from_parts(head, body.map_err(infallible).boxed_unsync());
    }
    Answer::from_parts(head, body.map_err(infallible).boxed_unsync())
}

fn infallible(never: Infallible) -> std::io::Error {
    match never {}
}

/// A change that listeners hear of.
#[derive(Debug, Clone, Copy)]
enum Change {
    Tools,
    Prompts,
}

/// The server's state: one for all its clients, which is what a stateless revision leaves.
#[derive(Clone)]
struct Everything {
    level: Arc<Mutex<LoggingLevel>>,
    subscribed: Arc<Mutex<HashSet<String>>>,
    /// The `requestState`s given out: whatever else comes back was tampered with.
    states: Arc<Mutex<HashSet<String>>>,
    changes: broadcast::Sender<Change>,
    /// Who was accepted and is about to listen, by the task that serves it: rmcp acknowledges in between, and a client
    /// may cause a change as soon as it reads that.
    accepted: Arc<Mutex<HashMap<tokio::task::Id, broadcast::Receiver<Change>>>>,
    tasks: TaskManager,
}

impl Default for Everything {
    fn default() -> Self {
        Self {
            level: Arc::new(Mutex::new(LoggingLevel::Debug)),
            subscribed: Arc::default(),
            states: Arc::default(),
            changes: broadcast::channel(16).0,
            accepted: Arc::default(),
            tasks: TaskManager::new(),
        }
    }
}

type Context = RequestContext<RoleServer>;

impl ServerHandler for Everything {
    fn get_info(&self) -> ServerConfig {
        let capabilities = ServerCapabilities::builder()
            .enable_prompts()
            .enable_prompts_list_changed()
            .enable_resources()
            .enable_resources_subscribe()
            .enable_tools()
            .enable_tool_list_changed()
            .enable_logging()
            .enable_completions()
            .enable_tasks()
            .build();
        ServerConfig::new(capabilities)
            .with_server_info(Implementation::new("moat-suite-server", env!("CARGO_PKG_VERSION")))
    }

    async fn list_tools(
        &self,
        _page: Option<PaginatedRequestParams>,
        _context: Context,
    ) -> Result<ListToolsResult, ErrorData> {
        listed(json!({"tools": catalog::tools()}))
    }

    fn get_tool(&self, name: &str) -> Option<Tool> {
        let tool = catalog::tools().into_iter().find(|tool| tool["name"] == name)?;
        serde_json::from_value(tool).ok()
    }

    async fn list_prompts(
        &self,
        _page: Option<PaginatedRequestParams>,
        _context: Context,
    ) -> Result<ListPromptsResult, ErrorData> {
        listed(json!({"prompts": catalog::prompts()}))
    }

    async fn list_resources(
        &self,
        _page: Option<PaginatedRequestParams>,
        _context: Context,
    ) -> Result<ListResourcesResult, ErrorData> {
        listed(json!({"resources": catalog::resources()}))
    }

    async fn list_resource_templates(
        &self,
        _page: Option<PaginatedRequestParams>,
        _context: Context,
    ) -> Result<ListResourceTemplatesResult, ErrorData> {
        listed(json!({"resourceTemplates": catalog::templates()}))
    }

    async fn read_resource(
        &self,
        request: ReadResourceRequestParams,
        _context: Context,
    ) -> Result<ReadResourceResponse, ErrorData> {
        let unknown =
            || ErrorData::resource_not_found("Resource not found", Some(json!({"uri": request.uri})));
        Ok(ReadResourceResponse::Complete(complete(catalog::resource(&request.uri).ok_or_else(unknown)?)?))
    }

    async fn subscribe(&self, request: SubscribeRequestParams, _context: Context) -> Result<(), ErrorData> {
        lock(&self.subscribed).insert(request.uri);
        Ok(())
    }

    async fn unsubscribe(
        &self,
        request: UnsubscribeRequestParams,
        _context: Context,
    ) -> Result<(), ErrorData> {
        lock(&self.subscribed).remove(&request.uri);
        Ok(())
    }

    async fn set_level(&self, request: SetLevelRequestParams, _context: Context) -> Result<(), ErrorData> {
        *lock(&self.level) = request.level;
        Ok(())
    }

    async fn complete(
        &self,
        request: CompleteRequestParams,
        _context: Context,
    ) -> Result<CompleteResult, ErrorData> {
        let begun = &request.argument.value;
        let values: Vec<&str> =
            ["paris", "park", "party"].into_iter().filter(|word| word.starts_with(begun.as_str())).collect();
        complete(json!({"completion": {"values": values, "total": values.len(), "hasMore": false}}))
    }

    async fn get_prompt(
        &self,
        request: GetPromptRequestParams,
        _context: Context,
    ) -> Result<GetPromptResponse, ErrorData> {
        let arguments = request.arguments.map_or(Value::Null, Value::Object);
        if request.name == "test_input_required_result_prompt" {
            let context = field(request.input_responses.as_ref(), "user_context", "context");
            return match context.as_ref().and_then(Value::as_str) {
                None => {
                    let asked = question::form("What context should the prompt use?", "context", "string");
                    Ok(GetPromptResponse::InputRequired(asks(json!({"user_context": asked}), None)?))
                }
                Some(context) => {
                    let message = json!({"role": "user", "content": words(context)});
                    Ok(GetPromptResponse::Complete(complete(json!({"messages": [message]}))?))
                }
            };
        }
        let prompt = catalog::prompt(&request.name, &arguments);
        let unknown = || ErrorData::invalid_params(format!("no prompt {}", request.name), None);
        Ok(GetPromptResponse::Complete(complete(prompt.ok_or_else(unknown)?)?))
    }

    async fn call_tool(
        &self,
        request: CallToolRequestParams,
        context: Context,
    ) -> Result<CallToolResponse, ErrorData> {
        let call = Call::of(request);
        if let Some(result) = catalog::plain_tool(&call.name, &call.arguments) {
            return done(result);
        }
        if let Some(form) = catalog::form(&call.name, &call.arguments) {
            return ask_user(&call.name, form, &context).await;
        }
        if let Some(answer) = self.ask(&call, &context) {
            return answer;
        }
        if let Some(answer) = self.task(&call, &context).await {
            return answer;
        }
        match call.name.as_str() {
            "test_tool_with_logging" | "test_logging_tool" => self.log(&context).await,
            "test_tool_with_progress" => progress(&context).await,
            "test_sampling" => ask_model(&call.arguments, &context).await,
            "test_reconnection" => {
                // Long enough for the stream of the request to have ended.
                tokio::time::sleep(Duration::from_millis(100)).await;
                done(json!({"content": [words("the stream was resumed")]}))
            }
            "test_trigger_tool_change" => self.tell(Change::Tools),
            "test_trigger_prompt_change" => self.tell(Change::Prompts),
            other => Err(ErrorData::invalid_params(format!("no tool {other}"), None)),
        }
    }

    fn accepted_subscription_filter(&self, requested: &SubscriptionFilter) -> Option<SubscriptionFilter> {
        if let Some(task) = tokio::task::try_id() {
            lock(&self.accepted).insert(task, self.changes.subscribe());
        }
        Some(requested.clone())
    }

    async fn listen(&self, context: SubscriptionContext) -> Result<(), ErrorData> {
        let accepted = tokio::task::try_id().and_then(|task| lock(&self.accepted).remove(&task));
        let mut changes = accepted
            .ok_or_else(|| ErrorData::internal_error("listens in another task than accepted", None))?;
        loop {
            let change = tokio::select! {
                () = context.cancelled() => return Ok(()),
                change = changes.recv() => change.map_err(internal)?,
            };
            let wanted = context.accepted();
            let sent = match change {
                Change::Tools if wanted.tools_list_changed == Some(true) => {
                    context.sink().notify_tool_list_changed().await
                }
                Change::Prompts if wanted.prompts_list_changed == Some(true) => {
                    context.sink().notify_prompt_list_changed().await
                }
                Change::Tools | Change::Prompts => Ok(()),
            };
            sent.map_err(internal)?;
        }
    }

    async fn get_task(&self, request: GetTaskParams, _context: Context) -> Result<GetTaskResult, ErrorData> {
        Ok(GetTaskResult::new(self.tasks.get_task(&request.task_id)?))
    }

    async fn update_task(&self, request: UpdateTaskParams, _context: Context) -> Result<(), ErrorData> {
        self.tasks.update_task(&request.task_id, request.input_responses)
    }

    async fn cancel_task(&self, request: CancelTaskParams, _context: Context) -> Result<(), ErrorData> {
        self.tasks.cancel_task(&request.task_id)
    }
}

/// A call of a tool, taken apart.
struct Call {
    name: String,
    arguments: Value,
    inputs: Option<InputResponses>,
    state: Option<String>,
}

impl Call {
    fn of(request: CallToolRequestParams) -> Self {
        Self {
            name: request.name.into_owned(),
            arguments: request.arguments.map_or_else(|| json!({}), Value::Object),
            inputs: request.input_responses,
            state: request.request_state,
        }
    }

    /// A field of what the user was asked for under this key.
    fn input(&self, key: &str, name: &str) -> Option<Value> {
        field(self.inputs.as_ref(), key, name)
    }

    fn has(&self, key: &str) -> bool {
        self.inputs.as_ref().is_some_and(|inputs| inputs.get(key).is_some_and(Value::is_object))
    }
}

/// A field of an accepted form.
fn field(inputs: Option<&InputResponses>, key: &str, name: &str) -> Option<Value> {
    let answer = inputs?.get(key)?;
    (answer["action"] == "accept").then(|| answer["content"].get(name).cloned()).flatten()
}

impl Everything {
    /// The tools that ask for input, the revision 2026-07-28's way. `None` for every other tool.
    fn ask(&self, call: &Call, context: &Context) -> Option<Result<CallToolResponse, ErrorData>> {
        Some(match call.name.as_str() {
            "test_input_required_result_elicitation" => match call.input("user_name", "name") {
                Some(Value::String(name)) => say(&format!("Hello, {name}!")),
                _ => required(json!({"user_name": name_form()}), None),
            },
            "test_streaming_elicitation" => match call.input("user_name", "name") {
                Some(_) => say("thank you"),
                None => required(json!({"user_name": name_form()}), None),
            },
            "test_input_required_result_sampling" => {
                let answer = call.inputs.as_ref().and_then(|inputs| inputs.get("capital_question"));
                match answer.map(|answer| &answer["content"]["text"]) {
                    Some(Value::String(text)) => say(text),
                    _ => required(
                        json!({"capital_question": question::model("What is the capital of France?")}),
                        None,
                    ),
                }
            }
            "test_input_required_result_list_roots" => {
                let answer = call.inputs.as_ref().and_then(|inputs| inputs.get("client_roots"));
                match answer.map(|answer| &answer["roots"]) {
                    Some(Value::Array(roots)) => say(&format!("roots: {}", json!(roots))),
                    _ => required(json!({"client_roots": question::roots()}), None),
                }
            }
            "test_input_required_result_request_state" | "test_input_required_result_tampered_state" => {
                match (&call.state, call.has("confirm")) {
                    (None, _) => required(
                        json!({"confirm": question::form("Please confirm", "ok", "boolean")}),
                        Some(self.new_state("confirm")),
                    ),
                    (Some(state), _) if !self.gave(state, "confirm") => tampered(),
                    (Some(_), true) => say("state-ok"),
                    (Some(state), false) => required(
                        json!({"confirm": question::form("Please confirm", "ok", "boolean")}),
                        Some(state.clone()),
                    ),
                }
            }
            "test_input_required_result_multiple_inputs" => match &call.state {
                Some(state) if !self.gave(state, "three") => tampered(),
                Some(_) if ["user_name", "greeting", "client_roots"].iter().all(|key| call.has(key)) => {
                    say("all three are here")
                }
                _ => required(
                    json!({"user_name": name_form(), "greeting": question::model("Generate a greeting"),
                           "client_roots": question::roots()}),
                    Some(self.new_state("three")),
                ),
            },
            "test_input_required_result_multi_round" => match &call.state {
                Some(state) if self.gave(state, "first") && call.has("step1") => required(
                    json!({"step2": question::form("Step 2: What is your favorite color?", "color", "string")}),
                    Some(self.new_state("second")),
                ),
                Some(state) if self.gave(state, "second") && call.has("step2") => say("both rounds are done"),
                Some(state) if !self.gave(state, "first") && !self.gave(state, "second") => tampered(),
                _ => required(
                    json!({"step1": question::form("Step 1: What is your name?", "name", "string")}),
                    Some(self.new_state("first")),
                ),
            },
            "test_input_required_result_capabilities" => {
                let can = context.client_capabilities().unwrap_or_default();
                let mut asked = json!({});
                if can.sampling.is_some() {
                    asked["greeting"] = question::model("Generate a greeting");
                }
                if can.elicitation.is_some() {
                    asked["user_name"] = name_form();
                }
                if call.inputs.is_some() { say("thank you") } else { required(asked, None) }
            }
            "test_missing_capability" => {
                let can = context.client_capabilities().unwrap_or_default();
                if can.sampling.is_some() {
                    say("the client can sample")
                } else {
                    let needed = ClientCapabilities::builder().enable_sampling().build();
                    Err(ErrorData::missing_required_client_capability(needed))
                }
            }
            _ => return None,
        })
    }

    fn new_state(&self, about: &str) -> String {
        let mut states = lock(&self.states);
        let state = format!("{about}-{}-{:x}", states.len(), crate::clock::now());
        states.insert(state.clone());
        state
    }

    fn gave(&self, state: &str, about: &str) -> bool {
        state.starts_with(about) && lock(&self.states).contains(state)
    }

    /// The tools of the extension for tasks. `None` for every other tool.
    async fn task(&self, call: &Call, context: &Context) -> Option<Result<CallToolResponse, ErrorData>> {
        let negotiated = context.client_capabilities().is_some_and(|can| can.supports_tasks());
        let must = matches!(call.name.as_str(), "failing_job" | "test_tool_with_task");
        if must && !negotiated {
            let needed = ClientCapabilities::builder().enable_tasks().build();
            return Some(Err(ErrorData::missing_required_client_capability(needed)));
        }
        let name = call.input("user_name", "name");
        if call.name == "test_tool_with_task" && name.is_none() {
            let state = self.new_state("task");
            return Some(required(json!({"user_name": name_form()}), Some(state)));
        }
        let job: Job = match call.name.as_str() {
            "slow_compute" => {
                let pause = Duration::from_secs_f64(call.arguments["seconds"].as_f64().unwrap_or_default());
                Box::new(move |task| Box::pin(slow(pause, task)))
            }
            "failing_job" => Box::new(|_| {
                Box::pin(async { ended(json!({"content": [words("failed")], "isError": true})) })
            }),
            "protocol_error_job" => Box::new(|_| {
                Box::pin(async { Err(TaskExit::Error(ErrorData::internal_error("as wanted", None))) })
            }),
            "confirm_delete" => Box::new(|task| {
                Box::pin(async move {
                    let asked = question::form("Delete it?", "confirm", "boolean");
                    let answer = ask_in(task.as_ref(), "confirm", asked).await?;
                    ended(json!({"content": [words(&answer.to_string())]}))
                })
            }),
            "multi_input" => Box::new(|task| {
                Box::pin(async move {
                    let first = ask_in(task.as_ref(), "first", question::form("First?", "a", "string"));
                    let second = ask_in(task.as_ref(), "second", question::form("Second?", "b", "string"));
                    let (first, second) = tokio::try_join!(first, second)?;
                    ended(json!({"content": [words(&json!([first, second]).to_string())]}))
                })
            }),
            "test_tool_with_task" => {
                let text = name.as_ref().and_then(Value::as_str).unwrap_or_default().to_owned();
                Box::new(move |_| Box::pin(async move { ended(json!({"content": [words(&text)]})) }))
            }
            _ => return None,
        };
        if negotiated {
            let options = TaskOptions::new().with_ttl_ms(60_000).with_poll_interval_ms(100);
            let task = self.tasks.spawn(options, move |task| job(Some(task)));
            return Some(Ok(CallToolResponse::Task(CreateTaskResult::new(task))));
        }
        Some(match job(None).await {
            Ok(result) => Ok(CallToolResponse::Complete(result)),
            Err(TaskExit::Error(error)) => Err(error),
            Err(TaskExit::Cancelled) => Err(ErrorData::internal_error("cancelled", None)),
        })
    }

    async fn log(&self, context: &Context) -> Result<CallToolResponse, ErrorData> {
        let modern = context.meta.protocol_version().is_some();
        for text in ["Tool execution started", "Tool processing data", "Tool execution completed"] {
            // From 2026-07-28 on a request says itself whether it wants logs.
            if !modern || context.meta.log_level().is_some() {
                let message = LoggingMessageNotificationParam::new(LoggingLevel::Info, json!(text));
                context.peer.notify_logging_message(message).await.map_err(internal)?;
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        say("logged")
    }

    fn tell(&self, change: Change) -> Result<CallToolResponse, ErrorData> {
        let listeners = self.changes.send(change).unwrap_or_default();
        say(&format!("told {listeners}"))
    }
}

/// What a task does; without a task's context where the client knows no tasks.
type Job = Box<dyn FnOnce(Option<TaskContext>) -> TaskFuture + Send>;

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
