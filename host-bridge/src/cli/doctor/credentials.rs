//! Can every stored credential be read, by nobody but their owner?

use moat_shared::grant::{GrantKind, GrantName};

use super::{Report, Section};
use crate::{credentials::Store, home::Home};

const HERE: Section = Section::Credentials;

pub(super) fn look(home: &Home, store: &Store, report: &mut Report) {
    let listed = match store.list() {
        Ok(listed) => listed,
        Err(error) => {
            let text = format!("the credentials cannot be listed: {error}");
            report.problem(HERE, text).remedy(format!("Check owner and rights of {}", home.root().display()));
            return;
        }
    };
    let mut readable = Vec::new();
    for credential in listed {
        let Ok(grant) = credential.name.parse::<GrantName>() else {
            report
                .warning(HERE, format!("{}.enc is not the name of a grant and is not used", credential.name));
            continue;
        };
        twice(store, &grant, report);
        match store.read(&grant) {
            Ok(_) => readable.push(credential.name),
            Err(error) => {
                report.error(HERE, &error);
            }
        }
    }
    let key = home.key_file();
    let place = match key.exists() {
        true => format!("the key is in {}", key.display()),
        false => "the key is in the keychain".to_owned(),
    };
    match readable.len() {
        0 if report.0.iter().any(|finding| finding.section == HERE) => {}
        0 => {
            report.ok(HERE, "none stored").detail("store one with: moat grant mcp <server>");
        }
        1 => {
            report.ok(HERE, "1 can be read").detail(readable.join(", ")).detail(place);
        }
        n => {
            report.ok(HERE, format!("{n} can be read")).detail(readable.join(", ")).detail(place);
        }
    }
}

/// A grant may have a file in the older spelling as well; then that is not used.
fn twice(store: &Store, grant: &GrantName, report: &mut Report) {
    let GrantKind::Mcp(name) = grant.kind() else { return };
    let canonical = store.path(grant);
    let older = canonical.with_file_name(format!("mcp:{name}.enc"));
    if canonical.exists() && older.exists() {
        report
            .warning(HERE, format!("{grant} has two files; {} is not used", older.display()))
            .remedy(format!("Remove it, or both with: moat revoke {grant}"));
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;
    use crate::{cli::doctor::Verdict, env::Environment};

    #[test]
    fn what_cannot_be_read_is_a_problem_with_a_remedy() {
        let dir = tempfile::tempdir().unwrap();
        let home = Home::at(dir.path());
        let env = Environment::from([("MOAT_KEYRING_BACKEND", "file")]);
        let store = Store::open(&home, &env, None);
        let mut report = Report::default();
        look(&home, &store, &mut report);
        assert!(!report.is_broken(), "nothing stored is no problem");

        let credentials = home.credentials(None);
        fs::create_dir_all(&credentials).unwrap();
        for name in ["mcp-a.enc", "mcp:a.enc", "what.enc"] {
            fs::write(credentials.join(name), "not encrypted").unwrap();
        }
        let mut report = Report::default();
        look(&home, &store, &mut report);
        let count = |verdict| report.0.iter().filter(|f| f.verdict == verdict).count();
        assert_eq!(
            (count(Verdict::Problem), count(Verdict::Warning), count(Verdict::Ok)),
            (1, 2, 0),
            "{report:?}"
        );
        let problem = report.0.iter().find(|f| f.verdict == Verdict::Problem).unwrap();
        assert!(problem.remedy.is_some(), "{problem:?}");
    }
}
