//! What a run of the suite found: the status of every check of every scenario, read from its `checks.json` files.

use std::{collections::BTreeMap, fs, path::Path};

use serde_json::Value;

use crate::{Outcome, Trouble, trouble::ensure};

/// The checks that moat may change, and only for the better, by scenario and the beginning of the check's name.
const MENDED: &[(&str, &str)] = &[
    // R4: the relay checks `Host` and `Origin` itself.
    ("dns-rebinding-protection", ""),
    // R9: the bridge refuses headers that disagree with the body, also for servers that would not.
    ("server-stateless", "sep-2575-http-server-header-mismatch-400"),
    ("tasks-request-headers", "tasks-headers-reject-mismatched-method"),
];

/// Scenario, check, and the statuses of that check in that scenario, sorted: a check may stand there several times.
#[derive(Debug, Default, Clone)]
pub struct Report {
    scenarios: BTreeMap<String, BTreeMap<String, Vec<String>>>,
    /// What the suite and the client printed, by scenario, where it was kept.
    said: BTreeMap<String, String>,
}

impl Report {
    /// Reads the directory that `-o` named.
    ///
    /// # Errors
    /// When there is none, a file is not as expected, or there is no scenario.
    pub fn read(directory: &Path) -> Outcome<Self> {
        let mut report = Self::default();
        for entry in fs::read_dir(directory)? {
            let entry = entry?;
            let name = entry.file_name().to_string_lossy().into_owned();
            let Some(scenario) = scenario_of(&name) else {
                return Err(Trouble::new(format!("{name}: no result of a scenario")));
            };
            // A scenario that throws leaves a directory without checks.
            let thrown = r#"[{"id": "the scenario itself", "status": "FAILURE"}]"#;
            let text = match fs::read_to_string(entry.path().join("checks.json")) {
                Err(error) if error.kind() == std::io::ErrorKind::NotFound => thrown.to_owned(),
                text => text?,
            };
            report.add(scenario, &serde_json::from_str(&text)?);
        }
        ensure(!report.scenarios.is_empty(), || format!("{}: no results", directory.display()))?;
        Ok(report)
    }

    fn add(&mut self, scenario: &str, checks: &Value) {
        let scenario = self.scenarios.entry(scenario.to_owned()).or_default();
        for check in checks.as_array().into_iter().flatten() {
            let word = |name: &str| check[name].as_str().unwrap_or("?").to_owned();
            // INFO is the suite's log of what it saw, no judgement.
            if word("status") != "INFO" {
                let statuses = scenario.entry(word("id")).or_default();
                statuses.push(word("status"));
                statuses.sort();
            }
        }
    }

    /// Adds another run's scenarios.
    pub fn extend(&mut self, other: Self) {
        self.scenarios.extend(other.scenarios);
        self.said.extend(other.said);
    }

    /// The same, with what was printed on the way.
    #[must_use]
    pub fn saying(mut self, text: &str) -> Self {
        for scenario in self.scenarios.keys() {
            self.said.insert(scenario.clone(), text.to_owned());
        }
        self
    }

    /// The scenarios.
    pub fn scenarios(&self) -> impl Iterator<Item = &str> {
        self.scenarios.keys().map(String::as_str)
    }

    /// How often each status was given: in one scenario, or in all.
    #[must_use]
    pub fn count(&self, scenario: Option<&str>) -> BTreeMap<&str, usize> {
        let mut counts = BTreeMap::new();
        let wanted =
            self.scenarios.iter().filter(|(name, _)| scenario.is_none_or(|scenario| scenario == *name));
        for status in wanted.flat_map(|(_, checks)| checks.values().flatten()) {
            *counts.entry(status.as_str()).or_default() += 1;
        }
        counts
    }

    /// The checks that are neither passed nor skipped.
    #[must_use]
    pub fn troubles(&self) -> Vec<String> {
        let checks = self.scenarios.iter().flat_map(|(scenario, checks)| {
            checks.iter().map(move |(check, statuses)| (scenario, check, statuses))
        });
        let bad = |statuses: &[String]| statuses.iter().any(|s| s != "SUCCESS" && s != "SKIPPED");
        checks
            .filter(|(_, _, statuses)| bad(statuses))
            .map(|(scenario, check, statuses)| format!("{scenario}: {check}: {}", statuses.join(" ")))
            .collect()
    }

    /// Where a run through moat differs from this one, one line each, but for those that are allowed.
    #[must_use]
    pub fn differences(&self, through: &Self) -> Vec<String> {
        let mut lines = Vec::new();
        let scenarios: std::collections::BTreeSet<_> = self.scenarios().chain(through.scenarios()).collect();
        for scenario in scenarios {
            let (before, after) = (self.scenarios.get(scenario), through.scenarios.get(scenario));
            let (Some(before), Some(after)) = (before, after) else {
                lines.push(format!(
                    "{scenario}: run only {}",
                    if before.is_some() { "directly" } else { "through moat" }
                ));
                continue;
            };
            let checks: std::collections::BTreeSet<_> = before.keys().chain(after.keys()).collect();
            for check in checks {
                let words = |of: &BTreeMap<String, Vec<String>>| of.get(check).cloned().unwrap_or_default();
                let (direct, relayed) = (words(before), words(after));
                let known = |&(name, start): &(&str, &str)| scenario == name && check.starts_with(start);
                let mended = MENDED.iter().any(known)
                    && direct.len() == relayed.len()
                    && relayed.iter().all(|status| status == "SUCCESS");
                if direct != relayed && !mended {
                    lines.push(format!("{scenario}: {check}: {direct:?} directly, {relayed:?} through moat"));
                    lines.extend(through.said.get(scenario).cloned());
                }
            }
        }
        lines
    }
}

/// The suite writes to `[server-]<scenario>-<yyyy-mm-ddThh-mm-ss-mmmZ>`.
fn scenario_of(directory: &str) -> Option<&str> {
    let (scenario, time) = directory.split_at_checked(directory.len().checked_sub(25)?)?;
    (time.starts_with('-') && time.ends_with('Z'))
        .then(|| scenario.strip_prefix("server-").unwrap_or(scenario))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn report(scenario: &str, statuses: &[&str]) -> Report {
        let mut report = Report::default();
        let checks: Vec<Value> =
            statuses.iter().map(|status| json!({"id": "check", "status": status})).collect();
        report.add(scenario, &json!(checks));
        report
    }

    #[test]
    fn a_check_that_changes_is_a_difference() {
        let good = report("tools-list", &["SUCCESS", "SUCCESS", "INFO"]);
        assert!(good.differences(&good).is_empty());
        for other in [&["SUCCESS"][..], &["SUCCESS", "FAILURE"], &["SUCCESS", "SUCCESS", "SUCCESS"], &[]] {
            assert_eq!(good.differences(&report("tools-list", other)).len(), 1, "{other:?}");
            assert_eq!(report("tools-list", other).differences(&good).len(), 1, "{other:?}");
        }
        assert_eq!(good.differences(&report("other", &["SUCCESS"])).len(), 2);
        assert!(good.differences(&report("tools-list", &["INFO", "SUCCESS", "SUCCESS"])).is_empty());
    }

    #[test]
    fn only_the_relay_s_own_check_may_change_and_only_to_pass() {
        let (bad, good) =
            (report(MENDED[0].0, &["FAILURE", "SUCCESS"]), report(MENDED[0].0, &["SUCCESS", "SUCCESS"]));
        assert!(bad.differences(&good).is_empty());
        assert_eq!(good.differences(&bad).len(), 1);
        assert_eq!(bad.differences(&report(MENDED[0].0, &["SUCCESS"])).len(), 1);
        assert_eq!(
            report(MENDED[2].0, &["FAILURE"]).differences(&report(MENDED[2].0, &["SUCCESS"])).len(),
            1
        );
        assert_eq!(report("ping", &["FAILURE"]).differences(&report("ping", &["SUCCESS"])).len(), 1);
    }

    #[test]
    fn names() {
        assert_eq!(
            scenario_of("server-server-initialize-2026-11-20T19-26-27-477Z"),
            Some("server-initialize")
        );
        assert_eq!(scenario_of("sse-retry-2026-11-20T19-26-31-600Z"), Some("sse-retry"));
        assert_eq!(scenario_of("notes.txt"), None);
    }
}
