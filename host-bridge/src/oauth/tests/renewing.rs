//! Renewals as the bridge makes them: when, how often, and with what.

use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use jiff::{SignedDuration, Timestamp};
use moat_shared::secret::Secret;
use serde_json::{Value, json};
use test_case::test_case;
use tokio::task::JoinSet;

use crate::{
    credentials::Credential,
    oauth::{
        record::{Record, key},
        refresh::{Class, Outcome, Print},
        renewals::{Renewals, Trouble, renewals},
        testing::{Asked, Place, Said, Site, name, tokens},
    },
};

/// A grant with a record, a token endpoint, and a bridge's renewals.
struct Case {
    place: Place,
    site: Site,
    renewals: Renewals,
    _tasks: JoinSet<()>,
}

/// A record that is `seconds` from its end, as moat writes it.
fn record(site: &Site, seconds: Option<i64>) -> Record {
    let now = Timestamp::now();
    let hosts = ["127.0.0.1".to_owned()].into();
    let mut credential = Credential::new(name(), Secret::new("old-access".to_owned()), hosts, now);
    credential.expires_at = seconds.map(|seconds| now + SignedDuration::from_secs(seconds));
    let mut record = Record::of(credential);
    for (key, value) in [
        (key::TOKEN_SOURCE, "oauth"),
        (key::TOKEN_URL, &format!("{}/token", site.origin)),
        (key::SERVER_URL, site.server().as_str()),
        (key::CLIENT_ID, "me"),
        (key::REFRESH_TOKEN, "old-refresh"),
        (key::RESOURCE, "the-resource"),
        (key::REQUESTED_SCOPE, "a b"),
        (key::GENERATION, "4"),
        (key::REFRESHED_AT, &(now - SignedDuration::from_hours(1)).to_string()),
    ] {
        record.set(key, Some(value));
    }
    record
}

fn spawn(tasks: &mut JoinSet<()>, place: &Place) -> Renewals {
    let (renewals, renewer, _) = renewals(place.http.clone());
    tasks.spawn(renewer.run());
    renewals
}

impl Case {
    async fn new(seconds: Option<i64>, script: impl Fn(&Asked) -> Said + Send + Sync + 'static) -> Self {
        let (place, site) = (Place::new(), Site::open(move |_, asked| script(asked)).await);
        place.store.put(record(&site, seconds).credential()).unwrap();
        let mut tasks = JoinSet::new();
        let renewals = spawn(&mut tasks, &place);
        Self { place, site, renewals, _tasks: tasks }
    }

    async fn before(&self) -> Result<Option<Outcome>, Trouble> {
        let landed = self.renewals.before(&self.place.store, &name()).await;
        landed.map(|landed| landed.map(|landed| landed.outcome))
    }

    async fn after_401(&self, sent: &str) -> Result<Option<Outcome>, Option<Trouble>> {
        let landed = self.renewals.after_401(&self.place.store, &name(), Print::of(sent)).await;
        landed.map(|landed| landed.map(|landed| landed.outcome))
    }

    fn access(&self) -> String {
        self.place.record().unwrap().credential().token.expose().clone()
    }
}

fn renewed(_: &Asked) -> Said {
    Said::json(200, &tokens("new-access", "new-refresh"))
}

fn refused(error: &'static str) -> impl Fn(&Asked) -> Said {
    move |_| Said::json(400, &json!({"error": error}))
}

/// Skips time, but not while a request is under way.
async fn later(time: Duration) {
    tokio::time::pause();
    tokio::time::advance(time).await;
    tokio::time::resume();
}

#[tokio::test]
async fn f11_expired_at_the_start_the_first_request_waits_and_works() {
    let case = Case::new(Some(-5), renewed).await;
    assert_eq!(case.before().await, Ok(Some(Outcome::Renewed)));
    assert_eq!(case.access(), "new-access");
    assert_eq!(case.before().await, Ok(None));
    assert_eq!(case.site.asked().len(), 1);
}

#[tokio::test]
async fn f21_o5_what_a_refresh_sends_and_where_to() {
    let case = Case::new(Some(-5), renewed).await;
    case.before().await.unwrap();
    let asked = case.site.asked();
    // O10: nothing is discovered at run time.
    assert_eq!(case.site.paths(), ["/token"]);
    for (name, value) in [
        ("grant_type", "refresh_token"),
        ("refresh_token", "old-refresh"),
        ("resource", "the-resource"),
        ("scope", "a b"),
        ("client_id", "me"),
    ] {
        assert_eq!(asked[0].field(name).as_deref(), Some(value), "{name}");
    }
    let record = case.place.record().unwrap();
    assert_eq!((record.generation(), record.refresh_token()), (5, Some("new-refresh")));
    assert_eq!(record.text(key::REQUESTED_SCOPE), Some("a b"));
}

#[tokio::test]
async fn a_scope_that_is_refused_is_left_out_once() {
    let case = Case::new(Some(-5), |asked| match asked.field("scope") {
        Some(_) => refused("invalid_scope")(asked),
        None => renewed(asked),
    })
    .await;
    assert_eq!(case.before().await, Ok(Some(Outcome::Renewed)));
    assert_eq!(case.site.asked().len(), 2);
}

// Nobody said how long it lives: it is sent until a server says no.
#[test_case(json!({"access_token": "new-access", "token_type": "Bearer"}); "no expiry")]
#[test_case(json!({"access_token": "new-access", "token_type": "Bearer", "expires_in": 0}); "a13 zero")]
#[tokio::test]
async fn f12_without_an_expiry_only_a_401_renews(answer: Value) {
    let case = Case::new(None, move |_| Said::json(200, &answer)).await;
    assert_eq!(case.before().await, Ok(None));
    assert!(case.site.asked().is_empty());
    assert_eq!(case.after_401("old-access").await, Ok(Some(Outcome::Renewed)));
    // The expiry of before is not kept, and the refresh token is.
    let record = case.place.record().unwrap();
    assert_eq!((record.credential().expires_at, record.refresh_token()), (None, Some("old-refresh")));
    assert_eq!(case.before().await, Ok(None));
    assert_eq!(case.site.asked().len(), 1);
}

#[tokio::test]
async fn f10_twenty_runs_and_three_bridges_make_one_request() {
    let case = Case::new(Some(3600), renewed).await;
    let mut bridges = JoinSet::new();
    let others: Vec<Renewals> = (0..2).map(|_| spawn(&mut bridges, &case.place)).collect();
    let mut runs = JoinSet::new();
    for run in 0..20 {
        let renewals = [&case.renewals, &others[0], &others[1]][run % 3].clone();
        let store = case.place.store.clone();
        runs.spawn(async move { renewals.after_401(&store, &name(), Print::of("old-access")).await });
    }
    while let Some(run) = runs.join_next().await {
        assert!(run.unwrap().is_ok());
    }
    assert_eq!(case.site.asked().len(), 1, "each refused token is worth one refresh");
    // A run that comes late uses what is there.
    assert_eq!(case.after_401("old-access").await, Ok(None));
    assert_eq!(case.site.asked().len(), 1);
}

#[tokio::test]
async fn a8_a_token_that_is_refused_after_its_renewal_is_left_alone() {
    let case = Case::new(Some(3600), renewed).await;
    assert_eq!(case.after_401("old-access").await, Ok(Some(Outcome::Renewed)));
    case.renewals.refused_again(&case.place.store, &name());
    for _ in 0..3 {
        assert_eq!(case.after_401("new-access").await, Err(None));
    }
    assert_eq!(case.site.asked().len(), 1);
    later(Duration::from_secs(61)).await;
    assert!(case.after_401("new-access").await.is_ok());
    assert_eq!(case.site.asked().len(), 2);
}

#[test_case("invalid_grant", Class::InvalidGrant)]
#[test_case("invalid_client", Class::InvalidClient)]
#[test_case("unauthorized_client", Class::UnauthorizedClient)]
#[test_case("unsupported_grant_type", Class::UnsupportedGrantType)]
#[test_case("invalid_target", Class::InvalidTarget)]
#[tokio::test]
async fn k8_o6_what_is_refused_for_good_is_never_sent_again(error: &'static str, class: Class) {
    let case = Case::new(Some(-5), refused(error)).await;
    assert_eq!(case.before().await, Err(Trouble::NeedsGrant));
    let record = case.place.record().unwrap();
    assert_eq!(record.rejected().map(|(_, class)| class), Some(class));
    assert_eq!((record.refresh_token(), case.access().as_str()), (None, "old-access"));
    for _ in 0..3 {
        assert_eq!(case.before().await, Err(Trouble::NeedsGrant));
        later(Duration::from_secs(600)).await;
    }
    assert_eq!(case.site.asked().len(), 1);
}

#[tokio::test]
async fn k8_the_access_token_is_good_until_it_expires() {
    // Beside its use: a renewal is due, and the server says no.
    let case = Case::new(Some(20), refused("invalid_grant")).await;
    assert_eq!(case.before().await, Ok(None));
    let rejected = async {
        while case.place.record().is_none_or(|record| record.rejected().is_none()) {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(Duration::from_secs(10), rejected).await.unwrap();
    assert_eq!(case.before().await, Ok(None), "it still works");
    assert_eq!(case.access(), "old-access");
}

#[tokio::test]
async fn k8_what_a_peer_without_a_lock_wrote_is_adopted() {
    // The Go implementation shares the directory and knows no lock: it was faster.
    let place = Arc::new(Place::new());
    let (for_peer, asked) = (place.store.clone(), Arc::new(AtomicUsize::new(0)));
    let site = Site::open(move |_, _| {
        asked.fetch_add(1, Ordering::SeqCst);
        let mut theirs = Record::of(for_peer.read(&name()).unwrap());
        theirs.set(key::REFRESH_TOKEN, Some("of-the-peer"));
        let mut credential = theirs.credential().clone();
        credential.token = Secret::new("access-of-the-peer".to_owned());
        credential.expires_at = Some(Timestamp::now() + SignedDuration::from_hours(1));
        for_peer.put(&credential).unwrap();
        Said::json(400, &json!({"error": "invalid_grant"}))
    })
    .await;
    place.store.put(record(&site, Some(-5)).credential()).unwrap();
    let mut tasks = JoinSet::new();
    let renewals = spawn(&mut tasks, &place);
    let landed = renewals.before(&place.store, &name()).await.unwrap().unwrap();
    assert_eq!(landed.outcome, Outcome::Adopted);
    let record = place.record().unwrap();
    assert_eq!(record.credential().token.expose(), "access-of-the-peer");
    assert_eq!((record.refresh_token(), record.rejected()), (Some("of-the-peer"), None));
    assert_eq!(site.asked().len(), 1);
}

#[tokio::test]
async fn k8_an_odd_refusal_is_for_good_when_it_comes_again_a_minute_later() {
    let case = Case::new(Some(-5), refused("invalid_request")).await;
    for _ in 0..2 {
        let trouble = case.before().await.unwrap_err();
        assert!(matches!(trouble, Trouble::Unavailable { class: Class::InvalidRequest, .. }), "{trouble:?}");
        later(Duration::from_secs(40)).await;
    }
    assert_eq!(case.before().await, Err(Trouble::NeedsGrant));
    assert_eq!(case.site.asked().len(), 3);
}

#[test_case(503, None)]
#[test_case(429, Some("120"); "as long as the server asks")]
#[test_case(404, None; "no oauth error")]
#[test_case(307, None; "o3 a redirect")]
#[tokio::test]
async fn a6_what_passes_is_waited_for(status: u16, retry_after: Option<&'static str>) {
    let case = Case::new(Some(-5), move |_| match retry_after {
        Some(seconds) => Said::status(status).with("retry-after", seconds),
        None => Said::status(status).with("location", "https://evil.example/token"),
    })
    .await;
    let Err(Trouble::Unavailable { next, .. }) = case.before().await else { panic!("it worked") };
    match retry_after {
        Some(_) => assert_eq!(next.as_secs(), 120),
        None => assert!(next <= Duration::from_secs(2), "{next:?}"),
    }
    // Nothing is asked meanwhile, and the refresh token stays.
    for _ in 0..5 {
        assert!(case.before().await.is_err());
    }
    assert_eq!(case.site.asked().len(), 1);
    assert_eq!(case.place.record().unwrap().refresh_token(), Some("old-refresh"));
    later(next + Duration::from_secs(1)).await;
    assert!(case.before().await.is_err());
    assert_eq!(case.site.asked().len(), 2);
}

#[tokio::test]
async fn a15_a_record_of_the_go_implementation_is_renewed_and_stays_readable_there() {
    let (place, site) = (Place::new(), Site::open(|_, asked| renewed(asked)).await);
    let now = Timestamp::now();
    let mut credential = Credential::new(name(), Secret::new("old-access".to_owned()), [].into(), now);
    credential.expires_at = Some(now - SignedDuration::from_secs(60));
    let mut theirs = Record::of(credential);
    for (key, value) in [
        ("token_source", "oauth"),
        ("token_url", &*format!("{}/token", site.origin)),
        ("client_id", "me"),
        ("client_secret", "its-secret"),
        ("refresh_token", "old-refresh"),
        ("of_a_later_version", "kept"),
    ] {
        theirs.set(key, Some(value));
    }
    place.store.put(theirs.credential()).unwrap();
    let mut tasks = JoinSet::new();
    let renewals = spawn(&mut tasks, &place);
    let landed = renewals.before(&place.store, &name()).await.unwrap().unwrap();
    assert_eq!(landed.outcome, Outcome::Renewed);
    // As Go does it: the secret in the body; no resource or scope that nobody wrote down.
    let asked = &site.asked()[0];
    assert_eq!(asked.field("client_secret").as_deref(), Some("its-secret"));
    assert_eq!((asked.field("resource"), asked.field("scope")), (None, None));
    let record = place.record().unwrap();
    assert_eq!(record.text("of_a_later_version"), Some("kept"));
    assert_eq!(record.refresh_token(), Some("new-refresh"));
    assert_eq!(record.issuer(), site.origin);
}
