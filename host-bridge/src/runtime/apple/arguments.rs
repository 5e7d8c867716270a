//! What kind of container it is: the arguments of `container create`. Pure.
//!
//! As in an engine's container, PID 1 starts as root with the few capabilities that it needs, and gives relay and agent
//! none. Never `--init`: the tool's own first process would be PID 1 then. No variable is ever passed: the plan has them.

use std::{
    collections::{BTreeMap, HashMap},
    path::Path,
};

use moat_shared::plan;

use super::{Architecture, Door, Image, Stage};
use crate::{
    config::NetworkMode,
    runtime::{
        Mount, Order, RuntimeError,
        docker::{
            WORKSPACE,
            container::{CAPABILITIES, hidden},
        },
    },
};

/// The sidecar's directory, and the sidecar in it. It lies beside the sockets: what is mounted is no root file system.
const BIN: &str = "/.moat/bin";
pub(super) const SIDECAR: &str = "/.moat/bin/moat-sidecar";
/// Where the sidecar listens: on the root file system, the only one that the tool's relay looks at.
pub(super) const OUT_OF: &str = "/.moat/tunnel/bridge.sock";
/// Where the machine listens for the host.
pub(super) const INTO: &str = "/.moat/bridge.sock";

/// Everything that decides them.
pub(super) struct Wish<'a> {
    pub(super) name: &'a str,
    pub(super) order: &'a Order,
    pub(super) image: &'a Image,
    pub(super) architecture: Architecture,
    pub(super) door: Door,
    pub(super) stage: &'a Stage,
    pub(super) labels: &'a HashMap<String, String>,
    /// moat's own directory, which nothing that is mounted may hold.
    pub(super) secret: &'a Path,
}

/// The arguments.
pub(super) fn of(wish: &Wish<'_>) -> Result<Vec<String>, RuntimeError> {
    let Wish { name, order, image, architecture, door, stage, labels, secret } = *wish;
    possible(order, image, secret)?;
    let mut words: Vec<String> = ["create", "--name", name, "--arch", architecture.name(), "--interactive"]
        .map(str::to_owned)
        .to_vec();
    if order.terminal.is_some() {
        words.push("--tty".to_owned());
    }
    let mut option = |flag: &str, value: &str| words.extend([flag.to_owned(), value.to_owned()]);
    for (key, value) in labels.iter().collect::<BTreeMap<_, _>>() {
        option("--label", &format!("{key}={value}"));
    }
    option("--entrypoint", SIDECAR);
    option("--workdir", "/");
    option("--cap-drop", "ALL");
    if !order.container.no_capabilities {
        option("--user", "0:0");
        for capability in CAPABILITIES {
            option("--cap-add", capability);
        }
    } else {
        // PID 1 could not make one.
        option("--tmpfs", plan::OTHER_HOME);
    }
    if order.network == Some(NetworkMode::None) {
        option("--network", "none");
    }
    option("--mount", &mount(&order.workspace, Path::new(WORKSPACE), false)?);
    option("--mount", &mount(&stage.bin(), Path::new(BIN), true)?);
    for Mount { source, target, read_only } in &order.mounts {
        option("--mount", &mount(source, target, *read_only)?);
    }
    match door {
        Door::OutOf => option("--publish-socket", &socket(&stage.out_of(), OUT_OF)?),
        Door::Into => option("--volume", &socket(&stage.host_socket(), INTO)?),
    }
    words.extend([image.id.as_str(), "init", "--startup-stdin"].map(str::to_owned));
    Ok(words)
}

/// What cannot be enforced here is refused.
fn possible(order: &Order, image: &Image, secret: &Path) -> Result<(), RuntimeError> {
    let refused = |text: String, hint: &str| Err(RuntimeError::Refused { text, hint: Some(hint.to_owned()) });
    if image.id.starts_with('-') {
        return refused(
            format!("{:?} is no image's name", image.id),
            "an image's name begins with a letter or a digit",
        );
    }
    if order.container.read_only {
        return refused(
            "container.read_only is not possible on the apple runtime: its tunnel needs a socket on the root file system"
                .to_owned(),
            "leave it out, or use another runtime",
        );
    }
    let hides = match hidden(order, secret) {
        Ok(places) => !places.is_empty(),
        Err(_) => true,
    };
    if hides {
        return refused(
            format!(
                "the workspace or a mount holds moat's own directory, {}, or lies in it",
                secret.display()
            ),
            "choose a directory that does not: the apple runtime shares a directory with all that is in it",
        );
    }
    if let Some(file) = order.mounts.iter().find(|mount| !mount.source.is_dir()) {
        return refused(
            format!(
                "{} is not a directory: the apple runtime would share the whole directory around it",
                file.source.display()
            ),
            "mount a directory that holds nothing else",
        );
    }
    Ok(())
}

/// A directory of the host's. The tool has no way to write a comma.
fn mount(source: &Path, target: &Path, read_only: bool) -> Result<String, RuntimeError> {
    let (source, target) = (text(source, ',')?, text(target, ',')?);
    let read_only = if read_only { ",readonly" } else { "" };
    Ok(format!("type=bind,source={source},target={target}{read_only}"))
}

/// A socket of the host's and one of the machine's. The tool splits at the colon.
fn socket(host: &Path, guest: &str) -> Result<String, RuntimeError> {
    Ok(format!("{}:{guest}", text(host, ':')?))
}

fn text(path: &Path, unwritable: char) -> Result<&str, RuntimeError> {
    path.to_str().filter(|text| !text.contains(unwritable)).ok_or_else(|| RuntimeError::Refused {
        text: format!("the path {} cannot be told to Apple's container", path.display()),
        hint: Some(format!("it must be UTF-8 and have no {unwritable:?} in it")),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{config::ContainerOptions, home::Home, runtime::Size};

    fn made(order: &Order, door: Door) -> Result<String, String> {
        let image = Image { id: "node:22".into(), ..Image::default() };
        let labels = HashMap::from([("b".to_owned(), "2".to_owned()), ("a".to_owned(), "1".to_owned())]);
        let stage = Stage::plan(&Home::at("/h"), "moat-1").unwrap();
        let wish = Wish {
            name: "moat-1",
            order,
            image: &image,
            architecture: Architecture::Arm64,
            door,
            stage: &stage,
            labels: &labels,
            secret: Path::new("/home/me/.moat"),
        };
        of(&wish).map(|words| words.join(" ")).map_err(|error| error.to_string())
    }

    fn order() -> Order {
        super::super::tests::order()
    }

    #[test]
    fn an_ordinary_container() {
        assert_eq!(
            made(&order(), Door::OutOf).unwrap(),
            "create --name moat-1 --arch arm64 --interactive --label a=1 --label b=2 --entrypoint /.moat/bin/moat-sidecar \
             --workdir / --cap-drop ALL --user 0:0 --cap-add CHOWN --cap-add KILL --cap-add SETGID --cap-add SETPCAP \
             --cap-add SETUID --mount type=bind,source=/w,target=/workspace \
             --mount type=bind,source=/h/proxy/apple/moat-1/bin,target=/.moat/bin,readonly \
             --publish-socket /h/proxy/apple/moat-1/o:/.moat/tunnel/bridge.sock node:22 init --startup-stdin"
        );
    }

    #[test]
    fn without_a_network_or_capabilities_and_with_a_terminal() {
        let container = ContainerOptions { no_capabilities: true, ..ContainerOptions::default() };
        let terminal = Some(Size { rows: 1, columns: 2 });
        let network = Some(NetworkMode::None);
        let words = made(&Order { container, terminal, network, ..order() }, Door::Into).unwrap();
        assert!(words.contains("--network none --mount") && words.contains("--interactive --tty"), "{words}");
        assert!(!words.contains("--user") && !words.contains("--cap-add"), "{words}");
        assert!(words.contains("--volume /h/proxy/apple/moat-1/i:/.moat/bridge.sock node:22"), "{words}");
    }

    #[test]
    fn what_cannot_be_had_is_refused() {
        let mount =
            |source: &str| vec![Mount { source: source.into(), target: "/x".into(), read_only: true }];
        let container = ContainerOptions { read_only: true, ..ContainerOptions::default() };
        let refusals = [
            (Order { container, ..order() }, "read_only"),
            (Order { workspace: "/home".into(), ..order() }, "own directory"),
            (Order { workspace: "/home/me/.moat/x".into(), ..order() }, "own directory"),
            (Order { mounts: mount("/etc/passwd"), ..order() }, "/etc/passwd is not a directory"),
            (Order { workspace: "/a,b".into(), ..order() }, "/a,b cannot be told"),
        ];
        for (order, wanted) in refusals {
            let error = made(&order, Door::OutOf).unwrap_err();
            assert!(error.contains(wanted), "{error}");
        }
        assert!(
            made(&Order { mounts: mount("/etc"), ..order() }, Door::OutOf)
                .unwrap()
                .contains("target=/x,readonly")
        );
    }
}
