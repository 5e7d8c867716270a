//! Who the user of a container image is: looked up in the sandbox's own /etc/passwd and /etc/group, as text.
//!
//! No library is asked: a static C library would load the image's own for that. What an engine does with `USER`, this
//! does as well: nothing means root, a number needs no entry, and `user:group` names both.

use std::{
    fs, io,
    os::unix::fs::{MetadataExt, PermissionsExt},
    path::{Path, PathBuf},
};

use moat_shared::plan::{Ids, OTHER_HOME, Plan, User};
use nix::{
    sys::statvfs::{FsFlags, statvfs},
    unistd,
};

/// Larger files are not read: they are no passwd.
const FILE: u64 = 4 << 20;
/// Whose the relay is: numbers that no image gives away. The second serves where the first is the agent's.
const RELAY: [u32; 2] = [64_642, 64_643];

/// The image's user is nobody.
#[derive(Debug, thiserror::Error)]
pub(crate) enum UserError {
    #[error("the image's user {0:?} is not in its /etc/passwd")]
    User(String),
    #[error("the image's group {0:?} is not in its /etc/group")]
    Group(String),
    #[error("cannot make {OTHER_HOME}, where the agent is to live")]
    Home(#[source] io::Error),
    #[error("cannot read {path}")]
    Read { path: &'static str, source: io::Error },
}

/// Replaces users of the plan by what the image says, if it is to say it.
pub(crate) fn settle(plan: &mut Plan) -> Result<(), UserError> {
    let Some(spec) = plan.image_user.take() else { return Ok(()) };
    let tables = Tables { passwd: read("/etc/passwd")?, group: read("/etc/group")? };
    let own = Ids { uid: unistd::geteuid().as_raw(), gid: unistd::getegid().as_raw() };
    let own = (!may_change_users()).then_some(own);
    let given = plan.env.get("HOME").map(PathBuf::from).filter(|home| home.is_absolute());
    (plan.user, plan.relay_user) = tables.users(&spec, own)?;
    plan.user.home = given.unwrap_or_else(|| plan.user.home.clone());
    if !is_home_of(&plan.user.home, plan.user.ids) {
        plan.user.home = OTHER_HOME.into();
        make(&plan.user.home).map_err(UserError::Home)?;
    }
    Ok(())
}

/// Everybody's, as /tmp is; one that is there stays as it is.
fn make(home: &Path) -> io::Result<()> {
    match fs::create_dir(home) {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(()),
        made => made.and_then(|()| fs::set_permissions(home, fs::Permissions::from_mode(0o1777))),
    }
}

/// Can PID 1 make processes of other users? Root without its capabilities cannot either.
fn may_change_users() -> bool {
    const SETGID_AND_SETUID: u64 = 1 << 6 | 1 << 7;
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    let effective = status.lines().find_map(|line| line.strip_prefix("CapEff:"));
    let effective = effective.and_then(|digits| u64::from_str_radix(digits.trim(), 16).ok()).unwrap_or(0);
    effective & SETGID_AND_SETUID == SETGID_AND_SETUID
}

/// A file's text; nothing where there is none, as in an image made from scratch.
fn read(path: &'static str) -> Result<String, UserError> {
    let text = fs::metadata(path).and_then(|about| {
        if !about.is_file() || about.len() > FILE {
            return Err(io::ErrorKind::InvalidData.into());
        }
        fs::read(path)
    });
    match text {
        Ok(text) => Ok(String::from_utf8_lossy(&text).into_owned()),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(String::new()),
        Err(source) => Err(UserError::Read { path, source }),
    }
}

/// May this user write into that directory?
fn is_home_of(home: &Path, ids: Ids) -> bool {
    let Ok(about) = fs::metadata(home) else { return false };
    let read_only = statvfs(home).is_ok_and(|fs| fs.flags().contains(FsFlags::ST_RDONLY));
    let mode = about.permissions().mode();
    let bits = match (about.uid() == ids.uid, about.gid() == ids.gid) {
        (true, _) => mode >> 6,
        (false, true) => mode >> 3,
        (false, false) => mode,
    };
    about.is_dir() && !read_only && bits & 0o3 == 0o3
}

/// What the sandbox knows of users and groups.
#[derive(Debug, Default)]
struct Tables {
    passwd: String,
    group: String,
}

/// A line of /etc/passwd.
#[derive(Debug, Clone)]
struct Entry {
    name: String,
    ids: Ids,
    home: PathBuf,
}

impl Tables {
    /// The agent and the relay. `own`: everybody is who PID 1 is.
    fn users(&self, spec: &str, own: Option<Ids>) -> Result<(User, Ids), UserError> {
        if let Some(own) = own {
            let entry = self.entry(|entry| entry.ids.uid == own.uid);
            return Ok((user(entry, own), own));
        }
        let (name, group) = spec.split_once(':').map_or((spec, None), |(user, group)| (user, Some(group)));
        let name = if name.is_empty() { "0" } else { name };
        // A name of digits only is a name first, as for the engines.
        let named = self.entry(|entry| entry.name == name);
        let (entry, uid) = match (named, name.parse::<u32>()) {
            (Some(entry), _) => (Some(entry.clone()), entry.ids.uid),
            (None, Ok(uid)) => (self.entry(|entry| entry.ids.uid == uid), uid),
            (None, Err(_)) => return Err(UserError::User(name.to_owned())),
        };
        let gid = match group.filter(|group| !group.is_empty()) {
            Some(group) => self.group(group)?,
            None => entry.as_ref().map_or(0, |entry| entry.ids.gid),
        };
        let relay = if uid == RELAY[0] { RELAY[1] } else { RELAY[0] };
        Ok((user(entry, Ids { uid, gid }), Ids { uid: relay, gid: relay }))
    }

    fn entry(&self, wanted: impl Fn(&Entry) -> bool) -> Option<Entry> {
        self.passwd.lines().filter_map(entry).find(wanted)
    }

    fn group(&self, wanted: &str) -> Result<u32, UserError> {
        let lines = self.group.lines().filter_map(|line| {
            let mut fields = line.split(':');
            Some((fields.next()?, fields.nth(1)?.parse::<u32>().ok()?))
        });
        let known = lines.into_iter().find(|(name, _)| *name == wanted).map(|(_, gid)| gid);
        known.or_else(|| wanted.parse().ok()).ok_or_else(|| UserError::Group(wanted.to_owned()))
    }
}

fn entry(line: &str) -> Option<Entry> {
    let fields: Vec<&str> = line.split(':').collect();
    let [name, _, uid, gid, _, home, ..] = fields.as_slice() else { return None };
    let ids = Ids { uid: uid.parse().ok()?, gid: gid.parse().ok()? };
    Some(Entry { name: (*name).to_owned(), ids, home: PathBuf::from(home) })
}

fn user(entry: Option<Entry>, ids: Ids) -> User {
    match entry {
        Some(entry) if entry.home.is_absolute() => User { ids, name: entry.name, home: entry.home },
        Some(entry) => User { ids, name: entry.name, home: "/".into() },
        None => User { ids, name: ids.uid.to_string(), home: "/".into() },
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::plan;
    use test_case::test_case;

    const PASSWD: &str = "root:x:0:0:root:/root:/bin/sh\n# no entry\nbroken:x\nnode:x:1000:1001::/home/node:/bin/sh\n\
                          77:x:78:79::/home/digits:/bin/sh\nodd:x:64642:1::relative:/bin/sh\n";
    const GROUP: &str = "root:x:0:\nstaff:x:50:node\n";

    fn tables() -> Tables {
        Tables { passwd: PASSWD.to_owned(), group: GROUP.to_owned() }
    }

    #[test_case("" => "root 0:0 /root relay 64642"; "nothing means root")]
    #[test_case("node" => "node 1000:1001 /home/node relay 64642"; "a name")]
    #[test_case("1000" => "node 1000:1001 /home/node relay 64642"; "the number of a name")]
    #[test_case("4711" => "4711 4711:0 / relay 64642"; "a number that nobody has")]
    #[test_case("77" => "77 78:79 /home/digits relay 64642"; "a name of digits")]
    #[test_case("node:staff" => "node 1000:50 /home/node relay 64642"; "with a group")]
    #[test_case("node:7" => "node 1000:7 /home/node relay 64642"; "with the number of a group")]
    #[test_case(":staff" => "root 0:50 /root relay 64642"; "a group alone")]
    #[test_case("odd" => "odd 64642:1 / relay 64643"; "never the relay's uid, never a relative home")]
    #[test_case("nobody" => "the image's user \"nobody\" is not in its /etc/passwd"; "an unknown name")]
    #[test_case("node:wheel" => "the image's group \"wheel\" is not in its /etc/group"; "an unknown group")]
    fn with_capabilities(spec: &str) -> String {
        match tables().users(spec, None) {
            Ok((User { ids, name, home }, relay)) => {
                format!("{name} {}:{} {} relay {}", ids.uid, ids.gid, home.display(), relay.uid)
            }
            Err(error) => error.to_string(),
        }
    }

    #[test]
    fn without_capabilities_everybody_is_who_pid_1_is() {
        let own = Ids { uid: 1000, gid: 5 };
        let (user, relay) = tables().users("root", Some(own)).unwrap();
        assert_eq!((user.ids, user.name.as_str(), relay), (own, "node", own));
    }

    #[test]
    fn an_image_from_scratch_has_numbers_only() {
        let (user, _) = Tables::default().users("1234:5678", None).unwrap();
        assert_eq!((user.ids, user.home), (Ids { uid: 1234, gid: 5678 }, "/".into()));
        assert!(Tables::default().users("node", None).is_err());
    }

    #[test]
    fn a_home_that_cannot_be_written_is_replaced() {
        let directory = tempfile::tempdir().unwrap();
        let about = fs::metadata(directory.path()).unwrap();
        let owner = Ids { uid: about.uid(), gid: about.gid() };
        let stranger = Ids { uid: owner.uid + 1, gid: owner.gid + 1 };
        assert!(is_home_of(directory.path(), owner));
        assert!(!is_home_of(directory.path(), stranger));
        fs::set_permissions(directory.path(), fs::Permissions::from_mode(0o777)).unwrap();
        assert!(is_home_of(directory.path(), stranger));
        assert!(!is_home_of(Path::new("/proc"), stranger), "not one's own");
        assert!(!is_home_of(&directory.path().join("none"), owner));
    }

    #[test]
    fn a_plan_that_knows_stays_as_it_is() {
        let mut known = plan();
        settle(&mut known).unwrap();
        assert_eq!(known, plan());
    }
}
