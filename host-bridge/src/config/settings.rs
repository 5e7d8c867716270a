//! `~/.moat/config.yaml`: the user's own settings, for every run.

use crate::{env::Environment, home::Home};

use super::{Mount, Problems, Warning, fields::Fields, mount, problem::Report, read, yaml, yaml::Value};

/// A checked config.yaml, or the defaults where there is none.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Settings {
    /// Always read-only, with absolute sources.
    pub(crate) mounts: Vec<Mount>,
    pub(crate) warnings: Vec<Warning>,
}

impl Settings {
    /// Reads the user's settings.
    pub(crate) fn load(home: &Home, env: &Environment) -> Result<Self, Problems> {
        let text = read(&home.config_file(), "config.yaml")?.unwrap_or_default();
        Self::parse(&text, env)
    }

    fn parse(text: &str, env: &Environment) -> Result<Self, Problems> {
        let mut report = Report::new("config.yaml");
        let root = yaml::parse(text)
            .map_err(|source| Problems::Parsing { file: report.file.clone(), source })?
            .filter(|root| !root.is_null());
        let mut settings = Self { mounts: Vec::new(), warnings: Vec::new() };
        if let Some(top) =
            root.as_ref().and_then(|root| Fields::of(root, String::new(), "config.yaml", &mut report))
        {
            settings.fill(&top, env, &mut report);
        }
        settings.warnings = report.finish()?;
        Ok(settings)
    }

    fn fill(&mut self, top: &Fields<'_>, env: &Environment, report: &mut Report) {
        top.check_keys(&["debug", "mounts", "proxy", "profiles"], report);
        if let Some(debug) = top.map("debug", report) {
            debug.check_keys(&["retention_days"], report);
            // No debug logs are written, so there are none to keep.
            if number(&debug, "retention_days", 0..=3650, report).is_some() {
                report.ignored("debug.retention_days");
            }
        }
        if let Some(proxy) = top.map("proxy", report) {
            // There is no port any more.
            proxy.check_keys(&["port"], report);
            number(&proxy, "port", 0..=65535, report);
        }
        if top.node("profiles").is_some() {
            report.ignored("profiles");
        }
        for (index, (line, mut mount)) in mount::mounts(top, report).into_iter().enumerate() {
            if let (Ok(rest), Some(home)) = (mount.source.strip_prefix("~"), env.user_home()) {
                mount.source = home.join(rest);
            }
            if !mount.source.is_absolute() {
                let at = format!("mounts[{index}]");
                report.problem(line, &at, format_args!("source {:?} must be an absolute path", mount.source));
            }
            mount.read_only = true;
            self.mounts.push(mount);
        }
    }
}

fn number(
    fields: &Fields<'_>,
    key: &str,
    range: std::ops::RangeInclusive<u32>,
    report: &mut Report,
) -> Option<u32> {
    let node = fields.node(key)?;
    let number = match &node.value {
        Value::Scalar { text, .. } => text.parse().ok().filter(|number| range.contains(number)),
        Value::List(_) | Value::Map(_) => None,
    };
    if number.is_none() {
        let text = format!(
            "'{}' must be a whole number from {} to {}",
            fields.path(key),
            range.start(),
            range.end()
        );
        report.problem(node.line, "", text);
    }
    number
}

#[cfg(test)]
mod tests {
    use super::*;
    use test_case::test_case;

    fn parse(text: &str) -> Result<Settings, String> {
        Settings::parse(text, &Environment::from([("HOME", "/home/me")])).map_err(|error| error.to_string())
    }

    #[test]
    fn a_whole_file() {
        let text =
            "debug: {retention_days: 3}\nproxy: {port: 8080}\nmounts: ['~/ref:/ref', '/data:/data:rw']\n";
        let settings = parse(text).unwrap();
        let warnings: Vec<_> = settings.warnings.iter().map(ToString::to_string).collect();
        assert_eq!(warnings, ["config.yaml: 'debug.retention_days' is not supported yet and is ignored"]);
        let mounts: Vec<_> =
            settings.mounts.iter().map(|mount| (mount.source.to_str().unwrap(), mount.read_only)).collect();
        assert_eq!(mounts, [("/home/me/ref", true), ("/data", true)]);
    }

    #[test]
    fn no_file_means_the_defaults() {
        let dir = tempfile::tempdir().unwrap();
        let settings = Settings::load(&Home::at(dir.path()), &Environment::default()).unwrap();
        assert_eq!(settings, Settings { mounts: Vec::new(), warnings: Vec::new() });
    }

    #[test_case(
        "debug: {retention_days: -1}",
        "loading config: config.yaml:1: 'debug.retention_days' must be a whole number from 0 to 3650"
    )]
    #[test_case("debug: {retention: 1}", "loading config: config.yaml:1: debug: unknown key \"retention\" (did you mean \"retention_days\"?)"; "unknown key")]
    #[test_case(
        "proxy: {port: x}",
        "loading config: config.yaml:1: 'proxy.port' must be a whole number from 0 to 65535"
    )]
    #[test_case(
        "mounts: ['ref:/ref']",
        "loading config: config.yaml:1: mounts[0]: source \"ref\" must be an absolute path"
    )]
    #[test_case("mount: []", "loading config: config.yaml:1: unknown key \"mount\" (did you mean \"mounts\"?)"; "top key")]
    #[test_case("- a", "loading config: config.yaml:1: config.yaml must be a mapping, not a list"; "kind")]
    fn every_mistake_has_its_place(text: &str, expected: &str) {
        assert_eq!(parse(text).unwrap_err(), expected);
    }
}
