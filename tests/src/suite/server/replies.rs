//! What the tools do, and the results of all requests, made of the JSON that the suite prescribes.

use std::time::Duration;

use rmcp::{
    ErrorData,
    model::{
        CallToolResponse, CallToolResult, CreateMessageRequestParams, ElicitRequestParams, InputRequest,
        InputRequiredResult, ProgressNotificationParam, SamplingMessage,
    },
    task_manager::{TaskContext, TaskExit},
};
use serde::de::DeserializeOwned;
use serde_json::{Value, json};

use super::{
    super::catalog::{question, words},
    Context,
};

pub(super) async fn slow(pause: Duration, task: Option<TaskContext>) -> Result<CallToolResult, TaskExit> {
    let cancelled = async {
        match &task {
            None => std::future::pending().await,
            Some(task) => task.cancelled().await,
        }
    };
    tokio::select! {
        () = cancelled => Err(TaskExit::Cancelled),
        () = tokio::time::sleep(pause) => ended(json!({"content": [words("computed")]})),
    }
}

pub(super) async fn ask_in(task: Option<&TaskContext>, key: &str, asked: Value) -> Result<Value, TaskExit> {
    let Some(task) = task else {
        return Err(TaskExit::Error(ErrorData::invalid_request("asks, and so has to be a task", None)));
    };
    let asked: InputRequest = made(asked).map_err(TaskExit::Error)?;
    task.request_input(key, asked).await
}

pub(super) fn ended(result: Value) -> Result<CallToolResult, TaskExit> {
    complete(result).map_err(TaskExit::Error)
}

pub(super) async fn progress(context: &Context) -> Result<CallToolResponse, ErrorData> {
    for percent in [0.0, 50.0, 100.0] {
        if let Some(token) = context.meta.get_progress_token() {
            let progress = ProgressNotificationParam::new(token, percent).with_total(100.0);
            context.peer.notify_progress(progress).await.map_err(internal)?;
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    say("progressed")
}

pub(super) async fn ask_model(arguments: &Value, context: &Context) -> Result<CallToolResponse, ErrorData> {
    let prompt = arguments["prompt"].as_str().unwrap_or_default();
    let question = CreateMessageRequestParams::new(vec![SamplingMessage::user_text(prompt)], 100);
    let answer = context.peer.create_message(question).await.map_err(internal)?;
    let text = answer.message.content.first().and_then(|content| content.as_text());
    say(&format!("LLM response: {}", text.map_or("none", |text| text.text.as_str())))
}

pub(super) async fn ask_user(
    tool: &str,
    form: Value,
    context: &Context,
) -> Result<CallToolResponse, ErrorData> {
    let asked: ElicitRequestParams = made(form)?;
    let answer = context.peer.create_elicitation(asked).await.map_err(internal)?;
    let what = if tool == "test_elicitation" { "User response" } else { "Elicitation completed" };
    let (action, content) = (json!(answer.action), json!(answer.content));
    say(&format!("{what}: action={}, content={content}", action.as_str().unwrap_or_default()))
}

pub(super) fn name_form() -> Value {
    question::form("What is your name?", "name", "string")
}

pub(super) fn say(text: &str) -> Result<CallToolResponse, ErrorData> {
    done(json!({"content": [words(text)]}))
}

pub(super) fn done(result: Value) -> Result<CallToolResponse, ErrorData> {
    Ok(CallToolResponse::Complete(complete(result)?))
}

pub(super) fn required(asked: Value, state: Option<String>) -> Result<CallToolResponse, ErrorData> {
    Ok(CallToolResponse::InputRequired(asks(asked, state)?))
}

pub(super) fn asks(asked: Value, state: Option<String>) -> Result<InputRequiredResult, ErrorData> {
    let mut result = json!({"resultType": "input_required", "inputRequests": asked});
    if let Some(state) = state {
        result["requestState"] = json!(state);
    }
    made(result)
}

pub(super) fn tampered() -> Result<CallToolResponse, ErrorData> {
    Err(ErrorData::invalid_params("this requestState is not one of ours", None))
}

/// A page of a list, with what 2026-07-28 wants said about caching.
pub(super) fn listed<T: DeserializeOwned>(mut page: Value) -> Result<T, ErrorData> {
    page["ttlMs"] = json!(0);
    page["cacheScope"] = json!("private");
    complete(page)
}

/// A result that is one already; rmcp takes the word away again for revisions that do not know it.
pub(super) fn complete<T: DeserializeOwned>(mut result: Value) -> Result<T, ErrorData> {
    result["resultType"] = json!("complete");
    made(result)
}

/// A type of rmcp from the JSON that the suite prescribes.
pub(super) fn made<T: DeserializeOwned>(value: Value) -> Result<T, ErrorData> {
    serde_json::from_value(value).map_err(internal)
}

pub(super) fn internal(error: impl std::fmt::Display) -> ErrorData {
    ErrorData::internal_error(error.to_string(), None)
}
