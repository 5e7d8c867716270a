//! What a grant sends, stores and shows, from the first request to the record.

use std::{
    sync::atomic::{AtomicUsize, Ordering},
    time::Duration,
};

use serde_json::{Value, json};
use test_case::test_case;
use tokio::time::Instant;

use crate::oauth::{
    grant::{GrantError, Resource},
    testing::{Place, Said, Site, Somebody, compliant, inputs, metadata, parameter, tokens},
};

/// The body of the one registration.
fn registration(site: &Site) -> Value {
    let asked = site.at("/register");
    assert_eq!(asked.len(), 1);
    serde_json::from_str(&asked[0].body).unwrap()
}

#[tokio::test]
async fn f4_f5_what_is_registered_and_asked_for() {
    let (site, place) = (Site::open(compliant).await, Place::new());
    let mut somebody = Somebody::agreeing();
    let granted = place.grant(&inputs(&site), &mut somebody).await.unwrap();
    let resource = format!("{}/mcp", site.origin);
    let redirect = parameter(&somebody.visited[0], "redirect_uri").unwrap();
    assert!(redirect.starts_with("http://127.0.0.1:") && redirect.ends_with("/callback"));
    assert_eq!(
        registration(&site),
        json!({
            "client_name": "moat", "redirect_uris": [redirect], "response_types": ["code"], "scope": "a b",
            "grant_types": ["authorization_code", "refresh_token"], "application_type": "native",
            "token_endpoint_auth_method": "none",
        })
    );
    let visited = &somebody.visited[0];
    assert_eq!(parameter(visited, "resource").as_ref(), Some(&resource));
    assert_eq!(parameter(visited, "client_id").as_deref(), Some("registered"));
    let exchanges = site.at("/token");
    let exchange = &exchanges[0];
    assert_eq!(exchanges.len(), 1);
    for (name, value) in [
        ("grant_type", "authorization_code"),
        ("code", "the-code"),
        ("redirect_uri", &redirect),
        ("resource", &resource),
        ("scope", "a b"),
        ("client_id", "registered"),
    ] {
        assert_eq!(exchange.field(name).as_deref(), Some(value), "{name}");
    }
    assert_eq!(exchange.header("accept"), Some("application/json"));
    assert_eq!(granted.record.credential().hosts, ["127.0.0.1".to_owned()].into());
    assert_eq!(granted.record.generation(), 1);

    // Once more: the same client at the same port, and nothing is registered.
    let mut again = Somebody::agreeing();
    place.grant(&inputs(&site), &mut again).await.unwrap();
    assert_eq!(parameter(&again.visited[0], "redirect_uri").unwrap(), redirect);
    assert_eq!(site.at("/register").len(), 1);
    // Unless it is asked for, or more scopes are needed than it registered.
    let mut anew = inputs(&site);
    anew.new_client = true;
    place.grant(&anew, &mut Somebody::agreeing()).await.unwrap();
    assert_eq!(site.at("/register").len(), 2);
    let mut more = inputs(&site);
    more.scopes = Some("a b c".to_owned());
    place.grant(&more, &mut Somebody::agreeing()).await.unwrap();
    assert_eq!(site.at("/register").len(), 3);
    assert_eq!(place.record().unwrap().generation(), 4);
}

#[tokio::test]
async fn f4_a_client_with_a_secret() {
    let site = Site::open(|origin, asked| match asked.path.as_str() {
        "/.well-known/oauth-authorization-server" => {
            let mut document = metadata(origin);
            document["token_endpoint_auth_methods_supported"] = json!(["client_secret_basic"]);
            Said::json(200, &document)
        }
        "/register" => {
            let mut client: Value = serde_json::from_str(&asked.body).unwrap();
            client["client_id"] = "confidential".into();
            client["client_secret"] = "s:+/ %".into();
            client["client_secret_expires_at"] = 0.into();
            Said::json(201, &client)
        }
        _ => compliant(origin, asked),
    })
    .await;
    let place = Place::new();
    place.grant(&inputs(&site), &mut Somebody::agreeing()).await.unwrap();
    place.grant(&inputs(&site), &mut Somebody::agreeing()).await.unwrap();
    assert_eq!(registration(&site)["token_endpoint_auth_method"], "client_secret_basic");
    let exchanges = site.at("/token");
    assert_eq!(exchanges.len(), 2);
    for exchange in exchanges {
        let basic = exchange.header("authorization").and_then(|value| value.strip_prefix("Basic ")).unwrap();
        let pair = base64::Engine::decode(&base64::prelude::BASE64_STANDARD, basic).unwrap();
        assert_eq!(String::from_utf8(pair).unwrap(), "confidential:s%3A%2B%2F+%25");
        assert_eq!(exchange.field("client_id"), None);
    }
}

#[tokio::test]
async fn f4_a_server_that_knows_no_such_scopes_is_asked_once_more() {
    let site = Site::open(|origin, asked| match asked.path.as_str() {
        "/register" if asked.body.contains("\"scope\"") => {
            Said::json(400, &json!({"error": "invalid_client_metadata"}))
        }
        _ => compliant(origin, asked),
    })
    .await;
    Place::new().grant(&inputs(&site), &mut Somebody::agreeing()).await.unwrap();
    assert_eq!(site.at("/register").len(), 2);
}

#[test_case(Some("offline_access"), true; "listed")]
#[test_case(None, false; "not listed")]
#[tokio::test]
async fn offline_access_is_asked_for_where_it_is_listed(listed: Option<&'static str>, asked_for: bool) {
    let site = Site::open(move |origin, asked| match asked.path.as_str() {
        "/.well-known/oauth-authorization-server" => {
            let mut document = metadata(origin);
            document["scopes_supported"] = listed.into_iter().chain(["z"]).collect();
            Said::json(200, &document)
        }
        _ => compliant(origin, asked),
    })
    .await;
    let mut somebody = Somebody::agreeing();
    Place::new().grant(&inputs(&site), &mut somebody).await.unwrap();
    let scope = parameter(&somebody.visited[0], "scope").unwrap();
    assert_eq!(scope, if asked_for { "a b offline_access" } else { "a b" });
    assert_eq!(parameter(&somebody.visited[0], "prompt").is_some(), asked_for);
}

#[test_case(json!({"access_token": "", "token_type": "bearer"}); "f7 an empty token")]
#[test_case(json!({"ok": true, "authed_user": {"access_token": "x"}}); "f7 a nested token")]
#[test_case(json!({"error": "invalid_grant", "error_description": "no"}); "an error with 200")]
#[test_case(json!({"access_token": "a\nb", "token_type": "bearer"}); "a line break")]
#[tokio::test]
async fn o4_what_cannot_be_used_replaces_nothing(answer: Value) {
    let place = Place::new();
    let good = Site::open(compliant).await;
    place.grant(&inputs(&good), &mut Somebody::agreeing()).await.unwrap();
    let before = place.bytes();
    let site = Site::open(move |origin, asked| match asked.path.as_str() {
        "/token" => Said::json(200, &answer),
        _ => compliant(origin, asked),
    })
    .await;
    let failed = place.grant(&inputs(&site), &mut Somebody::agreeing()).await.unwrap_err();
    assert!(matches!(failed, GrantError::Exchange { .. }), "{failed:?}");
    assert_eq!(place.bytes(), before);
}

/// A server that answers the new token like this.
async fn says(status: u16) -> Site {
    Site::open(move |origin, asked| match (asked.path.as_str(), asked.header("authorization")) {
        ("/mcp", Some(_)) => Said::status(status),
        _ => compliant(origin, asked),
    })
    .await
}

#[tokio::test]
async fn a_token_that_the_server_refuses_is_not_stored() {
    let place = Place::new();
    let good = Site::open(compliant).await;
    place.grant(&inputs(&good), &mut Somebody::agreeing()).await.unwrap();
    let before = place.bytes();
    let site = says(401).await;
    let failed = place.grant(&inputs(&site), &mut Somebody::agreeing()).await.unwrap_err();
    assert_eq!(failed.to_string(), "127.0.0.1 does not accept the new token");
    assert!(failed.remedy(&crate::oauth::testing::name(), "", None).contains("--no-verify"));
    assert_eq!(place.bytes(), before);
    // It was shown to the server that it is for.
    let shown: Vec<String> = site
        .asked()
        .into_iter()
        .filter(|asked| asked.header("authorization").is_some_and(|value| value.contains("access-1")))
        .map(|asked| asked.path)
        .collect();
    assert_eq!(shown, ["/mcp"]);

    let mut unasked = inputs(&site);
    unasked.verify = false;
    let granted = place.grant(&unasked, &mut Somebody::agreeing()).await.unwrap();
    assert_eq!(granted.warning, None);
    assert_ne!(place.bytes(), before);
}

#[test_case(403)]
#[test_case(503)]
#[tokio::test]
async fn a_server_that_cannot_say_is_no_reason_to_lose_a_token(status: u16) {
    let (site, place) = (says(status).await, Place::new());
    let granted = place.grant(&inputs(&site), &mut Somebody::agreeing()).await.unwrap();
    assert_eq!(granted.warning, Some(format!("127.0.0.1 answered {status} to the new token")));
    assert!(place.record().is_some());
}

#[tokio::test]
async fn o5_a_resource_is_sent_as_it_was_written() {
    // A URL type would add a slash, and lower the host's letters.
    let written = |origin: &str| origin.replace("http://", "HTTP://");
    let site = Site::open(move |origin, asked| match asked.path.as_str() {
        "/.well-known/oauth-protected-resource/mcp" => {
            Said::json(200, &json!({"resource": written(origin), "authorization_servers": [origin]}))
        }
        _ => compliant(origin, asked),
    })
    .await;
    let (place, mut somebody) = (Place::new(), Somebody::agreeing());
    let granted = place.grant(&inputs(&site), &mut somebody).await.unwrap();
    let wanted = Some(written(&site.origin));
    assert_eq!(parameter(&somebody.visited[0], "resource"), wanted);
    assert_eq!(site.at("/token")[0].field("resource"), wanted);
    assert_eq!(granted.record.text("resource"), wanted.as_deref());
    let mut none = inputs(&site);
    none.resource = Resource::None;
    let mut somebody = Somebody::agreeing();
    place.grant(&none, &mut somebody).await.unwrap();
    assert_eq!(parameter(&somebody.visited[0], "resource"), None);
    assert_eq!(site.at("/token")[1].field("resource"), None);
}

#[tokio::test]
async fn f19_the_port_is_the_one_that_was_let_through() {
    let free = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let (site, place, mut somebody) = (Site::open(compliant).await, Place::new(), Somebody::agreeing());
    let mut inputs = inputs(&site);
    inputs.redirect_port = Some(free);
    place.grant(&inputs, &mut somebody).await.unwrap();
    let redirect = parameter(&somebody.visited[0], "redirect_uri").unwrap();
    assert_eq!(redirect, format!("http://127.0.0.1:{free}/callback"));
    // Somebody else has it: said, and nothing is asked of anybody.
    let _taken = std::net::TcpListener::bind(("127.0.0.1", free)).unwrap();
    let failed = place.grant(&inputs, &mut Somebody::agreeing()).await.unwrap_err();
    assert!(matches!(failed, GrantError::Listener(_)), "{failed:?}");
}

#[tokio::test]
async fn f20_a_server_of_this_machine_over_plain_http() {
    let (site, place) = (Site::open(compliant).await, Place::new());
    let granted = place.grant(&inputs(&site), &mut Somebody::agreeing()).await.unwrap();
    assert!(site.origin.starts_with("http://127.0.0.1:"));
    assert_eq!(granted.record.credential().token.expose(), "access-1");
    assert_eq!(granted.record.refresh_token(), Some("refresh-1"));
}

#[tokio::test]
async fn o9_what_a_server_says_is_cut_and_its_body_stays_there() {
    let site = Site::open(|origin, asked| match asked.path.as_str() {
        "/token" => Said::json(
            400,
            &json!({"error": "invalid\u{1b}[31m_grant", "error_description": "x".repeat(5000), "m": "SECRET-MARKER"}),
        ),
        _ => compliant(origin, asked),
    })
    .await;
    let failed = Place::new().grant(&inputs(&site), &mut Somebody::agreeing()).await.unwrap_err();
    let text = format!("{failed} {failed:?}");
    assert!(!text.contains("SECRET-MARKER") && !text.contains('\u{1b}') && text.len() < 1000, "{text}");
}

#[tokio::test]
async fn a1_a_document_and_a_client_of_ones_own() {
    let site = Site::open(|origin, asked| match asked.path.as_str() {
        "/.well-known/oauth-authorization-server" => {
            let mut document = metadata(origin);
            document["client_id_metadata_document_supported"] = true.into();
            Said::json(200, &document)
        }
        "/token" => Said::json(200, &tokens("t", "r")),
        _ => compliant(origin, asked),
    })
    .await;
    let place = Place::new();
    let mut by_document = inputs(&site);
    by_document.client_metadata_url = Some("https://example.com/moat.json".to_owned());
    let mut own = by_document.clone();
    own.client_id = Some("of-my-own".to_owned());
    for (inputs, id) in [(by_document, "https://example.com/moat.json"), (own, "of-my-own")] {
        let mut somebody = Somebody::agreeing();
        place.grant(&inputs, &mut somebody).await.unwrap();
        assert_eq!(parameter(&somebody.visited[0], "client_id").as_deref(), Some(id));
        assert_eq!(site.at("/token").last().unwrap().field("client_id").as_deref(), Some(id));
    }
    assert!(site.at("/register").is_empty());
}

#[test_case(Duration::from_secs(60), "access-1"; "and then the tokens come")]
#[test_case(Duration::from_secs(4), "the code was not entered in time"; "or the person's patience ends")]
#[tokio::test]
async fn a10_a_device_is_asked_for_slowly(patience: Duration, outcome: &str) {
    let polls = AtomicUsize::new(0);
    let site = Site::open(move |origin, asked| match asked.path.as_str() {
        "/.well-known/oauth-authorization-server" => {
            let mut document = metadata(origin);
            document["device_authorization_endpoint"] = format!("{origin}/device").into();
            Said::json(200, &document)
        }
        "/device" => Said::json(
            200,
            &json!({"device_code": "d", "user_code": "ABCD", "verification_uri": format!("{origin}/enter"), "interval": 1}),
        ),
        "/token" => match polls.fetch_add(1, Ordering::SeqCst) {
            0 => Said::json(400, &json!({"error": "authorization_pending"})),
            1 => Said::json(400, &json!({"error": "slow_down"})),
            _ => compliant(origin, asked),
        },
        _ => compliant(origin, asked),
    })
    .await;
    let (place, mut somebody) = (Place::new(), Somebody::agreeing());
    let mut inputs = inputs(&site);
    (inputs.device, inputs.timeout) = (true, patience);
    let started = Instant::now();
    match place.grant(&inputs, &mut somebody).await {
        Ok(granted) => {
            assert_eq!(granted.record.credential().token.expose(), outcome);
            assert!(started.elapsed() >= Duration::from_secs(8), "slow_down adds five seconds");
        }
        Err(error) => {
            assert!(error.to_string().ends_with(outcome), "{error}");
            assert_eq!(site.at("/token").len(), 2);
        }
    }
    assert!(
        somebody.told.iter().any(|text| text.contains("/enter") && text.contains("enter the code: ABCD"))
    );
    let resource = format!("{}/mcp", site.origin);
    for asked in site.at("/device").iter().chain(&site.at("/token")) {
        assert_eq!(asked.field("resource").as_ref(), Some(&resource));
    }
    assert!(registration(&site)["grant_types"].to_string().contains("device_code"));
}
