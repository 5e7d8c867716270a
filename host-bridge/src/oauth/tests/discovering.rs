//! What is believed of a server's words about who signs people in for it, and what is never asked.

use serde_json::{Value, json};
use test_case::test_case;

use crate::oauth::{
    discovery::DiscoveryError,
    grant::GrantError,
    testing::{Place, Said, Site, Somebody, compliant, inputs, metadata, resource},
};

const AS: &str = "/.well-known/oauth-authorization-server";
const PRM: &str = "/.well-known/oauth-protected-resource/mcp";

/// Grants at the site, and says why that failed.
async fn refused(site: &Site) -> GrantError {
    let (place, mut somebody) = (Place::new(), Somebody::agreeing());
    let refused = place.grant(&inputs(site), &mut somebody).await.unwrap_err();
    assert!(somebody.visited.is_empty(), "nobody was sent to {:?}", somebody.visited);
    assert!(place.bytes().is_none());
    refused
}

#[tokio::test]
async fn o1_nothing_is_guessed() {
    // Everything that could be guessed is there and works; no document says so.
    let site = Site::open(|origin, asked| match asked.path.as_str() {
        "/mcp" => Said::status(401).with("www-authenticate", "Bearer"),
        "/authorize" | "/token" | "/register" => compliant(origin, asked),
        _ => Said::status(404),
    })
    .await;
    let why = refused(&site).await;
    assert_eq!(why, GrantError::Discovery(DiscoveryError::NoMetadata { issuer: site.origin.clone() }));
    let other: Vec<String> = site
        .paths()
        .into_iter()
        .filter(|path| path != "/mcp" && !path.starts_with("/.well-known/"))
        .collect();
    assert!(other.is_empty(), "guessed: {other:?}");
}

#[tokio::test]
async fn d1_a_server_that_wants_nothing() {
    let site = Site::open(|_, asked| match asked.path.as_str() {
        "/mcp" => Said::json(200, &json!({"jsonrpc": "2.0", "id": 1, "result": {}})),
        _ => Said::status(404),
    })
    .await;
    let why = refused(&site).await;
    assert_eq!(why, GrantError::Discovery(DiscoveryError::NotWanted { status: 200 }));
    assert!(why.remedy(&crate::oauth::testing::name(), "", None).contains("moat grant mcp"));
}

// Wherever a server leads to another host, that host hears nothing: no client, no code, no token.
#[test_case("/mcp", 307; "the probe")]
#[test_case(PRM, 302; "resource metadata")]
#[test_case(AS, 301; "metadata of the authorization server")]
#[test_case("/register", 307; "registration")]
#[test_case("/token", 307; "the exchange")]
#[tokio::test]
async fn o3_f9_a_redirect_leads_nobody_away(path: &'static str, status: u16) {
    let elsewhere = Site::open(compliant).await;
    let target = format!("{}{path}", elsewhere.origin);
    let site = Site::open(move |origin, asked| match asked.path.as_str() {
        asked if asked == path => Said::status(status).with("location", target.clone()),
        _ => compliant(origin, asked),
    })
    .await;
    let place = Place::new();
    let granted = place.grant(&inputs(&site), &mut Somebody::agreeing()).await;
    assert!(elsewhere.asked().is_empty(), "{path}: {:?}", elsewhere.asked());
    // A probe that is redirected says nothing, and the documents do.
    assert_eq!(granted.is_ok(), path == "/mcp", "{granted:?}");
}

#[test_case(2 => true; "two hops on one host")]
#[test_case(3 => false; "three")]
#[tokio::test]
async fn o3_hops(hops: u32) -> bool {
    let site = Site::open(move |origin, asked| {
        let hop = asked.path.strip_prefix("/hop/").and_then(|at| at.parse().ok());
        match hop.or_else(|| (asked.path == AS).then_some(0)) {
            Some(at) if at < hops => Said::status(302).with("location", format!("/hop/{}", at + 1)),
            Some(_) => Said::json(200, &metadata(origin)),
            None => compliant(origin, asked),
        }
    })
    .await;
    Place::new().grant(&inputs(&site), &mut Somebody::agreeing()).await.is_ok()
}

#[tokio::test]
async fn f1_what_a_challenge_says_counts_alone() {
    let site = Site::open(|origin, asked| match asked.path.as_str() {
        "/mcp" if asked.header("authorization").is_none() => Said::status(401).with(
            "www-authenticate",
            format!("Bearer resource_metadata=\"{origin}/elsewhere\", scope=\"x y\""),
        ),
        "/elsewhere" => Said::json(200, &resource(origin, &[origin])),
        PRM => Said::json(200, &resource(origin, &["https://evil.example"])),
        _ => compliant(origin, asked),
    })
    .await;
    let mut somebody = Somebody::agreeing();
    let granted = Place::new().grant(&inputs(&site), &mut somebody).await.unwrap();
    assert_eq!(granted.record.text("requested_scope"), Some("x y"));
    assert!(site.at(PRM).is_empty());
}

#[tokio::test]
async fn f1_what_a_challenge_names_must_be_there() {
    let site = Site::open(|origin, asked| match asked.path.as_str() {
        "/mcp" => {
            Said::status(401).with("www-authenticate", format!("Bearer resource_metadata=\"{origin}/gone\""))
        }
        _ => compliant(origin, asked),
    })
    .await;
    assert!(matches!(
        refused(&site).await,
        GrantError::Discovery(DiscoveryError::Status { status: 404, .. })
    ));
    assert_eq!(site.paths(), ["/mcp", "/gone"]);
}

#[test_case("/t", &["/.well-known/oauth-authorization-server/t", "/.well-known/openid-configuration/t",
    "/t/.well-known/openid-configuration"]; "a path")]
#[test_case("/", &[AS, "/.well-known/openid-configuration"]; "a slash at the end")]
#[test_case("", &[AS, "/.well-known/openid-configuration"]; "the origin")]
#[tokio::test]
async fn f2_where_metadata_is_looked_for(path: &'static str, places: &[&str]) {
    for at in 0..places.len() {
        let right = places[at].to_owned();
        let site = Site::open(move |origin, asked| match asked.path.as_str() {
            PRM => Said::json(200, &resource(origin, &[&format!("{origin}{path}")])),
            place if place == right => {
                let mut document = metadata(origin);
                document["issuer"] = format!("{origin}{path}").into();
                Said::json(200, &document)
            }
            place if place.starts_with("/.well-known/o") || place.starts_with("/t/") => Said::status(404),
            _ => compliant(origin, asked),
        })
        .await;
        let mut somebody = Somebody::ending(move |url| {
            let issuer = format!("{}{path}", url.origin().ascii_serialization());
            Some(format!("code=c&iss={issuer}&state={}", crate::oauth::testing::parameter(url, "state")?))
        });
        let granted = Place::new().grant(&inputs(&site), &mut somebody).await.unwrap();
        assert_eq!(granted.record.issuer(), format!("{}{path}", site.origin));
        let looked: Vec<String> = site
            .paths()
            .into_iter()
            .filter(|path| path.contains("oauth-authorization-server") || path.contains("openid"))
            .collect();
        assert_eq!(looked, places[..=at]);
    }
}

fn without(key: &'static str) -> impl Fn(&mut Value) {
    move |document| drop(document.as_object_mut().unwrap().remove(key))
}

fn with(key: &'static str, value: &'static str) -> impl Fn(&mut Value) {
    move |document| document[key] = serde_json::from_str(value).unwrap()
}

#[test_case(with("issuer", r#""https://as.example""#) => "says that it is of \"https://as.example\""; "o7 another issuer")]
#[test_case(without("issuer") => "says that it is of \"\""; "no issuer")]
#[test_case(without("code_challenge_methods_supported") => "does not support PKCE with S256"; "o7 no word of pkce")]
#[test_case(with("code_challenge_methods_supported", r#"["plain"]"#) => "does not support PKCE with S256"; "o7 plain pkce")]
#[test_case(with("response_types_supported", r#"["token"]"#) => "does not give codes"; "no codes")]
#[test_case(without("token_endpoint") => "lacks 'token_endpoint'"; "o1 no token endpoint")]
#[test_case(without("authorization_endpoint") => "lacks 'authorization_endpoint'"; "o1 no authorization endpoint")]
#[test_case(with("token_endpoint", r#""http://10.0.0.1/token""#) => "must use HTTPS"; "o11 plain http")]
#[test_case(with("token_endpoint", r#""https://10.0.0.1/token""#) => "is at an address that is not allowed"; "o12 a private address")]
#[test_case(with("registration_endpoint", r#""https://169.254.169.254/""#) => "is at an address that is not allowed"; "o13 a metadata service")]
#[test_case(with("authorization_endpoint", r#""javascript:alert(1)""#) => "is not a URL that OAuth may use"; "a script")]
#[tokio::test]
async fn f3_metadata_is_checked(change: impl Fn(&mut Value) + Send + Sync + 'static) -> String {
    let site = Site::open(move |origin, asked| match asked.path.as_str() {
        AS => {
            let mut document = metadata(origin);
            change(&mut document);
            Said::json(200, &document)
        }
        _ => compliant(origin, asked),
    })
    .await;
    let why = refused(&site).await.to_string();
    assert!(site.at("/register").is_empty() && site.at("/token").is_empty());
    let words = [
        "says that it is of \"https://as.example\"",
        "says that it is of \"\"",
        "does not support PKCE with S256",
        "does not give codes",
        "lacks 'token_endpoint'",
        "lacks 'authorization_endpoint'",
        "must use HTTPS",
        "is at an address that is not allowed",
        "is not a URL that OAuth may use",
    ];
    words.into_iter().find(|words| why.contains(words)).unwrap_or(&why).to_owned()
}

#[test_case("/.well-known/oauth-protected-resource/mcp"; "of the resource")]
#[test_case(AS; "of the authorization server")]
#[tokio::test]
async fn d4_a_later_place_does_not_win_because_the_first_hiccuped(path: &'static str) {
    let site = Site::open(move |origin, asked| match asked.path.as_str() {
        asked if asked == path => Said::status(503),
        "/mcp" => Said::status(401).with("www-authenticate", "Bearer"),
        _ => compliant(origin, asked),
    })
    .await;
    assert!(matches!(
        refused(&site).await,
        GrantError::Discovery(DiscoveryError::Status { status: 503, .. })
    ));
    assert_eq!(site.paths().last().map(String::as_str), Some(path));
}

#[tokio::test]
async fn o15_a_maze_ends() {
    let site = Site::open(|_, asked| match asked.path.strip_suffix("--") {
        _ if asked.path == "/mcp" => Said::status(404),
        None => Said::status(302).with("location", format!("{}-", asked.path)),
        Some(_) => Said::status(404),
    })
    .await;
    assert_eq!(refused(&site).await, GrantError::Discovery(DiscoveryError::TooMany));
    assert_eq!(site.asked().len(), 12);
}

#[tokio::test]
async fn a11_of_a_thousand_authorization_servers_few_are_looked_at() {
    let many = |origin: &str| -> Vec<String> { (0..1000).map(|at| format!("{origin}/{at}")).collect() };
    let site = Site::open(move |origin, asked| match asked.path.as_str() {
        PRM => {
            let many = many(origin);
            Said::json(200, &resource(origin, &many.iter().map(String::as_str).collect::<Vec<_>>()))
        }
        path if path.contains("well-known") => Said::status(404),
        _ => compliant(origin, asked),
    })
    .await;
    refused(&site).await;
    assert!(site.asked().len() <= 12, "{:?}", site.paths());
}

#[tokio::test]
async fn o16_nothing_is_added_to_a_request_for_metadata() {
    const KNOWN: [&str; 5] = ["host", "accept", "user-agent", "connection", "mcp-protocol-version"];
    let site = Site::open(|origin, asked| match asked.path.as_str() {
        "/mcp" => compliant(origin, asked),
        _ => compliant(origin, asked).with("set-cookie", "a=b"),
    })
    .await;
    Place::new().grant(&inputs(&site), &mut Somebody::agreeing()).await.unwrap();
    let mut seen = 0;
    for asked in site.asked().iter().filter(|asked| asked.path.starts_with("/.well-known/")) {
        seen += 1;
        let other: Vec<&str> =
            asked.headers.keys().map(http::HeaderName::as_str).filter(|name| !KNOWN.contains(name)).collect();
        assert!(other.is_empty(), "{}: {other:?}", asked.path);
    }
    assert_eq!(seen, 2);
    assert!(site.asked().iter().all(|asked| asked.header("cookie").is_none()));
}
