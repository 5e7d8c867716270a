//! Whose a container is: by labels that it carries, so that one whose holder has died is found and removed, and nobody
//! else's ever is.

use std::{collections::HashMap, path::Path};

use crate::{control::api::Process, home::Home};

/// Whose container it is: the installation's directory ...
pub(crate) const HOME: &str = "dev.moat.home";
/// ... and the process that holds it, `<pid>.<start time>`.
pub(crate) const HOLDER: &str = "dev.moat.holder";
/// ... and the container's own name: an image that somebody commits from one of ours keeps the labels, and what is made
/// of that image is not ours.
pub(crate) const NAME: &str = "dev.moat.name";

/// The three labels.
pub(crate) fn owner(home: &Home, name: &str) -> HashMap<String, String> {
    let Process { pid, started } = Process::current();
    let home = home.root().display().to_string();
    HashMap::from([
        (HOME.to_owned(), home),
        (HOLDER.to_owned(), format!("{pid}.{started}")),
        (NAME.to_owned(), name.to_owned()),
    ])
}

/// Whom the label means.
pub(crate) fn holder(text: &str) -> Option<Process> {
    let (pid, started) = text.split_once('.')?;
    Some(Process { pid: pid.parse().ok()?, started: started.parse().ok()? })
}

/// Is it a container of this installation, by its labels and by its name, whose holder has died?
pub(crate) fn is_left_behind(labels: &HashMap<String, String>, names: &[String], home: &Home) -> bool {
    let label = |key| labels.get(key).map(String::as_str);
    let is_named = |name: &str| names.iter().any(|own| own.trim_start_matches('/') == name);
    let ours = label(HOME).is_some_and(|whose| Path::new(whose) == home.root())
        && label(NAME).is_some_and(|name| name.starts_with(PREFIX) && is_named(name));
    ours && label(HOLDER).and_then(holder).is_some_and(|holder| !holder.is_alive())
}

const PREFIX: &str = "moat-";

/// A name that no other container has.
pub(crate) fn name() -> String {
    format!("{PREFIX}{}", random())
}

/// Twelve digits.
pub(crate) fn random() -> String {
    let mut bytes = [0; 6];
    let random = ring::rand::SystemRandom::new();
    // Without randomness the engine chooses between a conflict and luck; it refuses a conflict loudly.
    let _all_zeroes = ring::rand::SecureRandom::fill(&random, &mut bytes).is_err();
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_left_behind_is_known_by_more_than_its_labels() {
        let home = Home::at("/h");
        let mut labels = owner(&home, "moat-1");
        let is = |labels: &HashMap<_, _>, name: &str| is_left_behind(labels, &[name.to_owned()], &home);
        assert!(!is(&labels, "/moat-1"), "its holder lives");
        labels.insert(HOLDER.to_owned(), "1.1".to_owned());
        assert!(is(&labels, "/moat-1"));
        assert!(is(&labels, "moat-1"), "as podman writes it");
        assert!(!is(&labels, "/my-own"), "made of an image that was committed from ours");
        assert!(!is_left_behind(&labels, &["moat-1".to_owned()], &Home::at("/other")));
        labels.remove(NAME);
        assert!(!is(&labels, "/moat-1"));
    }

    #[test]
    fn holders_are_known_by_their_label() {
        let home = Home::at("/h");
        assert_eq!(holder(&owner(&home, "moat-1")[HOLDER]), Some(Process::current()));
        assert_eq!((holder("x"), holder("1."), holder("")), (None, None, None));
        assert_ne!(name(), name());
    }
}
