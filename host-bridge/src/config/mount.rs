//! `mounts:`, in moat.yaml and in config.yaml, and `--mount`: `source:target[:ro|rw]`, or a mapping.

use std::path::{Path, PathBuf};

use super::{
    fields::Fields,
    problem::Report,
    yaml::{Node, Value},
};

/// A directory of the host in the sandbox.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Mount {
    /// As written: may be relative to the workspace.
    pub(crate) source: PathBuf,
    /// Absolute.
    pub(crate) target: PathBuf,
    pub(crate) read_only: bool,
}

/// What was given is no mount.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("invalid mount: {text} ({reason})")]
pub(crate) struct InvalidMount {
    text: String,
    reason: &'static str,
}

impl std::str::FromStr for Mount {
    type Err = InvalidMount;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let invalid = |reason| InvalidMount { text: text.chars().take(200).collect(), reason };
        let parts: Vec<_> = text.split(':').collect();
        let (source, target, mode) = match parts.as_slice() {
            [source, target] => (*source, *target, ""),
            [source, target, mode] => (*source, *target, *mode),
            _ => return Err(invalid("expected source:target[:mode]")),
        };
        Self::checked(source, target, mode).map_err(invalid)
    }
}

impl Mount {
    fn checked(source: &str, target: &str, mode: &str) -> Result<Self, &'static str> {
        if source.is_empty() {
            return Err("source must not be empty");
        }
        if !Path::new(target).is_absolute() {
            return Err("target must be an absolute path");
        }
        if Path::new(target).components().any(|part| part == std::path::Component::ParentDir) {
            return Err("target must not contain '..'");
        }
        let read_only = match mode {
            "" | "rw" => false,
            "ro" => true,
            _ => return Err("mode must be 'ro' or 'rw'"),
        };
        Ok(Self { source: source.into(), target: target.into(), read_only })
    }
}

/// A `mounts:` list; each usable mount with its line.
pub(super) fn mounts(top: &Fields<'_>, report: &mut Report) -> Vec<(usize, Mount)> {
    let items = top.list("mounts", report).unwrap_or_default();
    let mounts = items.iter().enumerate().filter_map(|(index, item)| {
        let at = format!("mounts[{index}]");
        mount(item, &at, report).map(|mount| (item.line, mount))
    });
    mounts.collect()
}

fn mount(item: &Node, at: &str, report: &mut Report) -> Option<Mount> {
    match &item.value {
        Value::Scalar { text, .. } if !item.is_null() => {
            text.parse().map_err(|error: InvalidMount| report.problem(item.line, at, error)).ok()
        }
        Value::Map(_) => {
            let fields = Fields::of(item, at.to_owned(), at, report)?;
            fields.check_keys(&["source", "target", "mode", "exclude"], report);
            if let Some(exclude) = fields.node("exclude") {
                report.unenforced(exclude.line, at, "'exclude'");
            }
            let mut text = |key| fields.text(key, report).map(|text| text.text);
            let (source, target, mode) = (text("source"), text("target"), text("mode"));
            let source = required(source, "source", &fields, report);
            let target = required(target, "target", &fields, report);
            Mount::checked(&source?, &target?, &mode.unwrap_or_default())
                .map_err(|reason| report.problem(item.line, at, reason))
                .ok()
        }
        _ => {
            report.problem(item.line, at, format_args!("must be a string or a mapping, not {}", item.kind()));
            None
        }
    }
}

fn required(text: Option<String>, key: &str, fields: &Fields<'_>, report: &mut Report) -> Option<String> {
    let text = text.filter(|text| !text.is_empty());
    if text.is_none() && fields.node(key).is_none_or(|node| matches!(node.value, Value::Scalar { .. })) {
        report.problem(fields.line, &fields.at, format_args!("'{key}' is required"));
    }
    text
}
