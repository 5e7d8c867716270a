//! What the official suite asks a server to have, in the suite's own words: JSON.

use serde_json::{Value, json};

/// The smallest PNG: one red pixel.
pub(super) const PNG: &str =
    "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mP8z8BQDwAEhQGAhKmMIQAAAABJRU5ErkJggg==";
/// The smallest WAV: no sample at all.
pub(super) const WAV: &str = "UklGRiQAAABXQVZFZm10IBAAAAABAAEARKwAAIhYAQACABAAZGF0YQAAAAA=";

/// Tools without arguments.
const BARE: &[(&str, &str)] = &[
    ("test_simple_text", "Returns a text"),
    ("test_image_content", "Returns an image"),
    ("test_audio_content", "Returns a sound"),
    ("test_embedded_resource", "Returns a resource"),
    ("test_multiple_content_types", "Returns a text, an image and a resource"),
    ("test_tool_with_logging", "Logs three times"),
    ("test_logging_tool", "Logs three times, if the request wants logs"),
    ("test_error_handling", "Always fails"),
    ("test_tool_with_progress", "Reports progress three times"),
    ("test_elicitation_sep1034_defaults", "Asks with defaults"),
    ("test_elicitation_sep1330_enums", "Asks with every form of an enum"),
    ("test_reconnection", "Answers on the stream that resumes the one it is called on"),
    ("test_missing_capability", "Needs a client that samples"),
    ("test_streaming_elicitation", "Asks for input on its response stream"),
    ("test_trigger_tool_change", "Says that the list of tools has changed"),
    ("test_trigger_prompt_change", "Says that the list of prompts has changed"),
    ("test_input_required_result_elicitation", "Asks the user"),
    ("test_input_required_result_sampling", "Asks the model"),
    ("test_input_required_result_list_roots", "Asks for the roots"),
    ("test_input_required_result_request_state", "Asks and gives a state to bring back"),
    ("test_input_required_result_multiple_inputs", "Asks for three things at once"),
    ("test_input_required_result_multi_round", "Asks twice, one after the other"),
    ("test_input_required_result_tampered_state", "Refuses a state that it did not give"),
    ("test_input_required_result_capabilities", "Asks only for what the client can do"),
    ("failing_job", "A task that fails"),
    ("protocol_error_job", "A task that ends in an error of the protocol"),
    ("confirm_delete", "A task that asks once"),
    ("multi_input", "A task that asks for two things at once"),
    ("test_tool_with_task", "Asks first, then becomes a task"),
];

/// The tools, always in this order.
pub(super) fn tools() -> Vec<Value> {
    let tool = |name: &str, description: &str, schema: Value| json!({"name": name, "description": description, "inputSchema": schema});
    let with = |properties: Value, required: Value| json!({"type": "object", "properties": properties, "required": required});
    let text = || json!({"type": "string"});
    let bare = BARE.iter().map(|(name, description)| tool(name, description, with(json!({}), json!([]))));
    let others = [
        tool("test_sampling", "Asks the model", with(json!({"prompt": text()}), json!(["prompt"]))),
        tool("test_elicitation", "Asks the user", with(json!({"message": text()}), json!(["message"]))),
        tool("greet", "Greets", with(json!({"name": text()}), json!(["name"]))),
        tool(
            "slow_compute",
            "A task that takes its time",
            with(json!({"seconds": {"type": "number"}}), json!([])),
        ),
        tool(
            "test_parameter_headers",
            "Has a parameter that travels in a header as well",
            with(json!({"region": {"type": "string", "x-mcp-header": "Region"}}), json!([])),
        ),
        tool("json_schema_2020_12_tool", "Has a schema with much of JSON Schema 2020-12", rich_schema()),
    ];
    bare.chain(others).collect()
}

fn rich_schema() -> Value {
    json!({
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "type": "object",
        "$defs": {"address": {
            "$anchor": "addressDef",
            "type": "object",
            "properties": {"street": {"type": "string"}, "city": {"type": "string"}},
        }},
        "properties": {
            "name": {"type": "string"},
            "address": {"$ref": "#/$defs/address"},
            "contactMethod": {"type": "string", "enum": ["phone", "email"]},
            "phone": {"type": "string"},
            "email": {"type": "string"},
        },
        "allOf": [{"anyOf": [{"required": ["phone"]}, {"required": ["email"]}]}],
        "if": {"properties": {"contactMethod": {"const": "phone"}}, "required": ["contactMethod"]},
        "then": {"required": ["phone"]},
        "else": {"required": ["email"]},
        "additionalProperties": false,
    })
}

/// The prompts.
pub(super) fn prompts() -> Value {
    let argument = |name: &str| json!({"name": name, "description": name, "required": true});
    json!([
        {"name": "test_simple_prompt", "description": "No arguments"},
        {"name": "test_prompt_with_arguments", "description": "Two arguments",
         "arguments": [argument("arg1"), argument("arg2")]},
        {"name": "test_prompt_with_embedded_resource", "description": "With a resource",
         "arguments": [argument("resourceUri")]},
        {"name": "test_prompt_with_image", "description": "With an image"},
        {"name": "test_input_required_result_prompt", "description": "Asks the user first"},
    ])
}

/// What a prompt becomes; `None` for one that there is not.
pub(super) fn prompt(name: &str, arguments: &Value) -> Option<Value> {
    let argument = |name: &str| arguments[name].as_str().unwrap_or_default();
    let user = |content: Value| json!({"role": "user", "content": content});
    let messages = match name {
        "test_simple_prompt" => vec![user(words("This is a simple prompt for testing."))],
        "test_prompt_with_arguments" => {
            let (first, second) = (argument("arg1"), argument("arg2"));
            vec![user(words(&format!("Prompt with arguments: arg1='{first}', arg2='{second}'")))]
        }
        "test_prompt_with_embedded_resource" => {
            let uri = argument("resourceUri");
            let resource = embedded(uri, "text/plain", "Embedded resource content for testing.");
            vec![user(resource), user(words("Please process the embedded resource above."))]
        }
        "test_prompt_with_image" => vec![user(image()), user(words("Please analyze the image above."))],
        _ => return None,
    };
    Some(json!({"messages": messages}))
}

/// The resources that can be listed.
pub(super) fn resources() -> Value {
    json!([
        {"uri": "test://static-text", "name": "text", "description": "A text", "mimeType": "text/plain"},
        {"uri": "test://static-binary", "name": "binary", "description": "A pixel", "mimeType": "image/png"},
        {"uri": "test://watched-resource", "name": "watched", "description": "A text", "mimeType": "text/plain"},
    ])
}

/// The templates of resources.
pub(super) fn templates() -> Value {
    let template = "test://template/{id}/data";
    json!([{"uriTemplate": template, "name": "template", "description": "By id", "mimeType": "application/json"}])
}

/// What a resource holds; `None` for one that there is not.
pub(super) fn resource(uri: &str) -> Option<Value> {
    let content = match uri {
        "test://static-text" => {
            let text = "This is the content of the static text resource.";
            json!({"uri": uri, "mimeType": "text/plain", "text": text})
        }
        "test://static-binary" => json!({"uri": uri, "mimeType": "image/png", "blob": PNG}),
        "test://watched-resource" => json!({"uri": uri, "mimeType": "text/plain", "text": "watched"}),
        _ => {
            let id = uri.strip_prefix("test://template/")?.strip_suffix("/data")?;
            let data = json!({"id": id, "templateTest": true, "data": format!("Data for ID: {id}")});
            json!({"uri": uri, "mimeType": "application/json", "text": data.to_string()})
        }
    };
    Some(json!({"contents": [content], "ttlMs": 0, "cacheScope": "private"}))
}

/// A text as content.
pub(super) fn words(text: &str) -> Value {
    json!({"type": "text", "text": text})
}

/// A pixel as content.
pub(super) fn image() -> Value {
    json!({"type": "image", "data": PNG, "mimeType": "image/png"})
}

/// A resource as content.
pub(super) fn embedded(uri: &str, mime: &str, text: &str) -> Value {
    json!({"type": "resource", "resource": {"uri": uri, "mimeType": mime, "text": text}})
}

/// The answer of a tool that needs nobody; `None` for every other.
pub(super) fn plain_tool(name: &str, arguments: &Value) -> Option<Value> {
    let content = match name {
        "test_simple_text" => vec![words("This is a simple text response for testing.")],
        "test_image_content" => vec![image()],
        "test_audio_content" => vec![json!({"type": "audio", "data": WAV, "mimeType": "audio/wav"})],
        "test_embedded_resource" => {
            vec![embedded("test://embedded-resource", "text/plain", "This is an embedded resource content.")]
        }
        "test_multiple_content_types" => {
            let data = r#"{"test":"data","value":123}"#;
            let resource = embedded("test://mixed-content-resource", "application/json", data);
            vec![words("Multiple content types test:"), image(), resource]
        }
        "test_error_handling" => {
            let text = "This tool intentionally returns an error for testing";
            return Some(json!({"content": [words(text)], "isError": true}));
        }
        "greet" => vec![words(&format!("Hello, {}!", arguments["name"].as_str().unwrap_or("you")))],
        "json_schema_2020_12_tool" | "test_parameter_headers" => vec![words(&arguments.to_string())],
        _ => return None,
    };
    Some(json!({"content": content}))
}

/// Questions of a server, as they stand in an `inputRequests`.
pub(super) mod question {
    use super::{Value, json};

    /// A form of one field.
    pub(in super::super) fn form(message: &str, field: &str, kind: &str) -> Value {
        let schema = json!({"type": "object", "properties": {field: {"type": kind}}, "required": [field]});
        json!({"method": "elicitation/create", "params": {"message": message, "requestedSchema": schema}})
    }

    /// A question to the model.
    pub(in super::super) fn model(text: &str) -> Value {
        let message = json!({"role": "user", "content": {"type": "text", "text": text}});
        json!({"method": "sampling/createMessage", "params": {"messages": [message], "maxTokens": 100}})
    }

    /// A question for the roots.
    pub(in super::super) fn roots() -> Value {
        json!({"method": "roots/list", "params": {}})
    }
}

/// The forms of the tools that ask the user in the revisions of 2025.
pub(super) fn form(tool: &str, arguments: &Value) -> Option<Value> {
    let titled = || json!([{"const": "value1", "title": "First Option"}, {"const": "value2", "title": "Second Option"}]);
    let plain = || json!(["option1", "option2", "option3"]);
    let text = |what: &str| json!({"type": "string", "description": what});
    let (message, properties, required) = match tool {
        "test_elicitation" => (
            arguments["message"].as_str().unwrap_or("?").to_owned(),
            json!({"username": text("User's response"), "email": text("User's email address")}),
            json!(["username", "email"]),
        ),
        "test_elicitation_sep1034_defaults" => (
            "Everything has a default".to_owned(),
            json!({
                "name": {"type": "string", "default": "John Doe"},
                "age": {"type": "integer", "default": 30},
                "score": {"type": "number", "default": 95.5},
                "status": {"type": "string", "enum": ["active", "inactive", "pending"], "default": "active"},
                "verified": {"type": "boolean", "default": true},
            }),
            json!([]),
        ),
        "test_elicitation_sep1330_enums" => (
            "Choose".to_owned(),
            json!({
                "untitledSingle": {"type": "string", "enum": plain()},
                "titledSingle": {"type": "string", "oneOf": titled()},
                "legacyEnum": {"type": "string", "enum": ["opt1", "opt2", "opt3"],
                               "enumNames": ["Option One", "Option Two", "Option Three"]},
                "untitledMulti": {"type": "array", "items": {"type": "string", "enum": plain()}},
                "titledMulti": {"type": "array", "items": {"anyOf": titled()}},
            }),
            json!([]),
        ),
        _ => return None,
    };
    let schema = json!({"type": "object", "properties": properties, "required": required});
    Some(json!({"mode": "form", "message": message, "requestedSchema": schema}))
}
