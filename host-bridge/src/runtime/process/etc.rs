//! /etc/passwd, /etc/group, /etc/hosts and /etc/resolv.conf as the sandbox sees them. Pure.

use std::path::Path;

use moat_shared::plan::Ids;

/// The agent's name.
pub(super) const AGENT_NAME: &str = "agent";

/// The host's users and the agent, who is the first of its uid and the only one of its name.
pub(super) fn passwd(host: &str, agent: Ids, home: &Path) -> String {
    let Ids { uid, gid } = agent;
    let own = format!("{AGENT_NAME}:x:{uid}:{gid}:agent:{}:/bin/sh\n", home.display());
    own + &without(host, uid)
}

/// The host's groups and the agent's.
pub(super) fn group(host: &str, agent: Ids) -> String {
    format!("{AGENT_NAME}:x:{}:\n", agent.gid) + &without(host, agent.gid)
}

/// Names that need no network.
pub(super) fn hosts(name: &str) -> String {
    format!("127.0.0.1\tlocalhost\n::1\tlocalhost ip6-localhost ip6-loopback\n127.0.1.1\t{name}\n")
}

/// Where names are asked, with the host's other settings; its servers may be on its own loopback.
pub(super) fn resolv_conf(host: &str, server: &str) -> String {
    let kept = |line: &&str| ["search ", "domain ", "options "].iter().any(|key| line.starts_with(key));
    let kept = host.lines().filter(kept).flat_map(|line| [line, "\n"]);
    format!("nameserver {server}\n") + &kept.collect::<String>()
}

fn without(host: &str, id: u32) -> String {
    let other = |line: &&str| {
        let mut fields = line.split(':');
        fields.next() != Some(AGENT_NAME) && fields.nth(1).and_then(|field| field.parse().ok()) != Some(id)
    };
    host.lines().filter(other).flat_map(|line| [line, "\n"]).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const AGENT: Ids = Ids { uid: 1000, gid: 1000 };

    #[test]
    fn the_agent_is_the_only_one_of_its_uid_and_name() {
        let host =
            "root:x:0:0:root:/root:/bin/bash\nalice:x:1000:1000::/home/alice:/bin/sh\nagent:x:7:7::/x:/x";
        assert_eq!(
            passwd(host, AGENT, Path::new("/home/agent")),
            "agent:x:1000:1000:agent:/home/agent:/bin/sh\nroot:x:0:0:root:/root:/bin/bash\n"
        );
    }

    #[test]
    fn names_are_asked_in_one_place() {
        let host =
            "# made by hand\nnameserver 127.0.0.53\nnameserver 9.9.9.9\nsearch example.com\noptions edns0";
        assert_eq!(
            resolv_conf(host, "169.254.1.53"),
            "nameserver 169.254.1.53\nsearch example.com\noptions edns0\n"
        );
    }

    #[test]
    fn groups() {
        assert_eq!(group("root:x:0:\nalice:x:1000:bob\n", AGENT), "agent:x:1000:\nroot:x:0:\n");
    }
}
