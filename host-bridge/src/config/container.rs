//! `image:` and `container:`: what a container is made of, where the runtime makes containers.

use super::{fields::Fields, problem::Report};

/// Known to other versions, without effect here.
const LATER: [&str; 5] = ["apple", "cpus", "dns", "memory", "ulimits"];

/// What a container must do without.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct ContainerOptions {
    /// `read_only`: nothing can be written but the workspace, /tmp, /run and the agent's home.
    pub(crate) read_only: bool,
    /// `cap_drop: [ALL]`: PID 1 has no capability either; relay and agent are one user then.
    pub(crate) no_capabilities: bool,
}

pub(super) fn image(top: &Fields<'_>, report: &mut Report) -> Option<String> {
    let image = top.text("image", report).filter(|image| !image.text.is_empty())?;
    if image.text.starts_with('-') || image.text.contains(char::is_whitespace) {
        report.problem(image.line, "", format_args!("invalid image {:?}", image.text));
    }
    Some(image.text)
}

pub(super) fn options(top: &Fields<'_>, report: &mut Report) -> ContainerOptions {
    let Some(fields) = top.map("container", report) else { return ContainerOptions::default() };
    let mut known = vec!["cap_drop", "read_only"];
    known.extend(LATER);
    fields.check_keys(&known, report);
    for key in LATER {
        if fields.node(key).is_some() {
            report.ignored(&fields.path(key));
        }
    }
    let dropped = fields.texts("cap_drop", report).unwrap_or_default();
    for capability in &dropped {
        if capability.text != "ALL" {
            let text = format!(
                "invalid capability {:?}: only ALL can be dropped here; the agent has none anyway",
                capability.text
            );
            report.problem(capability.line, "container.cap_drop", text);
        }
    }
    ContainerOptions {
        read_only: fields.flag("read_only", report).unwrap_or(false),
        no_capabilities: !dropped.is_empty(),
    }
}
