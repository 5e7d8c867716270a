//! Opening the person's browser: as an argument vector, never through a shell, and never anything but a web address.
//!
//! The address comes from a server: one that starts with `-` or with another scheme would be a command to whoever
//! opens it.

use std::{
    ffi::OsString,
    process::{Command, Stdio},
};

use url::Url;

use super::guard::is_local;
use crate::env::Environment;

/// How a browser is opened here: the command, before its address. `None`: there is none, as on a machine that is
/// reached over ssh.
pub(crate) fn opener(env: &Environment) -> Option<Vec<OsString>> {
    if let Some(browser) = env.get("BROWSER") {
        // A list, of which the first that is there would do; with arguments, as in `firefox --new-tab`.
        let first = browser.split(':').find(|item| !item.is_empty())?;
        return Some(first.split_whitespace().map(OsString::from).collect());
    }
    if cfg!(target_os = "macos") {
        return Some(vec!["open".into()]);
    }
    let display = env.get("DISPLAY").is_some() || env.get("WAYLAND_DISPLAY").is_some();
    display.then(|| vec!["xdg-open".into()])
}

/// May this be given to a browser?
pub(crate) fn is_openable(url: &Url) -> bool {
    let web = url.scheme() == "https" || (url.scheme() == "http" && is_local(url));
    web && !url.as_str().starts_with('-')
}

/// Opens it. `Err`: why not.
pub(crate) fn open(opener: &[OsString], url: &Url, env: &Environment) -> Result<std::process::Child, String> {
    let Some((program, arguments)) = opener.split_first() else { return Err("no command".to_owned()) };
    if !is_openable(url) {
        return Err("the address is none of the web".to_owned());
    }
    Command::new(program)
        .args(arguments)
        .arg(url.as_str())
        .env_clear()
        .envs(env.iter())
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .map_err(|error| error.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;
    use test_case::test_case;

    #[test_case(&[("BROWSER", "firefox --new-tab")] => Some("firefox --new-tab".to_owned()))]
    #[test_case(&[("BROWSER", ":a:b")] => Some("a".to_owned()); "a list")]
    #[cfg_attr(target_os = "linux", test_case(&[] => None; "no display"))]
    #[cfg_attr(target_os = "linux", test_case(&[("DISPLAY", ":0")] => Some("xdg-open".to_owned()); "a display"))]
    fn openers(env: &[(&str, &str)]) -> Option<String> {
        let env = match env {
            [] => Environment::default(),
            [one] => Environment::from([*one]),
            _ => unreachable!("one variable is enough"),
        };
        opener(&env)
            .map(|words| words.iter().map(|word| word.to_string_lossy()).collect::<Vec<_>>().join(" "))
    }

    #[test_case("https://as.example/authorize?x=y" => true)]
    #[test_case("http://127.0.0.1:9/authorize" => true; "loopback")]
    #[test_case("http://as.example/authorize" => false; "plain")]
    #[test_case("file:///etc/passwd" => false; "a file")]
    #[test_case("javascript:alert(1)" => false; "a script")]
    #[test_case("-a:x" => false; "an option")]
    fn only_the_web(url: &str) -> bool {
        Url::parse(url).is_ok_and(|url| is_openable(&url))
    }
}
