//! Which operation a JSON-RPC message is, by which it is judged.
//!
//! | request | operation | params |
//! |---|---|---|
//! | `tools/call` | the tool's name | `arguments` |
//! | `prompts/get` | `prompts/get:<name>` | `arguments` |
//! | `resources/read`, `resources/subscribe`, `resources/unsubscribe` | `resources/read:<uri>` | `{uri}` |
//! | `subscriptions/listen` | one of those for each URI | `{uri}` |
//! | `completion/complete` | that of what is completed | `{<argument>: value}` |
//! | the life cycle, lists, notifications | not judged | |
//! | any other | the method | its params |

use super::{
    engine::Kind,
    json::{Data, Node, Text},
};

/// A call that is judged.
#[derive(Debug)]
pub(crate) struct Operation {
    pub(crate) kind: Kind,
    pub(crate) name: String,
    pub(crate) params: Params,
}

/// Where what rules see as `params` is.
#[derive(Debug)]
pub(crate) enum Params {
    /// In the message itself, below `params` and this key.
    Own(Option<&'static str>),
    Made(Node),
}

/// A message that must not be sent where there is a policy (P29).
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Malformed {
    #[error("a tools/call without an id")]
    NoId,
    #[error("a name that is missing, or no plain text")]
    Name,
    #[error("a name that can be taken for another")]
    LookAlike,
    #[error("'arguments' that are no object")]
    Arguments,
    #[error("'params' that are no object")]
    Params,
}

/// Lists, and what a list's items are called by; [`crate::pipeline`] filters them.
pub(crate) const LISTS: [(&str, &str, &str); 3] = [
    ("tools/list", "tools", "name"),
    ("prompts/list", "prompts", "name"),
    ("resources/list", "resources", "uri"),
];

/// The operation of a list's item.
pub(crate) fn of_item(list: &str, name: &str) -> (Kind, String) {
    match list {
        "tools" => (Kind::Tool, name.to_owned()),
        "prompts" => (Kind::Method, format!("prompts/get:{name}")),
        _ => (Kind::Method, format!("resources/read:{name}")),
    }
}

/// The operations of one message; none: it is not judged.
pub(crate) fn of_message(message: &Node) -> Result<Vec<Operation>, Malformed> {
    let Some(method) = message.get("method").and_then(Node::text) else { return Ok(Vec::new()) };
    let none = Node::made(Data::Null);
    let params = message.get("params").unwrap_or(&none);
    if !matches!(params.data, Data::Map(_) | Data::Null) {
        return Err(Malformed::Params);
    }
    let one = |name: String, params: Params| Ok(vec![Operation { kind: Kind::Method, name, params }]);
    match method {
        "tools/call" => {
            if !matches!(message.get("id").map(|id| &id.data), Some(Data::Text(_) | Data::Number(_))) {
                return Err(Malformed::NoId);
            }
            let name = name_of(params.get("name"))?;
            Ok(vec![Operation { kind: Kind::Tool, name, params: arguments(params)? }])
        }
        "prompts/get" => one(format!("prompts/get:{}", name_of(params.get("name"))?), arguments(params)?),
        "resources/read" | "resources/subscribe" | "resources/unsubscribe" => {
            let uri = name_of(params.get("uri"))?;
            one(format!("resources/read:{uri}"), of_uri(&uri))
        }
        "subscriptions/listen" => {
            let mut uris = Vec::new();
            for (key, value) in params.entries().iter().filter(|(key, _)| key != "_meta") {
                let _ = key;
                value.strings(&mut |_, text| uris.push(text.original().to_owned()));
            }
            let operation = |uri: &String| Operation {
                kind: Kind::Method,
                name: format!("resources/read:{uri}"),
                params: of_uri(uri),
            };
            Ok(uris.iter().map(operation).collect())
        }
        "completion/complete" => {
            let reference = params.get("ref").unwrap_or(&none);
            let operation = match reference.get("type").and_then(Node::text) {
                Some("ref/prompt") => format!("prompts/get:{}", name_of(reference.get("name"))?),
                Some("ref/resource") => format!("resources/read:{}", name_of(reference.get("uri"))?),
                _ => return Err(Malformed::Name),
            };
            let argument = params.get("argument").unwrap_or(&none);
            let text = |key: &str| argument.get(key).and_then(Node::text).unwrap_or_default().to_owned();
            let value = Node::made(Data::Text(Text::new(text("value"))));
            one(operation, Params::Made(Node::made(Data::Map(vec![(text("name"), value)]))))
        }
        "initialize"
        | "ping"
        | "logging/setLevel"
        | "tools/list"
        | "prompts/list"
        | "resources/list"
        | "resources/templates/list"
        | "server/discover"
        | "tasks/get"
        | "tasks/list"
        | "tasks/result" => Ok(Vec::new()),
        method if method.starts_with("notifications/") => Ok(Vec::new()),
        method => one(method.to_owned(), Params::Own(None)),
    }
}

fn of_uri(uri: &str) -> Params {
    let text = Node::made(Data::Text(Text::new(uri.to_owned())));
    Params::Made(Node::made(Data::Map(vec![("uri".to_owned(), text)])))
}

fn arguments(params: &Node) -> Result<Params, Malformed> {
    match params.get("arguments").map(|arguments| &arguments.data) {
        None | Some(Data::Null) => Ok(Params::Made(Node::made(Data::Map(Vec::new())))),
        Some(Data::Map(_)) => Ok(Params::Own(Some("arguments"))),
        Some(_) => Err(Malformed::Arguments),
    }
}

fn name_of(node: Option<&Node>) -> Result<String, Malformed> {
    let name = node.and_then(Node::text).ok_or(Malformed::Name)?;
    if name.is_empty() || name.trim() != name || name.chars().any(char::is_control) {
        return Err(Malformed::Name);
    }
    if can_be_taken_for_another(name) {
        return Err(Malformed::LookAlike);
    }
    Ok(name.to_owned())
}

/// Characters that some readers drop, fold or normalise into others, and letters of several scripts in one word: what a
/// rule names and what the server takes the name for could be two things.
fn can_be_taken_for_another(name: &str) -> bool {
    let foreign = |c: char| !c.is_ascii();
    let unstable = |c: char| {
        matches!(u32::from(c),
            0x00a0..=0x00bf | 0x02b0..=0x036f | 0x1d00..=0x1dff | 0x2000..=0x2bff | 0x3000..=0x303f
            | 0xd800..=0xf8ff | 0xfb00..=0xfdff | 0xfe00..=0xffff | 0x1d400..=0x1d7ff | 0x1f100..=0x1f1ff
            | 0xe0000..)
            || c.to_lowercase().any(|lower| lower.is_ascii())
            || c.to_uppercase().any(|upper| upper.is_ascii())
    };
    let word_mixes = name
        .split(|c: char| !c.is_alphabetic())
        .any(|word| word.chars().any(foreign) && word.chars().any(|c| c.is_ascii_alphabetic()));
    name.chars().filter(|c| foreign(*c)).any(unstable) || word_mixes
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::policy::json::Numbers;
    use test_case::test_case;

    fn names(body: &str) -> Result<Vec<String>, Malformed> {
        let node = Node::parse(body.as_bytes(), Numbers::Exact).unwrap();
        of_message(&node).map(|operations| operations.into_iter().map(|operation| operation.name).collect())
    }

    #[test_case(r#"{"id":1,"method":"tools/call","params":{"name":"a/b"}}"# => vec!["a/b"]; "a tool")]
    #[test_case(r#"{"id":1,"method":"prompts/get","params":{"name":"p"}}"# => vec!["prompts/get:p"]; "a prompt")]
    #[test_case(r#"{"id":1,"method":"resources/read","params":{"uri":"note://1"}}"# => vec!["resources/read:note://1"]; "a resource")]
    #[test_case(r#"{"id":1,"method":"completion/complete","params":{"ref":{"type":"ref/prompt","name":"p"},"argument":{"name":"a","value":"b"}}}"# => vec!["prompts/get:p"]; "a completion")]
    #[test_case(r#"{"id":1,"method":"subscriptions/listen","params":{"_meta":{"x":"y"},"resources":["a:b","c:d"]}}"# => vec!["resources/read:a:b", "resources/read:c:d"]; "each uri")]
    #[test_case(r#"{"id":1,"method":"acme/run","params":{}}"# => vec!["acme/run"]; "an extension")]
    #[test_case(r#"{"id":1,"method":"tasks/cancel","params":{}}"# => vec!["tasks/cancel"]; "a task")]
    #[test_case(r#"{"id":1,"method":"initialize","params":{}}"# => Vec::<String>::new(); "life cycle")]
    #[test_case(r#"{"method":"notifications/cancelled"}"# => Vec::<String>::new(); "notification")]
    #[test_case(r#"{"id":1,"result":{}}"# => Vec::<String>::new(); "response")]
    fn what_is_judged(body: &str) -> Vec<String> {
        names(body).unwrap()
    }

    #[test_case(r#"{"method":"tools/call","params":{"name":"a"}}"# => Malformed::NoId; "no id")]
    #[test_case(r#"{"id":1,"method":"tools/call","params":{}}"# => Malformed::Name; "no name")]
    #[test_case(r#"{"id":1,"method":"tools/call","params":{"name":""}}"# => Malformed::Name; "empty name")]
    #[test_case(r#"{"id":1,"method":"tools/call","params":{"name":" a"}}"# => Malformed::Name; "blank")]
    #[test_case(r#"{"id":1,"method":"tools/call","params":{"name":"a\u0000"}}"# => Malformed::Name; "control")]
    #[test_case(r#"{"id":1,"method":"tools/call","params":{"name":["a"]}}"# => Malformed::Name; "no string")]
    #[test_case(r#"{"id":1,"method":"tools/call","params":{"name":"a","arguments":[]}}"# => Malformed::Arguments; "arguments")]
    #[test_case(r#"{"id":1,"method":"tools/call","params":["a"]}"# => Malformed::Params; "positional")]
    #[test_case("{\"id\":1,\"method\":\"tools/call\",\"params\":{\"name\":\"d\u{435}lete\"}}" => Malformed::LookAlike; "cyrillic e")]
    #[test_case("{\"id\":1,\"method\":\"tools/call\",\"params\":{\"name\":\"\u{ff44}elete\"}}" => Malformed::LookAlike; "full width")]
    #[test_case("{\"id\":1,\"method\":\"tools/call\",\"params\":{\"name\":\"del\u{200b}ete\"}}" => Malformed::LookAlike; "zero width")]
    #[test_case("{\"id\":1,\"method\":\"tools/call\",\"params\":{\"name\":\"\u{212a}\"}}" => Malformed::LookAlike; "kelvin")]
    fn p29_refused(body: &str) -> Malformed {
        names(body).unwrap_err()
    }

    #[test]
    fn names_in_other_scripts_are_names() {
        assert!(
            !can_be_taken_for_another("поиск_задач")
                && !can_be_taken_for_another("查找")
                && !can_be_taken_for_another("get_é1")
        );
    }
}
