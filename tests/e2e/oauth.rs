//! OAuth against a real authorization server that rotates refresh tokens and ends a family when one comes twice, and
//! real MCP servers that ask it about every token.

mod crashes;
mod foreign;
mod grants;
mod renewals;
mod secrecy;
mod suite;

use std::fs;

use moat_tests::{
    Outcome,
    authorization::{AuthorizationServer, Gate},
    inside::{Answer, Inside, Request},
    parts::Part,
    rig::{Ran, Rig},
    suite::run::{NEWEST_2025, NEWEST_2025_03, NEWEST_2026},
    trouble::ensure,
    upstream::Upstream,
};
use serde_json::Value;

use crate::{Test, stage::discover};

const COMMAND: &[Part] = &[Part::Authorization, Part::Curl];
const SUITE: &[Part] = &[Part::Sandbox, Part::Suite, Part::Curl];
const TRACED: &[Part] = &[Part::Authorization, Part::Curl, Part::Sandbox, Part::Strace, Part::Root];
const ALL: &[Part] = &[Part::Authorization, Part::Curl, Part::Sandbox];
const FOREIGN: &[Part] = &[Part::Authorization, Part::Curl, Part::Sandbox, Part::Python];

pub(crate) const TESTS: &[Test] = &[
    Test::new("a1_granted_and_used", ALL, grants::a1_granted_and_used),
    Test::new("a1_clients_of_every_kind", COMMAND, grants::a1_clients_of_every_kind),
    Test::new("a3_one_refresh_for_each_expiry", ALL, renewals::a3_one_refresh_for_each_expiry),
    Test::new("a_stream_outlives_its_token", ALL, renewals::a_stream_outlives_its_token),
    Test::new("a4_two_bridges_on_one_grant", ALL, renewals::a4_two_bridges_on_one_grant),
    Test::new(
        "a5_killed_while_the_token_is_on_its_way",
        ALL,
        renewals::a5_killed_while_the_token_is_on_its_way,
    ),
    Test::new("a5_killed_before_each_write", TRACED, crashes::a5_killed_before_each_write),
    Test::new("a6_a_lost_answer_asks_for_a_new_grant", ALL, renewals::a6_a_lost_answer_asks_for_a_new_grant),
    Test::new("a6_what_passes_is_tried_again", ALL, renewals::a6_what_passes_is_tried_again),
    Test::new(
        "a7_a_cancelled_request_does_not_cancel_it",
        ALL,
        renewals::a7_a_cancelled_request_does_not_cancel_it,
    ),
    Test::new("a8_a_storm_of_401", ALL, renewals::a8_a_storm_of_401),
    Test::new("a9_revoked_and_granted_anew", ALL, renewals::a9_revoked_and_granted_anew),
    Test::new("a10_pasted", COMMAND, grants::a10_pasted),
    Test::new("a10_by_device", COMMAND, grants::a10_by_device),
    Test::new(
        "a1_a_server_that_checks_tokens_by_itself",
        FOREIGN,
        foreign::a1_a_server_that_checks_tokens_by_itself,
    ),
    Test::new(
        "a3_two_runs_and_a_stream_while_tokens_expire",
        FOREIGN,
        foreign::a3_two_runs_and_a_stream_while_tokens_expire,
    ),
    Test::new("a16_no_secret_is_anywhere", ALL, secrecy::a16_no_secret_is_anywhere),
    Test::new("f7_an_empty_token_replaces_nothing", COMMAND, grants::f7_an_empty_token_replaces_nothing),
    Test::new("suite_a2_2025_03_26", SUITE, || suite::a2_suite(NEWEST_2025_03)),
    Test::new("suite_a2_2025_11_25", SUITE, || suite::a2_suite(NEWEST_2025)),
    Test::new("suite_a2_2026_07_28", SUITE, || suite::a2_suite(NEWEST_2026)),
];

/// Fields are dropped in their order: the authorization server's process is one that the rig would miss.
struct OAuth {
    authority: AuthorizationServer,
    rig: Rig,
    server: Upstream,
}

const STUB: &str = "moat-stub-oauth:mine";

impl OAuth {
    fn new() -> Outcome<Self> {
        let mut rig = Rig::new()?;
        let gate = Gate::default();
        let server = Upstream::gated("mine", &rig.authority, &gate)?;
        let authority = AuthorizationServer::start(&rig, &rig.authority, &server.url(), &gate)?;
        rig.env.insert("BROWSER".to_owned(), AuthorizationServer::browser(&rig));
        rig.config(&configuration(&server.url()))?;
        Ok(Self { authority, rig, server })
    }

    fn granted() -> Outcome<Self> {
        let stage = Self::new()?;
        stage.grant(&[])?.expect_code(0)?;
        Ok(stage)
    }

    fn grant(&self, flags: &[&str]) -> Outcome<Ran> {
        self.rig.run(&[&["grant", "oauth", "mine", "--timeout", "20s"], flags].concat())
    }

    fn token(&self) -> Outcome<String> {
        let shown =
            self.rig.run(&["grant", "show", "oauth:mine", "--show-token", "--json"])?.expect_code(0)?;
        let shown: Value = serde_json::from_str(&shown.out)?;
        Ok(shown["token"].as_str().unwrap_or_default().to_owned())
    }

    fn shown(&self) -> Outcome<Value> {
        let shown = self.rig.run(&["grant", "show", "oauth:mine", "--json"])?.expect_code(0)?;
        Ok(serde_json::from_str(&shown.out)?)
    }

    /// Every refresh token was spent once, and every refresh worked.
    fn spent_once(&self) -> Outcome<usize> {
        self.authority.spent_once(&self.server.url())
    }
}

fn configuration(url: &str) -> String {
    format!(
        "mcp:\n  - name: mine\n    url: {url}\n    auth: {{grant: 'oauth:mine', header: Authorization}}\n"
    )
}

fn call() -> Request {
    discover("mine").header("Authorization", STUB)
}

fn works(inside: &Inside) -> Outcome {
    fine(&inside.answer(&call())?)
}

fn fine(answer: &Answer) -> Outcome {
    ensure(answer.status == 200, || format!("{} {}", answer.status, answer.body))
}
/// The grant's journal and temporary files.
fn traces(stage: &OAuth) -> Vec<String> {
    let entries = fs::read_dir(stage.rig.home().join("credentials")).into_iter().flatten().flatten();
    let names = entries.map(|entry| entry.file_name().to_string_lossy().into_owned());
    names.filter(|name| name.ends_with(".refresh") || name.ends_with(".new")).collect()
}
