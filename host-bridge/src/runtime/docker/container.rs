//! What kind of container it is. Pure.
//!
//! PID 1 starts as root with the few capabilities that it needs to make relay and agent two other users, and gives those
//! none; or, where all capabilities are to be dropped, everything in the container is the image's user from the start.

use std::{
    collections::HashMap,
    net::{IpAddr, Ipv4Addr, SocketAddr},
    path::{Path, PathBuf},
};

use bollard::models::{
    ContainerCreateBody, HealthConfig, HostConfig, HostConfigLogConfig, Mount as EngineMount, MountType,
    PortBinding,
};
use moat_shared::{endpoint::Endpoint, plan, wire};

use super::{OWN, WORKSPACE, archive};
use crate::{
    config::NetworkMode,
    runtime::{Mount, Order, image::Image},
};

/// What PID 1 needs: other users, giving up the rest, ending everybody, and the agent's own stdin, stdout and stderr.
pub(in crate::runtime) const CAPABILITIES: [&str; 5] = ["CHOWN", "KILL", "SETGID", "SETPCAP", "SETUID"];

/// The bridge's socket as the sandbox sees it: its directory is mounted, so that a socket made anew is seen.
pub(super) fn tunnel_socket() -> PathBuf {
    Path::new(OWN).join("tunnel/bridge.sock")
}

/// Where the sidecar listens, if the bridge has to come to it.
pub(super) fn tunnel_port() -> Endpoint {
    Endpoint::Tcp(SocketAddr::from((Ipv4Addr::UNSPECIFIED, wire::TUNNEL_PORT)))
}

/// What connects it with the bridge.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Door {
    /// Mounted, with the bridge's socket in it.
    Directory(PathBuf),
    /// Published on this machine's loopback, where the engine chooses.
    Port,
    /// The container's own network, on which this machine has this address.
    Gateway(IpAddr),
}

/// As the engine writes it.
fn port() -> String {
    format!("{}/tcp", wire::TUNNEL_PORT)
}

/// Nobody else's interface; any port.
fn on_loopback() -> PortBinding {
    PortBinding { host_ip: Some(Ipv4Addr::LOCALHOST.to_string()), host_port: Some(String::new()) }
}

/// This machine's address on a network: the one that is said, else the first, which an engine takes where it was told
/// none. Docker says it of its own network only where the bridge was there before.
pub(super) fn gateway(said: Option<&str>, subnet: Option<&str>) -> Option<IpAddr> {
    if let Some(said) = said.filter(|said| !said.is_empty()) {
        return said.parse().ok();
    }
    let (network, prefix) = subnet?.split_once('/')?;
    let (network, prefix): (Ipv4Addr, u32) = (network.parse().ok()?, prefix.parse().ok()?);
    let mask = u32::MAX.checked_shl(32u32.checked_sub(prefix)?).unwrap_or(0);
    Some(Ipv4Addr::from((u32::from(network) & mask).checked_add(1)?).into())
}

/// Where the engine has published it.
pub(super) fn published_at(ports: &HashMap<String, Option<Vec<PortBinding>>>) -> Option<Endpoint> {
    let bindings = ports.get(&port())?.as_ref()?;
    let port = bindings.iter().find_map(|binding| binding.host_port.as_ref()?.parse::<u16>().ok())?;
    Some(Endpoint::Tcp(SocketAddr::from((Ipv4Addr::LOCALHOST, port))))
}

/// Where nothing is to be seen: moat's own directory, wherever it lies below what is mounted. `Err`: what is mounted lies
/// in it.
pub(in crate::runtime) fn hidden<'o>(order: &'o Order, secret: &Path) -> Result<Vec<PathBuf>, &'o Path> {
    let workspace = (order.workspace.as_path(), Path::new(WORKSPACE));
    let mounts = order.mounts.iter().map(|mount| (mount.source.as_path(), mount.target.as_path()));
    let mut places = Vec::new();
    for (source, target) in std::iter::once(workspace).chain(mounts) {
        if source.starts_with(secret) {
            return Err(source);
        }
        if let Ok(below) = secret.strip_prefix(source) {
            places.push(target.join(below));
        }
    }
    Ok(places)
}

/// The container to be.
pub(super) fn body(
    order: &Order,
    image: &Image,
    door: &Door,
    hidden: &[PathBuf],
    labels: &HashMap<String, String>,
) -> ContainerCreateBody {
    let user = if order.container.no_capabilities { image.user.clone() } else { "0:0".to_owned() };
    ContainerCreateBody {
        hostname: Some(hostname(&order.name)),
        user: Some(user),
        attach_stdin: Some(true),
        attach_stdout: Some(true),
        attach_stderr: Some(true),
        open_stdin: Some(true),
        stdin_once: Some(true),
        tty: Some(order.terminal.is_some()),
        image: Some(image.id.clone()),
        entrypoint: Some(vec![archive::sidecar()]),
        cmd: Some(vec!["init".to_owned(), "--startup-stdin".to_owned()]),
        working_dir: Some("/".to_owned()),
        labels: Some(labels.clone()),
        // It would run as root what the agent may have written.
        healthcheck: Some(HealthConfig { test: Some(vec!["NONE".to_owned()]), ..HealthConfig::default() }),
        exposed_ports: (*door == Door::Port).then(|| vec![port()]),
        host_config: Some(host(order, door, hidden)),
        ..ContainerCreateBody::default()
    }
}

fn host(order: &Order, door: &Door, hidden: &[PathBuf]) -> HostConfig {
    let options = order.container;
    let mut mounts = vec![bind(&order.workspace, Path::new(WORKSPACE), false)];
    if let Door::Directory(tunnel_dir) = door {
        mounts.push(bind(tunnel_dir, &Path::new(OWN).join("tunnel"), true));
    }
    mounts.extend(
        order.mounts.iter().map(|Mount { source, target, read_only }| bind(source, target, *read_only)),
    );
    mounts.extend(hidden.iter().map(|place| EngineMount {
        target: Some(place.to_string_lossy().into_owned()),
        typ: Some(MountType::TMPFS),
        read_only: Some(true),
        ..EngineMount::default()
    }));
    let place = |(place, mode): (&str, &str)| (place.to_owned(), mode.to_owned());
    let mut tmpfs = HashMap::new();
    if options.read_only {
        tmpfs.extend([("/run", "mode=1777"), ("/tmp", "mode=1777")].map(place));
    }
    // PID 1 makes it where it can.
    if options.read_only || options.no_capabilities {
        tmpfs.extend([(plan::OTHER_HOME, "mode=1777,exec")].map(place));
    }
    HostConfig {
        auto_remove: Some(true),
        // PID 1 is ours.
        init: Some(false),
        privileged: Some(false),
        network_mode: (order.network == Some(NetworkMode::None)).then(|| "none".to_owned()),
        cap_drop: Some(vec!["ALL".to_owned()]),
        cap_add: (!options.no_capabilities).then(|| CAPABILITIES.map(str::to_owned).to_vec()),
        security_opt: Some(vec!["no-new-privileges".to_owned()]),
        readonly_rootfs: Some(options.read_only),
        tmpfs: Some(tmpfs),
        mounts: Some(mounts),
        port_bindings: (*door == Door::Port).then(|| HashMap::from([(port(), Some(vec![on_loopback()]))])),
        // What it prints is in the run's own log; the engine need not keep it a second time.
        log_config: Some(HostConfigLogConfig { typ: Some("none".to_owned()), config: None }),
        ..HostConfig::default()
    }
}

fn bind(source: &Path, target: &Path, read_only: bool) -> EngineMount {
    EngineMount {
        source: Some(source.to_string_lossy().into_owned()),
        target: Some(target.to_string_lossy().into_owned()),
        typ: Some(MountType::BIND),
        read_only: Some(read_only),
        ..EngineMount::default()
    }
}

/// A run's name may have what a host name must not.
fn hostname(name: &str) -> String {
    let text: String =
        name.chars().map(|c| if c.is_ascii_alphanumeric() { c } else { '-' }).take(63).collect();
    text.trim_matches('-').to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::ContainerOptions;

    fn order() -> Order {
        Order {
            name: "brave_otter.1".into(),
            workspace: "/w".into(),
            mounts: vec![Mount { source: "/lib".into(), target: "/lib2".into(), read_only: true }],
            terminal: None,
            command: vec![],
            is_agent: false,
            image: Some("x".into()),
            container: ContainerOptions::default(),
            network: None,
            tunnel: None,
        }
    }

    fn made(order: &Order) -> ContainerCreateBody {
        let image = Image { id: "sha256:1".into(), user: "node".into(), ..Image::default() };
        let door = Door::Directory("/h/proxy/tunnel".into());
        body(order, &image, &door, &["/workspace/.moat".into()], &HashMap::new())
    }

    #[test]
    fn an_ordinary_container() {
        let body = made(&order());
        let host = body.host_config.unwrap();
        assert_eq!(body.user.as_deref(), Some("0:0"), "PID 1 is root, and nobody else is");
        assert_eq!(body.entrypoint, Some(vec!["/.moat/bin/moat-sidecar".to_owned()]));
        assert_eq!(body.stop_signal, None, "the image's");
        assert_eq!(host.cap_drop, Some(vec!["ALL".to_owned()]));
        assert_eq!(host.cap_add.map(|caps| caps.len()), Some(5));
        assert_eq!(host.security_opt, Some(vec!["no-new-privileges".to_owned()]));
        assert_eq!(host.network_mode, None, "the engine's own");
        assert_eq!(host.auto_remove, Some(true));
        let mounts: Vec<_> =
            host.mounts.unwrap().into_iter().map(|m| (m.target.unwrap(), m.read_only)).collect();
        let wanted =
            [("/workspace", false), ("/.moat/tunnel", true), ("/lib2", true), ("/workspace/.moat", true)];
        assert_eq!(mounts, wanted.map(|(target, read_only)| (target.to_owned(), Some(read_only))));
        assert_eq!(body.hostname.as_deref(), Some("brave-otter-1"));
    }

    #[test]
    fn without_a_network_capabilities_or_a_place_to_write() {
        let options = ContainerOptions { read_only: true, no_capabilities: true };
        let body = made(&Order { container: options, network: Some(NetworkMode::None), ..order() });
        let host = body.host_config.unwrap();
        assert_eq!(body.user.as_deref(), Some("node"));
        assert_eq!(host.cap_add, None);
        assert_eq!(host.network_mode.as_deref(), Some("none"));
        assert_eq!(host.readonly_rootfs, Some(true));
        assert_eq!(host.tmpfs.unwrap()[plan::OTHER_HOME], "mode=1777,exec");
    }

    #[test_case::test_case(Some("10.88.0.1"), Some("10.88.0.0/16") => Some("10.88.0.1".to_owned()); "said")]
    #[test_case::test_case(None, Some("172.17.0.0/16") => Some("172.17.0.1".to_owned()); "the first")]
    #[test_case::test_case(Some(""), Some("10.1.2.64/26") => Some("10.1.2.65".to_owned()); "of a small one")]
    #[test_case::test_case(None, Some("10.1.2.0/33") => None; "no subnet")]
    #[test_case::test_case(None, None => None; "nothing")]
    fn gateways(said: Option<&str>, subnet: Option<&str>) -> Option<String> {
        gateway(said, subnet).map(|address| address.to_string())
    }

    #[test]
    fn a_published_port_is_on_loopback_and_nothing_of_the_bridge_is_mounted() {
        let image = Image { id: "sha256:1".into(), ..Image::default() };
        let body = body(&order(), &image, &Door::Port, &[], &HashMap::new());
        let host = body.host_config.unwrap();
        let mounts: Vec<_> = host.mounts.unwrap().into_iter().filter_map(|mount| mount.target).collect();
        assert_eq!(mounts, ["/workspace", "/lib2"]);
        assert_eq!(body.exposed_ports, Some(vec![port()]));
        let mut bindings = host.port_bindings.unwrap();
        assert_eq!(bindings.len(), 1);
        let binding = &mut bindings.get_mut(&port()).unwrap().as_mut().unwrap()[0];
        assert_eq!((binding.host_ip.as_deref(), binding.host_port.as_deref()), (Some("127.0.0.1"), Some("")));
        assert_eq!(published_at(&HashMap::from([(port(), Some(vec![binding.clone()]))])), None, "not yet");
        binding.host_port = Some("49153".to_owned());
        assert_eq!(published_at(&bindings).unwrap().to_string(), "tcp:127.0.0.1:49153");
    }

    #[test]
    fn moat_s_own_directory_is_hidden_wherever_it_is_mounted() {
        let mounts = vec![
            Mount { source: "/home".into(), target: "/h".into(), read_only: false },
            Mount { source: "/lib".into(), target: "/l".into(), read_only: false },
        ];
        let order = Order { workspace: "/home/me".into(), mounts, ..order() };
        let places = hidden(&order, Path::new("/home/me/.moat")).unwrap();
        assert_eq!(places, [Path::new("/workspace/.moat"), Path::new("/h/me/.moat")]);
        for inside in ["/home/me", "/home"] {
            assert!(hidden(&order, Path::new(inside)).is_err(), "{inside}");
        }
    }
}
