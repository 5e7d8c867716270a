//! Who is who: the users inside the sandbox and what they are outside.
//!
//! | started by | init (0) | relay (998) | agent (1000) |
//! |---|---|---|---|
//! | root | high unused id | high unused id | the workspace's owner; where that is root: a high unused id |
//! | a user with a range in /etc/subuid | of the range | of the range | that user |
//! | any other user | - | - | that user, who is all three |
//!
//! The agent is never root inside, and never anybody outside who may do more than work on the workspace.

use std::{fs, io, os::unix::fs::MetadataExt, path::Path};

use moat_shared::plan::Ids;
use serde::{Deserialize, Serialize};

/// The agent, everywhere.
pub(super) const AGENT: u32 = 1000;
/// The relay, where it can be somebody else.
pub(super) const RELAY: u32 = 998;
/// PID 1, where it can be somebody else.
pub(super) const INIT: u32 = 0;

/// The ids that no system hands out: above containers' ranges, below the sign bit.
pub(super) const HIGH_FIRST: u32 = 0x7000_0000;
const HIGH_SLOTS: u32 = 4096;
const SLOT: u32 = 0x1_0000;

/// One line of a uid or gid map: a single id inside is a single id outside.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Line {
    pub(super) inside: u32,
    pub(super) outside: u32,
}

/// Both maps of a user namespace.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Maps {
    pub(super) uids: Vec<Line>,
    pub(super) gids: Vec<Line>,
}

/// How the sandbox's users come about.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) enum Users {
    /// Root builds the sandbox and maps what it likes. `disguise` shows files of root as the agent's.
    Root { maps: Maps, disguise: bool },
    /// A user, with newuidmap's help.
    Range { maps: Maps },
    /// A user alone.
    Single { uid: u32, gid: u32 },
}

impl Users {
    /// The maps of the sandbox's own namespace, as its builder sees them. A user builds in a namespace that already
    /// has the sandbox's ids, so nothing changes in the second one.
    pub(super) fn inner(&self) -> Maps {
        let same = |maps: &Maps| {
            let same =
                |lines: &[Line]| lines.iter().map(|l| Line { inside: l.inside, outside: l.inside }).collect();
            Maps { uids: same(&maps.uids), gids: same(&maps.gids) }
        };
        match self {
            Self::Root { maps, .. } => maps.clone(),
            Self::Range { maps } => same(maps),
            Self::Single { .. } => {
                let line = vec![Line { inside: AGENT, outside: AGENT }];
                Maps { uids: line.clone(), gids: line }
            }
        }
    }

    /// PID 1, as the sandbox sees it.
    pub(super) fn init(&self) -> Ids {
        self.or_agent(INIT)
    }

    /// The relay, as the sandbox sees it.
    pub(super) fn relay(&self) -> Ids {
        self.or_agent(RELAY)
    }

    /// The agent, as the sandbox sees it.
    pub(super) fn agent() -> Ids {
        Ids { uid: AGENT, gid: AGENT }
    }

    fn or_agent(&self, id: u32) -> Ids {
        match self {
            Self::Single { .. } => Self::agent(),
            Self::Root { .. } | Self::Range { .. } => Ids { uid: id, gid: id },
        }
    }

    /// An id of the sandbox, as the builder has to name it.
    pub(super) fn as_built(&self, ids: Ids) -> Ids {
        let maps = self.inner();
        let find = |lines: &[Line], id: u32| lines.iter().find(|l| l.inside == id).map_or(id, |l| l.outside);
        Ids { uid: find(&maps.uids, ids.uid), gid: find(&maps.gids, ids.gid) }
    }
}

/// What decides who is who.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Host {
    pub(super) uid: u32,
    pub(super) gid: u32,
    /// The workspace's owner.
    pub(super) owner: Ids,
    /// The user's first range of /etc/subuid and of /etc/subgid, when newuidmap and newgidmap are there.
    pub(super) range: Option<(u32, u32)>,
    /// Ids that are somebody's, each with how many: /etc/passwd, /etc/subuid and the like.
    pub(super) taken: Vec<(u32, u32)>,
    /// Something that differs from run to run.
    pub(super) seed: u32,
}

/// Decides who is who.
pub(super) fn choose(host: &Host) -> Users {
    if host.uid != 0 {
        return match host.range {
            Some((uids, gids)) => Users::Range {
                maps: Maps { uids: three(uids, uids + 1, host.uid), gids: three(gids, gids + 1, host.gid) },
            },
            None => Users::Single { uid: host.uid, gid: host.gid },
        };
    }
    let base = high_range(host);
    let disguise = host.owner.uid == 0;
    let uid = if disguise { base + AGENT } else { host.owner.uid };
    // A group that is root's gives no rights here: the agent has one of its own.
    let gid = if disguise || host.owner.gid == 0 { base + AGENT } else { host.owner.gid };
    Users::Root {
        maps: Maps { uids: three(base, base + RELAY, uid), gids: three(base, base + RELAY, gid) },
        disguise,
    }
}

fn three(init: u32, relay: u32, agent: u32) -> Vec<Line> {
    [(INIT, init), (RELAY, relay), (AGENT, agent)].map(|(inside, outside)| Line { inside, outside }).to_vec()
}

/// The first of the run's slots that is nobody's.
fn high_range(host: &Host) -> u32 {
    let slots = (0..HIGH_SLOTS).map(|n| HIGH_FIRST + (host.seed.wrapping_add(n) % HIGH_SLOTS) * SLOT);
    let free = |base: &u32| {
        let (first, last) = (u64::from(*base), u64::from(*base) + u64::from(SLOT));
        !host
            .taken
            .iter()
            .any(|(start, count)| u64::from(*start) < last && u64::from(*start) + u64::from(*count) > first)
    };
    slots.into_iter().find(free).unwrap_or(HIGH_FIRST)
}

/// Looks at this machine.
pub(super) fn survey(workspace: &Path, seed: u32, mappers: bool) -> io::Result<Host> {
    let owner = fs::metadata(workspace)?;
    let (uid, gid) = (nix::unistd::getuid().as_raw(), nix::unistd::getgid().as_raw());
    let text = |path| fs::read_to_string(path).unwrap_or_default();
    let (passwd, group) = (text("/etc/passwd"), text("/etc/group"));
    let (subuid, subgid) = (text("/etc/subuid"), text("/etc/subgid"));
    let name = passwd_name(&passwd, uid);
    let range =
        mappers.then(|| Some((range_of(&subuid, name, uid)?, range_of(&subgid, name, uid)?))).flatten();
    let single =
        |text: &str| text.lines().filter_map(|l| l.split(':').nth(2)?.parse().ok()).collect::<Vec<u32>>();
    let mut taken: Vec<(u32, u32)> =
        single(&passwd).into_iter().chain(single(&group)).map(|id| (id, 1)).collect();
    taken.extend(ranges(&subuid).chain(ranges(&subgid)).map(|(_, start, count)| (start, count)));
    let owner = Ids { uid: owner.uid(), gid: owner.gid() };
    Ok(Host { uid, gid, owner, range, taken, seed })
}

fn passwd_name(passwd: &str, uid: u32) -> Option<&str> {
    let mut lines = passwd.lines().map(|line| line.split(':'));
    lines.find_map(|mut fields| {
        let name = fields.next()?;
        (fields.nth(1)?.parse() == Ok(uid)).then_some(name)
    })
}

/// The lines of /etc/subuid: whose, from where, how many.
fn ranges(text: &str) -> impl Iterator<Item = (&str, u32, u32)> {
    text.lines().filter_map(|line| {
        let mut fields = line.trim().split(':');
        Some((fields.next()?, fields.next()?.parse().ok()?, fields.next()?.parse().ok()?))
    })
}

/// The first range of this user that holds the two ids that are needed.
fn range_of(text: &str, name: Option<&str>, uid: u32) -> Option<u32> {
    let uid = uid.to_string();
    let mine = |who: &str| Some(who) == name || who == uid;
    ranges(text).find(|(who, start, count)| mine(who) && *count >= 2 && *start > 0).map(|(_, start, _)| start)
}

#[cfg(test)]
mod tests {
    use super::*;
    use test_case::test_case;

    fn host(uid: u32, owner: u32, range: Option<(u32, u32)>) -> Host {
        let owner = Ids { uid: owner, gid: owner };
        Host { uid, gid: uid, owner, range, taken: vec![], seed: 3 }
    }

    fn agent_outside(users: &Users) -> u32 {
        match users {
            Users::Root { maps, .. } | Users::Range { maps } => {
                maps.uids.iter().find(|l| l.inside == AGENT).unwrap().outside
            }
            Users::Single { uid, .. } => *uid,
        }
    }

    #[test_case(&host(0, 0, None) => 0x7003_0000 + AGENT; "root's workspace: a high id")]
    #[test_case(&host(0, 1234, None) => 1234; "started by root, somebody's workspace")]
    #[test_case(&host(500, 500, None) => 500; "alone")]
    #[test_case(&host(500, 500, Some((100_000, 200_000))) => 500; "with a range")]
    fn the_agent_outside(host: &Host) -> u32 {
        agent_outside(&choose(host))
    }

    #[test]
    fn nobody_outside_is_root() {
        for host in [host(0, 0, None), host(0, 7, None), host(500, 0, Some((100_000, 200_000)))] {
            let (Users::Root { maps, .. } | Users::Range { maps }) = choose(&host) else { panic!("maps") };
            assert_eq!(maps.uids.len(), 3);
            assert!(maps.uids.iter().chain(&maps.gids).all(|line| line.outside != 0), "{maps:?}");
        }
    }

    #[test]
    fn a_workspace_of_root_s_group_gives_no_group() {
        let mut host = host(0, 1234, None);
        host.owner.gid = 0;
        let Users::Root { maps, disguise } = choose(&host) else { panic!("root") };
        assert!(!disguise);
        assert!(maps.gids.iter().all(|line| line.outside >= HIGH_FIRST));
    }

    #[test]
    fn a_taken_slot_is_left_alone() {
        let mut host = host(0, 0, None);
        host.taken = vec![(0x7003_8000, 10), (0x7004_ffff, 1)];
        assert_eq!(agent_outside(&choose(&host)), 0x7005_0000 + AGENT);
    }

    #[test]
    fn a_user_builds_with_the_ids_of_the_sandbox() {
        let users = choose(&host(500, 500, Some((100_000, 200_000))));
        assert_eq!(users.as_built(users.relay()), Ids { uid: RELAY, gid: RELAY });
        let alone = choose(&host(500, 500, None));
        assert_eq!(alone.init(), Users::agent());
        assert_eq!(alone.as_built(Users::agent()), Ids { uid: AGENT, gid: AGENT });
    }

    #[test_case("alice:100000:65536\n" => Some(100_000); "by name")]
    #[test_case("500:300000:65536\n" => Some(300_000); "by number")]
    #[test_case("bob:100000:65536\n" => None; "somebody else's")]
    #[test_case("alice:100000:1\nalice:7000:2" => Some(7000); "too small, then large enough")]
    #[test_case("alice:0:65536" => None; "root is never given away")]
    #[test_case("alice:x:y\n::\n" => None; "nonsense")]
    fn subordinate_ranges(text: &str) -> Option<u32> {
        range_of(text, Some("alice"), 500)
    }

    #[test]
    fn names() {
        assert_eq!(
            passwd_name("root:x:0:0::/root:/bin/sh\nalice:x:500:500::/:/bin/sh\n", 500),
            Some("alice")
        );
        assert_eq!(passwd_name("root:x:0:0::/root:/bin/sh\n", 500), None);
    }
}
