//! Nothing on the other side is ours: npm's `oidc-provider` gives the tokens, and a server of the official Python SDK asks
//! it about each of them, with its own TLS. Refresh tokens rotate, and one that comes twice ends its family.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::{Duration, Instant},
};

use moat_tests::{
    Outcome,
    authorization::{AuthorizationServer, Gate},
    console::{Task, mcp::Visit},
    foreign::Foreign,
    inside::Inside,
    rig::Rig,
    trouble::ensure,
};
use serde_json::{Value, json};

use super::{STUB, configuration};

/// Fields are dropped in their order.
struct Abroad {
    server: Foreign,
    authority: AuthorizationServer,
    rig: Rig,
}

impl Abroad {
    /// Granted without anybody at a screen, with tokens that live for `seconds`.
    fn granted(seconds: u32) -> Outcome<Self> {
        let mut rig = Rig::new()?;
        let mut server = Foreign::start(&rig)?;
        let authority = AuthorizationServer::start(&rig, &rig.authority, &server.url(), &Gate::default())?;
        server.trusts(&authority.issuer)?;
        authority.set(&format!("ttl={seconds}"))?;
        rig.env.insert("BROWSER".to_owned(), AuthorizationServer::browser(&rig));
        rig.config(&configuration(&server.url()))?;
        rig.run(&["grant", "oauth", "mine", "--timeout", "20s"])?.expect_code(0)?;
        Ok(Self { server, authority, rig })
    }

    /// How many tokens the server found good.
    fn tokens(&self) -> usize {
        let shown = self.server.shown();
        let good =
            shown.iter().filter(|line| line["active"] == true).filter_map(|line| line["token"].as_str());
        good.collect::<BTreeSet<_>>().len()
    }
}

fn visit(inside: &Inside, modern: bool, calls: &[(&str, Value)]) -> Task {
    Task::Mcp(Visit {
        url: format!("http://{}/mcp/mine", inside.authority()),
        headers: BTreeMap::from([("Authorization".to_owned(), STUB.to_owned())]),
        modern,
        calls: calls.iter().map(|(tool, arguments)| ((*tool).to_owned(), arguments.clone())).collect(),
        listen: false,
    })
}

/// All of these texts are in what came of a visit.
fn holds(came: &Value, texts: &[&str]) -> Outcome {
    ensure(texts.iter().all(|text| came.to_string().contains(text)), || format!("not {texts:?} in {came}"))
}

pub(super) fn a1_a_server_that_checks_tokens_by_itself() -> Outcome {
    let abroad = Abroad::granted(3600)?;
    let inside = abroad.rig.console()?;
    let discoveries = abroad.authority.discoveries()?;
    for modern in [false, true] {
        let came = inside.order(visit(&inside, modern, &[("echo", json!({"text": "hello"}))]))?.value()?;
        holds(&came, &["gated: hello"])?;
    }
    ensure(abroad.tokens() == 1 && abroad.server.shown().iter().all(|line| line["active"] == true), || {
        format!("{:?}", abroad.server.shown())
    })?;
    // The server's own 401 leads to a renewal, and nobody asks again who gives the tokens.
    let shown = abroad.rig.run(&["grant", "show", "oauth:mine", "--show-token", "--json"])?;
    let shown: Value = serde_json::from_str(&shown.out)?;
    abroad.authority.kill(shown["token"].as_str().unwrap_or_default())?;
    let came = inside.order(visit(&inside, true, &[("echo", json!({"text": "again"}))]))?.value()?;
    holds(&came, &["gated: again"])?;
    ensure(abroad.authority.spent_once(&abroad.server.url())? == 1 && abroad.tokens() == 2, || {
        format!("{:?}", abroad.server.shown())
    })?;
    ensure(abroad.authority.discoveries()? == discoveries, || "O10: discovered at run time".to_owned())?;
    inside.end().map(drop)
}

pub(super) fn a3_two_runs_and_a_stream_while_tokens_expire() -> Outcome {
    let abroad = Abroad::granted(2)?;
    let (one, two) = (abroad.rig.console()?, abroad.rig.console()?);
    // A call that says nothing, a stream, and a session of the older kind: each outlives a few tokens.
    let hold =
        one.order(visit(&one, true, &[("hold", json!({"ms": 5000})), ("echo", json!({"text": "one"}))]))?;
    let steps = json!({"count": 40, "every_ms": 150});
    let steps = two.order(visit(&two, true, &[("steps", steps), ("echo", json!({"text": "two"}))]))?;
    let session = json!({"count": 30, "every_ms": 200});
    let session = two.order(visit(&two, false, &[("steps", session), ("echo", json!({"text": "three"}))]))?;
    let start = Instant::now();
    let mut calls = 0;
    while start.elapsed() < Duration::from_secs(7) {
        let pending =
            [&one, &two].map(|run| run.order(visit(run, true, &[("echo", json!({"text": "now"}))])));
        for pending in pending {
            holds(&pending?.value()?, &["gated: now"])?;
            calls += 1;
        }
    }
    holds(&hold.value()?, &["held 5000", "gated: one"])?;
    holds(&steps.value()?, &["40 steps", "gated: two"])?;
    holds(&session.value()?, &["30 steps", "gated: three"])?;
    let refreshes = abroad.authority.spent_once(&abroad.server.url())?;
    // Renewed beside its use after one second of two; never more than once for each token.
    ensure((3..=10).contains(&refreshes) && abroad.tokens() >= refreshes, || {
        format!("{refreshes} refreshes, {} tokens, {calls} calls", abroad.tokens())
    })?;
    one.end()?;
    two.end().map(drop)
}
