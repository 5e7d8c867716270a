//! Who listens hears of a list that a changed policy changes (P37).

use http_body_util::BodyExt;
use test_case::test_case;

use super::*;

const LISTENS: &str = r#"{"jsonrpc":"2.0","id":"l-1","method":"subscriptions/listen","params":{"notifications":{"toolsListChanged":true}}}"#;
const INITIALIZE: &str = r#"{"jsonrpc":"2.0","id":1,"method":"initialize"}"#;

/// A case whose server has three tools and announces changes of these lists; what it sends on a stream is the test's.
async fn case(
    announced: &str,
    bound: &Bound,
) -> (Case, tokio::sync::mpsc::Sender<Result<Bytes, std::io::Error>>) {
    let (sender, body) = fed();
    let stream = std::sync::Mutex::new(Some(body));
    let hello = format!(r#"{{"jsonrpc":"2.0","id":1,"result":{{"capabilities":{announced}}}}}"#);
    let upstream = Upstream::answering(move |got| {
        let says = |method: &str| got.body.windows(method.len()).any(|part| part == method.as_bytes());
        let listens = got.head.method == http::Method::GET || says("subscriptions/listen");
        let (media, body) = match () {
            () if listens => ("text/event-stream", stream.lock().unwrap().take().unwrap()),
            () if says("initialize") => ("application/json", whole(hello.clone())),
            () => ("application/json", whole(tools(&["wipe_board", "list_boards", "get"]))),
        };
        Response::builder().header("content-type", media).body(body).unwrap()
    })
    .await;
    let run = with_policy(&upstream.url(), bound);
    (Case { rig: Rig::new(), run, reached: Arc::default(), upstream }, sender)
}

async fn next(body: &mut crate::pipeline::Body) -> String {
    let frame = within(body.frame()).await.expect("a frame").expect("no loss");
    String::from_utf8(frame.into_data().unwrap().to_vec()).unwrap()
}

fn stricter(bound: &Bound, operation: &str) {
    let other = rules(&format!(
        "mode: enforce\nrules:\n- {{name: o, action: deny, match: {{operation: '{operation}'}}}}\n"
    ));
    bound.suggest(Some(other.state().accepted.clone().unwrap()), None);
}

#[test_case(false, ""; "a get")]
#[test_case(true, r#","params":{"_meta":{"io.modelcontextprotocol/subscriptionId":"l-1"}}"#; "a subscription")]
#[tokio::test]
async fn p37_who_listens_hears_of_another_list(modern: bool, params: &str) {
    let bound = rules(DENY);
    let (case, sender) =
        case(r#"{"tools":{"listChanged":true},"prompts":{"listChanged":true}}"#, &bound).await;
    case.send(post(INITIALIZE)).await;
    case.send(post(LIST)).await;
    let mut request = if modern { post(LISTENS) } else { get() };
    if modern {
        request.headers_mut().insert("mcp-protocol-version", "2026-07-28".parse().unwrap());
    }
    let mut body = case.rig.pipeline.handle(&case.run, request).await.into_body();
    let told = format!(
        "event: message\ndata: {{\"jsonrpc\":\"2.0\",\"method\":\"notifications/tools/list_changed\"{params}}}\n\n"
    );
    // What changes no list is not told; what comes next is the server's own.
    stricter(&bound, "nothing_like_it");
    sender.send(Ok(Bytes::from_static(b": half an ev"))).await.unwrap();
    sender.send(Ok(Bytes::from_static(b"ent\n\n"))).await.unwrap();
    assert_eq!(next(&mut body).await, ": half an event\n\n");
    stricter(&bound, "g*");
    assert_eq!(next(&mut body).await, told);
    // The file is as it was.
    bound.suggest(None, None);
    assert_eq!(next(&mut body).await, told);
    stricter(&bound, "prompts/*");
    if !modern {
        assert_eq!(next(&mut body).await, told.replace("tools", "prompts"));
    }
    sender.send(Ok(Bytes::from_static(b": last\n\n"))).await.unwrap();
    assert_eq!(next(&mut body).await, ": last\n\n", "prompts were not asked for");
}

#[test_case(r#"{"tools":{"listChanged":false}}"#; "not announced")]
#[test_case(r#"{"tools":{}}"#; "nothing said")]
#[test_case("{}"; "no tools")]
#[tokio::test]
async fn p37_no_client_hears_what_its_server_never_says(announced: &str) {
    let bound = rules(DENY);
    let (case, sender) = case(announced, &bound).await;
    case.send(post(INITIALIZE)).await;
    case.send(post(LIST)).await;
    let mut body = case.rig.pipeline.handle(&case.run, get()).await.into_body();
    stricter(&bound, "g*");
    sender.send(Ok(Bytes::from_static(b": own\n\n"))).await.unwrap();
    assert_eq!(next(&mut body).await, ": own\n\n");
}
