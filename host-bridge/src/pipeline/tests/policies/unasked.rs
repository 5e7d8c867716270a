//! What a server sends unasked is judged by the rules for results, and closed where that cannot be done (P34).

use test_case::test_case;

use super::*;

const SAYS: &str =
    r#"{"jsonrpc":"2.0","method":"notifications/message","params":{"level":"info","data":"evil"}}"#;
const ASKS: &str = r#"{"jsonrpc":"2.0","id":9,"method":"sampling/createMessage","params":{"messages":[{"role":"user","content":{"type":"text","text":"evil"}}]}}"#;
const PROGRESS: &str =
    r#"{"jsonrpc":"2.0","method":"notifications/progress","params":{"progressToken":1,"progress":5}}"#;
/// For a tool that is not the one that is called: nobody knows whose notification it is.
const NO_EVIL: &str = "mode: enforce\nrules:\n- {name: no-evil, action: deny, match: {operation: other, when: \"context.direction == 'response' && params.content.contains('evil')\"}, message: Not that.}\n";
const BROKEN: &str = "mode: enforce\nrules:\n- {name: broken, action: deny, match: {when: \"context.direction == 'response' && params.content > 1\"}}\n";

fn events(messages: &[&str]) -> String {
    messages.iter().map(|message| format!("id: 3\ndata: {message}\n\n")).collect()
}

#[test_case(NO_EVIL, SAYS, "notifications/message"; "a notification that a rule denies")]
#[test_case(NO_EVIL, ASKS, "sampling/createMessage"; "a request of the server that a rule denies")]
#[test_case(BROKEN, SAYS, "notifications/message"; "a rule that cannot be evaluated")]
#[tokio::test]
async fn p34_what_is_denied_is_left_out(policy: &str, message: &str, method: &str) {
    let stream = events(&[message, PROGRESS]);
    for request in [get(), post(call("t", json!({})))] {
        let is_get = request.method() == http::Method::GET;
        let stream = if is_get {
            stream.clone()
        } else {
            stream.clone() + &events(&[r#"{"jsonrpc":"2.0","id":1,"result":{}}"#])
        };
        let mut case = Case::answering(rules(policy), "text/event-stream", stream).await;
        let (_, body) = case.send(request).await;
        assert!(!body.contains("evil") && !body.contains(method), "{body}");
        assert!(body.contains("notifications/progress"), "what holds no text passes: {body}");
        assert!(is_get || body.contains(r#""result":{}"#) != policy.contains("broken"), "{body}");
        let audit = case.audit();
        assert!(audit[0]["type"] == "request.denied" && audit[0]["operation"] == method, "{audit:?}");
        assert_eq!(audit[0]["direction"], "response");
    }
}

#[tokio::test]
async fn p34_the_others_of_a_batch_pass() {
    let batch = format!("[{SAYS}, {}, {ASKS}, {PROGRESS}]", result(&["fine"]));
    let case = Case::answering(rules(NO_EVIL), "application/json", batch).await;
    let (_, body) = case.send(post(call("t", json!({})))).await;
    assert_eq!(body, format!("[{},{PROGRESS}]", result(&["fine"])));
}

#[test_case("mode: audit\n", "policy.would_deny"; "an audit")]
#[test_case("mode: enforce\non_error: open\n", "policy.error"; "an error that opens")]
#[tokio::test]
async fn what_passes_by_choice_is_recorded(choice: &str, event: &str) {
    let policy = if event == "policy.error" { BROKEN } else { NO_EVIL };
    let mut case = Case::answering(
        rules(&policy.replace("mode: enforce\n", choice)),
        "text/event-stream",
        events(&[SAYS]),
    )
    .await;
    let (_, body) = case.send(get()).await;
    assert_eq!(body, events(&[SAYS]));
    assert_eq!(case.audit()[0]["type"], event);
}

#[tokio::test]
async fn a_redaction_of_a_notification_is_recorded() {
    let said = SAYS.replace("evil", "T-12");
    let mut case = Case::answering(rules(RESULTS), "text/event-stream", events(&[&said])).await;
    let (_, body) = case.send(get()).await;
    assert!(body.contains("T-*") && !body.contains("T-12"), "{body}");
    assert_eq!(case.audit()[0]["type"], "policy.redacted");
}

/// What a server says of itself is no result of a call: neither the question nor the answer is judged.
#[test_case("initialize")]
#[test_case("server/discover")]
#[test_case("ping")]
#[tokio::test]
async fn what_a_server_says_of_itself_is_not_judged(method: &str) {
    let answer = r#"{"jsonrpc":"2.0","id":1,"result":{"instructions":"evil"}}"#;
    let case = Case::answering(rules(RESULTS), "application/json", answer).await;
    let asked = format!(r#"{{"jsonrpc":"2.0","id":1,"method":"{method}"}}"#);
    assert_eq!(case.send(post(asked)).await.1, answer);
}
