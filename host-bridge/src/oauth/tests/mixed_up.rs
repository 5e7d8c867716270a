//! Two authorization servers, one of them hostile: it names what belongs to the other, and gets nothing that does (A12).

use serde_json::{Value, json};

use crate::oauth::{
    client::ClientError,
    discovery::DiscoveryError,
    grant::GrantError,
    revoke::{self, Told},
    testing::{Place, Said, Site, Somebody, compliant, inputs, metadata, name, parameter, resource, tokens},
};

const AS: &str = "/.well-known/oauth-authorization-server";
const PRM: &str = "/.well-known/oauth-protected-resource/mcp";

/// What belongs to the honest server, and to nobody else.
const HONEST: [&str; 4] = ["honest-client", "honest-secret", "honest-access", "honest-refresh"];

async fn honest() -> Site {
    Site::open(|origin, asked| match asked.path.as_str() {
        "/register" => {
            let mut client: Value = serde_json::from_str(&asked.body).unwrap();
            client["client_id"] = "honest-client".into();
            client["client_secret"] = "honest-secret".into();
            client["token_endpoint_auth_method"] = "client_secret_post".into();
            client["registration_client_uri"] = format!("{origin}/register/1").into();
            client["registration_access_token"] = "honest-registration".into();
            Said::json(201, &client)
        }
        "/register/1" => Said::status(204),
        "/token" => Said::json(200, &tokens("honest-access", "honest-refresh")),
        _ => compliant(origin, asked),
    })
    .await
}

/// Nothing that belongs to the honest server reached this one.
fn knows_nothing(site: &Site) {
    for asked in site.asked() {
        let text = asked.everything();
        let known: Vec<&str> = HONEST.into_iter().filter(|secret| text.contains(secret)).collect();
        assert!(known.is_empty(), "{known:?} in {text}");
    }
}

/// A server whose authorization server says of itself what `change` makes of it, told of the honest one.
async fn hostile(honest: &Site, change: impl Fn(&mut Value, &str) + Send + Sync + 'static) -> Site {
    let honest = honest.origin.clone();
    Site::open(move |origin, asked| match asked.path.as_str() {
        AS => {
            let mut document = metadata(origin);
            change(&mut document, &honest);
            Said::json(200, &document)
        }
        _ => compliant(origin, asked),
    })
    .await
}

#[tokio::test]
async fn a12_it_says_that_it_is_the_honest_one() {
    let honest = honest().await;
    let site = hostile(&honest, |document, honest| document["issuer"] = honest.into()).await;
    let refused = Place::new().grant(&inputs(&site), &mut Somebody::agreeing()).await.unwrap_err();
    assert!(matches!(refused, GrantError::Discovery(DiscoveryError::OtherIssuer { .. })), "{refused:?}");
    assert!(honest.asked().is_empty() && site.at("/token").is_empty());
}

#[tokio::test]
async fn a12_people_sign_in_at_the_honest_one_and_the_code_would_go_to_the_other() {
    let honest = honest().await;
    let site = hostile(&honest, |document, honest| {
        document["authorization_endpoint"] = format!("{honest}/authorize").into();
    })
    .await;
    let mut somebody = Somebody::agreeing();
    let refused = Place::new().grant(&inputs(&site), &mut somebody).await.unwrap_err();
    assert_eq!(refused, GrantError::OtherIssuer { said: Some(honest.origin.clone()), explicit: false });
    assert!(somebody.visited[0].as_str().starts_with(&honest.origin), "it is the mix-up that was meant");
    assert!(site.at("/token").is_empty(), "the code was sent: {:?}", site.at("/token"));
}

#[tokio::test]
async fn a12_an_answer_without_the_promised_issuer() {
    let honest = honest().await;
    let mut somebody = Somebody::ending(|url| Some(format!("code=c&state={}", parameter(url, "state")?)));
    let refused = Place::new().grant(&inputs(&honest), &mut somebody).await.unwrap_err();
    assert_eq!(refused, GrantError::OtherIssuer { said: None, explicit: false });
    assert!(honest.at("/token").is_empty());
}

#[tokio::test]
async fn a12_the_resource_s_server_is_another_one_now() {
    let honest = honest().await;
    let place = Place::new();
    place.grant(&inputs(&honest), &mut Somebody::agreeing()).await.unwrap();
    // The same grant, and its server names somebody else from now on.
    let site = hostile(&honest, |document, honest| {
        document["revocation_endpoint"] = format!("{honest}/revoke").into();
    })
    .await;
    let granted = place.grant(&inputs(&site), &mut Somebody::agreeing()).await.unwrap();
    assert_eq!(granted.record.issuer(), site.origin);
    knows_nothing(&site);
    // What the honest server gave ends there: tokens and client.
    let revoked: Vec<_> = honest.at("/revoke").iter().filter_map(|asked| asked.field("token")).collect();
    assert_eq!(revoked, ["honest-refresh", "honest-access"]);
    assert_eq!(honest.at("/register/1")[0].method, http::Method::DELETE);
    let last = place.record().unwrap();
    for key in ["client_id", "client_secret", "refresh_token", "registration_access_token"] {
        assert!(last.text(key).is_none_or(|value| !HONEST.contains(&value)), "{key} stayed");
    }
}

#[tokio::test]
async fn a12_a_client_of_ones_own_is_shown_to_one_issuer() {
    let honest = honest().await;
    let place = Place::new();
    let own = |site: &Site| {
        let mut own = inputs(site);
        own.client_id = Some("honest-client".to_owned());
        own.client_secret = Some(moat_shared::secret::Secret::new("honest-secret".to_owned()));
        own
    };
    place.grant(&own(&honest), &mut Somebody::agreeing()).await.unwrap();
    let before = place.bytes();
    let site = hostile(&honest, |_, _| ()).await;
    let mut somebody = Somebody::agreeing();
    let refused = place.grant(&own(&site), &mut somebody).await.unwrap_err();
    assert!(matches!(refused, GrantError::Client(ClientError::OtherIssuer { .. })), "{refused:?}");
    assert!(refused.remedy(&name(), "", None).contains("moat revoke oauth:mine"));
    assert!(somebody.visited.is_empty() && place.bytes() == before);
    knows_nothing(&site);
}

#[tokio::test]
async fn a12_a_pinned_issuer_is_the_only_one() {
    let honest = honest().await;
    let site = hostile(&honest, |_, _| ()).await;
    let mut pinned = inputs(&site);
    pinned.issuer = Some(honest.origin.clone());
    let granted = Place::new().grant(&pinned, &mut Somebody::agreeing()).await.unwrap();
    assert_eq!(granted.record.issuer(), honest.origin);
    // The server itself sees the token that is for it, and its own authorization server nothing.
    assert!(site.at("/token").is_empty() && site.at("/register").is_empty() && site.at(AS).is_empty());
    assert!(site.asked().iter().all(|asked| !asked.everything().contains("honest-refresh")));
}

#[tokio::test]
async fn a12_an_issuer_that_the_pin_does_not_know() {
    let honest = Site::open(|_, _| Said::status(404)).await;
    let origin = honest.origin.clone();
    // A listed server on another origin says that it is the pinned one.
    let site = Site::open(move |own, asked| match asked.path.as_str() {
        PRM => Said::json(200, &resource(own, &[own])),
        AS => {
            let mut document = metadata(own);
            document["issuer"] = origin.clone().into();
            Said::json(200, &document)
        }
        _ => compliant(own, asked),
    })
    .await;
    let mut pinned = inputs(&site);
    pinned.issuer = Some(honest.origin.clone());
    let refused = Place::new().grant(&pinned, &mut Somebody::agreeing()).await.unwrap_err();
    assert!(matches!(refused, GrantError::Discovery(DiscoveryError::NoMetadata { .. })), "{refused:?}");
    assert!(site.at("/register").is_empty());
}

#[tokio::test]
async fn o2_a_client_is_forgotten_at_its_issuer_s_own_origin() {
    let elsewhere = Site::open(|_, _| Said::status(204)).await;
    let target = format!("{}/register/1", elsewhere.origin);
    let site = Site::open(move |origin, asked| match asked.path.as_str() {
        "/register" => {
            let mut client: Value = serde_json::from_str(&asked.body).unwrap();
            client["client_id"] = "x".into();
            client["registration_client_uri"] = target.clone().into();
            client["registration_access_token"] = "honest-registration".into();
            Said::json(201, &client)
        }
        _ => compliant(origin, asked),
    })
    .await;
    let place = Place::new();
    let granted = place.grant(&inputs(&site), &mut Somebody::agreeing()).await.unwrap();
    assert_eq!(revoke::tell(&place.http, &granted.record).await, Told::Revoked);
    assert!(elsewhere.asked().is_empty(), "{:?}", elsewhere.asked());
}

#[tokio::test]
async fn f17_both_tokens_are_given_back() {
    let honest = honest().await;
    let place = Place::new();
    let granted = place.grant(&inputs(&honest), &mut Somebody::agreeing()).await.unwrap();
    assert_eq!(revoke::tell(&place.http, &granted.record).await, Told::Revoked);
    let told: Vec<_> = honest
        .at("/revoke")
        .iter()
        .map(|asked| {
            json!([asked.field("token"), asked.field("token_type_hint"), asked.field("client_secret")])
        })
        .collect();
    assert_eq!(
        told,
        [
            json!(["honest-refresh", "refresh_token", "honest-secret"]),
            json!(["honest-access", "access_token", "honest-secret"]),
        ]
    );
}
