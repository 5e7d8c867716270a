//! A fake model: it thinks nothing, but speaks as much of three vendors' APIs as their agents need to be told to call tools.
//!
//! A prompt that holds `CALL a,b.add,c` is answered with one call of the tool `echo` of each server in turn, or of the tool
//! that is named, and, once all results are back, with a text that quotes them. What was asked is noted, one line each with
//! the names of the tools that the model was offered, and a path that no agent has used before is a 404 that the test
//! will see.

use std::{
    fs::File,
    io::Write,
    path::Path,
    sync::{Arc, Mutex, PoisonError},
};

use bytes::Bytes;
use http::{HeaderValue, Method, Request, Response, StatusCode, header};
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use serde_json::{Value, json};

use crate::{
    Outcome, clock,
    listen::{Answer, Listening},
};

/// In front of the servers' names in a prompt.
const CALL: &str = "CALL ";

/// A running one.
#[derive(Debug)]
pub struct Model {
    _listening: Listening,
}

/// What the model says next.
enum Turn {
    /// Call this server's tool.
    Call { server: String, tool: String, number: usize },
    /// It is over.
    Say(String),
}

impl Model {
    /// On this port of 127.0.0.1, with its notes in a file.
    ///
    /// # Errors
    /// When the port is taken or the file cannot be written.
    pub fn start(port: u16, notes: &Path) -> Outcome<Self> {
        let notes = Arc::new(Mutex::new(File::create(notes)?));
        let listening = Listening::http_at(port, None, move |request| answer(Arc::clone(&notes), request))?;
        Ok(Self { _listening: listening })
    }
}

async fn answer(notes: Arc<Mutex<File>>, request: Request<Incoming>) -> Answer {
    let (head, body) = request.into_parts();
    let path = head.uri.path().to_owned();
    let body = body.collect().await.map(|body| body.to_bytes()).unwrap_or_default();
    let asked: Value = serde_json::from_slice(&body).unwrap_or_default();
    let answer = match (&head.method, path.as_str()) {
        (&Method::HEAD, _) => Some(text(StatusCode::OK, "text/plain", String::new())),
        (_, path) if path.ends_with("/count_tokens") => Some(json_of(&json!({"input_tokens": 1}))),
        (_, path) if path.ends_with("/v1/messages") => Some(anthropic(&asked)),
        (_, path) if path.ends_with("/responses") => Some(openai(&asked)),
        (_, path) if path.ends_with(":streamGenerateContent") => Some(gemini(&asked, true)),
        (_, path) if path.ends_with(":generateContent") => Some(gemini(&asked, false)),
        _ => None,
    };
    let known = answer.is_some();
    let mut offered = Vec::new();
    names(&asked["tools"], "", &mut offered);
    let note = json!({"at": clock::now(), "method": head.method.as_str(), "path": path, "known": known, "tools": offered});
    let mut notes = notes.lock().unwrap_or_else(PoisonError::into_inner);
    // Without its notes the test fails anyway.
    let _unwritten = writeln!(notes, "{note}");
    answer.unwrap_or_else(|| {
        text(StatusCode::NOT_FOUND, "application/json", "{\"error\":\"no such path\"}".into())
    })
}

/// What comes next, by the prompt and the results that are there.
fn turn(prompt: &str, results: &[String]) -> Turn {
    let wanted = prompt.split(CALL).nth(1).unwrap_or_default();
    let wanted =
        wanted.split(|c: char| !c.is_ascii_alphanumeric() && !",.".contains(c)).next().unwrap_or_default();
    let servers: Vec<&str> = wanted.split(',').filter(|name| !name.is_empty()).collect();
    match servers.get(results.len()) {
        Some(called) => {
            let (server, tool) = called.split_once('.').unwrap_or((called, "echo"));
            Turn::Call { server: server.to_owned(), tool: tool.to_owned(), number: results.len() }
        }
        None => Turn::Say(format!("The tools said: {}", results.join(" | "))),
    }
}

fn arguments(server: &str, tool: &str) -> Value {
    if tool == "add" { json!({"a": 1, "b": 2}) } else { json!({"text": format!("hello {server}")}) }
}

/// Every `name` in what an agent offers, below the names around it: vendors nest them differently.
fn names(tools: &Value, around: &str, into: &mut Vec<String>) {
    match tools {
        Value::Array(values) => values.iter().for_each(|value| names(value, around, into)),
        Value::Object(map) => {
            let own = map.get("name").and_then(Value::as_str).map(|name| format!("{around}{name}"));
            let inner = own.as_ref().map_or_else(|| around.to_owned(), |name| format!("{name}."));
            into.extend(own);
            map.values().for_each(|value| names(value, &inner, into));
        }
        _ => {}
    }
}

/// Every text in a value, one after the other.
fn texts(value: &Value) -> String {
    match value {
        Value::String(text) => text.clone(),
        Value::Array(values) => values.iter().map(texts).collect::<Vec<_>>().join(" "),
        Value::Object(map) => map.values().map(texts).collect::<Vec<_>>().join(" "),
        _ => String::new(),
    }
}

fn array(value: &Value) -> &[Value] {
    value.as_array().map_or(&[], Vec::as_slice)
}

/// Anthropic Messages.
fn anthropic(asked: &Value) -> Answer {
    let blocks: Vec<&Value> = array(&asked["messages"]).iter().flat_map(|m| array(&m["content"])).collect();
    let results: Vec<String> =
        blocks.iter().filter(|b| b["type"] == "tool_result").map(|b| texts(&b["content"])).collect();
    let prompt = texts(&asked["messages"]);
    // What is not about tools (a title, a summary) gets a word.
    let next =
        if array(&asked["tools"]).is_empty() { Turn::Say("fine".into()) } else { turn(&prompt, &results) };
    let (block, reason) = match next {
        Turn::Call { server, tool, number } => {
            let (name, id) = (format!("mcp__{server}__{tool}"), format!("toolu_{number}"));
            (
                json!({"type": "tool_use", "id": id, "name": name, "input": arguments(&server, &tool)}),
                "tool_use",
            )
        }
        Turn::Say(text) => (json!({"type": "text", "text": text}), "end_turn"),
    };
    let usage = json!({"input_tokens": 1, "output_tokens": 1});
    let mut message = json!({"id": "msg_1", "type": "message", "role": "assistant", "model": asked["model"],
        "content": [], "stop_reason": null, "stop_sequence": null, "usage": usage});
    if asked["stream"] != true {
        message["content"] = json!([block]);
        message["stop_reason"] = json!(reason);
        return json_of(&message);
    }
    let (empty, delta) = match block["type"].as_str() {
        Some("text") => {
            (json!({"type": "text", "text": ""}), json!({"type": "text_delta", "text": block["text"]}))
        }
        _ => (
            json!({"type": "tool_use", "id": block["id"], "name": block["name"], "input": {}}),
            json!({"type": "input_json_delta", "partial_json": block["input"].to_string()}),
        ),
    };
    events(&[
        json!({"type": "message_start", "message": message}),
        json!({"type": "content_block_start", "index": 0, "content_block": empty}),
        json!({"type": "content_block_delta", "index": 0, "delta": delta}),
        json!({"type": "content_block_stop", "index": 0}),
        json!({"type": "message_delta", "delta": {"stop_reason": reason, "stop_sequence": null}, "usage": usage}),
        json!({"type": "message_stop"}),
    ])
}

/// OpenAI Responses. MCP tools come in namespaces, and the call names its own.
fn openai(asked: &Value) -> Answer {
    let input = array(&asked["input"]);
    let results: Vec<String> =
        input.iter().filter(|i| i["type"] == "function_call_output").map(|i| texts(&i["output"])).collect();
    let item = match turn(&texts(&asked["input"]), &results) {
        Turn::Call { server, tool, number } => json!({
            "type": "function_call", "id": format!("fc_{number}"), "call_id": format!("call_{number}"),
            "name": tool, "namespace": format!("mcp__{server}"), "arguments": arguments(&server, &tool).to_string()
        }),
        Turn::Say(text) => json!({"type": "message", "role": "assistant", "id": "msg_1",
            "content": [{"type": "output_text", "text": text}]}),
    };
    let usage = json!({"input_tokens": 1, "input_tokens_details": null, "output_tokens": 1,
        "output_tokens_details": null, "total_tokens": 2});
    events(&[
        json!({"type": "response.created", "response": {"id": "resp_1"}}),
        json!({"type": "response.output_item.done", "output_index": 0, "item": item}),
        json!({"type": "response.completed", "response": {"id": "resp_1", "usage": usage}}),
    ])
}

/// Gemini generateContent.
fn gemini(asked: &Value, streamed: bool) -> Answer {
    let parts: Vec<&Value> = array(&asked["contents"]).iter().flat_map(|c| array(&c["parts"])).collect();
    let results: Vec<String> = parts
        .iter()
        .filter(|p| p["functionResponse"].is_object())
        .map(|p| texts(&p["functionResponse"]["response"]))
        .collect();
    let next = if array(&asked["tools"]).is_empty() {
        Turn::Say("fine".into())
    } else {
        turn(&texts(&asked["contents"]), &results)
    };
    let part = match next {
        Turn::Call { server, tool, .. } => {
            json!({"functionCall": {"name": format!("mcp_{server}_{tool}"), "args": arguments(&server, &tool)}})
        }
        Turn::Say(text) => json!({"text": text}),
    };
    let said = json!({
        "candidates": [{"content": {"role": "model", "parts": [part]}, "finishReason": "STOP", "index": 0}],
        "usageMetadata": {"promptTokenCount": 1, "candidatesTokenCount": 1, "totalTokenCount": 2}
    });
    if streamed {
        text(StatusCode::OK, "text/event-stream", format!("data: {said}\n\n"))
    } else {
        json_of(&said)
    }
}

fn events(events: &[Value]) -> Answer {
    let lines = events
        .iter()
        .map(|event| format!("event: {}\ndata: {event}\n\n", event["type"].as_str().unwrap_or_default()));
    text(StatusCode::OK, "text/event-stream", lines.collect())
}

fn json_of(value: &Value) -> Answer {
    text(StatusCode::OK, "application/json", value.to_string())
}

fn text(status: StatusCode, kind: &'static str, text: String) -> Answer {
    let body = Full::new(Bytes::from(text)).map_err(|never| match never {});
    let mut answer = Response::new(body.boxed_unsync());
    *answer.status_mut() = status;
    answer.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static(kind));
    answer
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_call_after_the_other_and_then_a_text() {
        let prompt = "please CALL vault,local.add now";
        let results = ["one".to_owned(), "two".to_owned()];
        let called = |results: &[String]| match turn(prompt, results) {
            Turn::Call { server, tool, number } => format!("{server} {tool} {number}"),
            Turn::Say(text) => text,
        };
        assert_eq!(called(&[]), "vault echo 0");
        assert_eq!(called(&results[..1]), "local add 1");
        assert_eq!(called(&results), "The tools said: one | two");
    }
}
