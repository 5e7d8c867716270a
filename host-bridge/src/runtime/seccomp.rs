//! What no process of a sandbox may ask the kernel for, whatever its uid. In namespaces the builder installs the filters, in a
//! container PID 1 does, besides the engine's own.
//!
//! | refused | why |
//! |---|---|
//! | `socket(AF_VSOCK)` | the machine may itself be a guest, and its host may listen |
//! | io_uring | it opens sockets that no filter sees |
//! | a mode with the set-uid or set-gid bit | the workspace's files belong to somebody on the host |
//! | `openat2` | its mode lies in memory, where no filter sees it |
//! | `userfaultfd` | it holds the kernel still in the middle of a system call, which is what exploits need |
//! | keyrings | they are not part of any namespace |
//! | the kernel's other ABIs (i386, x32) | the rules above are written for one |

use std::collections::BTreeMap;

use moat_shared::plan::{Filter, Instruction};
use seccompiler::{
    BpfProgram, SeccompAction, SeccompCmpArgLen as Length, SeccompCmpOp as Op, SeccompCondition as Condition,
    SeccompFilter, SeccompRule as Rule, TargetArch, sock_filter,
};

/// The filter cannot be made or installed.
#[derive(Debug, thiserror::Error)]
pub(crate) enum SeccompError {
    #[error("there is no system call filter for this architecture")]
    Architecture,
    #[error("the system call filter cannot be built")]
    Build(#[from] seccompiler::BackendError),
    #[error("the kernel refuses the system call filter")]
    Install(#[from] seccompiler::Error),
}

/// The set-uid and the set-gid bit.
const SET_ID_BITS: [u64; 2] = [0o4000, 0o2000];
/// Of `open`: a mode counts only where a file is made, by O_CREAT or by O_TMPFILE (without its O_DIRECTORY).
const CREATING_FLAGS: [u64; 2] =
    [libc::O_CREAT.unsigned_abs() as u64, (libc::O_TMPFILE & !libc::O_DIRECTORY).unsigned_abs() as u64];

/// Installs the filters for this process and everything it becomes. Needs no-new-privileges.
pub(super) fn install() -> Result<(), SeccompError> {
    for program in programs()? {
        seccompiler::apply_filter(&program)?;
    }
    Ok(())
}

/// The filters for a PID 1 that installs them itself.
pub(super) fn filters() -> Result<Vec<Filter>, SeccompError> {
    let filter = |program: BpfProgram| {
        Filter(program.iter().map(|step| Instruction(step.code, step.jt, step.jf, step.k)).collect())
    };
    Ok(programs()?.into_iter().map(filter).collect())
}

fn programs() -> Result<Vec<BpfProgram>, SeccompError> {
    let architecture =
        TargetArch::try_from(std::env::consts::ARCH).map_err(|_| SeccompError::Architecture)?;
    let filter = |rules, errno: i32| -> Result<BpfProgram, SeccompError> {
        let refuse = SeccompAction::Errno(errno.unsigned_abs());
        Ok(SeccompFilter::new(rules, SeccompAction::Allow, refuse, architecture)?.try_into()?)
    };
    Ok(vec![foreign_abi(), filter(forbidden()?, libc::EPERM)?, filter(absent(), libc::ENOSYS)?])
}

/// Calls that seem not to be there, so that programs fall back to older ones.
fn absent() -> BTreeMap<i64, Vec<Rule>> {
    let calls =
        [libc::SYS_io_uring_setup, libc::SYS_io_uring_enter, libc::SYS_io_uring_register, libc::SYS_openat2];
    calls.into_iter().map(|call| (call, vec![])).collect()
}

/// Calls that are refused, some with certain arguments only.
fn forbidden() -> Result<BTreeMap<i64, Vec<Rule>>, SeccompError> {
    let vsock = Condition::new(0, Length::Dword, Op::Eq, libc::AF_VSOCK.unsigned_abs().into())?;
    let mut rules = BTreeMap::from([
        (libc::SYS_socket, vec![Rule::new(vec![vsock])?]),
        (libc::SYS_add_key, vec![]),
        (libc::SYS_request_key, vec![]),
        (libc::SYS_keyctl, vec![]),
        (libc::SYS_userfaultfd, vec![]),
    ]);
    for (call, mode) in calls_with_a_mode() {
        let with_bit = |bit| Condition::new(mode, Length::Dword, Op::MaskedEq(bit), bit);
        let each = SET_ID_BITS.into_iter().map(|bit| Ok(Rule::new(vec![with_bit(bit)?])?));
        rules.insert(call, each.collect::<Result<Vec<_>, SeccompError>>()?);
    }
    for (call, flags, mode) in calls_that_may_create() {
        let mut each = Vec::new();
        for creates in CREATING_FLAGS {
            for bit in SET_ID_BITS {
                each.push(Rule::new(vec![
                    Condition::new(flags, Length::Dword, Op::MaskedEq(creates), creates)?,
                    Condition::new(mode, Length::Dword, Op::MaskedEq(bit), bit)?,
                ])?);
            }
        }
        rules.insert(call, each);
    }
    Ok(rules)
}

/// System calls and the index of the argument that is a mode.
fn calls_with_a_mode() -> Vec<(i64, u8)> {
    let mut calls = vec![
        (libc::SYS_fchmod, 1),
        (libc::SYS_fchmodat, 2),
        (libc::SYS_fchmodat2, 2),
        (libc::SYS_mkdirat, 2),
        (libc::SYS_mknodat, 2),
    ];
    #[cfg(target_arch = "x86_64")]
    calls.extend([(libc::SYS_chmod, 1), (libc::SYS_creat, 1), (libc::SYS_mkdir, 1), (libc::SYS_mknod, 1)]);
    calls.sort_unstable();
    calls
}

/// System calls that make a file if a flag says so: the indexes of flags and mode.
fn calls_that_may_create() -> Vec<(i64, u8, u8)> {
    let mut calls = vec![(libc::SYS_openat, 2, 3)];
    #[cfg(target_arch = "x86_64")]
    calls.push((libc::SYS_open, 1, 2));
    calls.sort_unstable();
    calls
}

/// x32 has the same architecture as x86_64 but other numbers, all with one bit: seem not to know them. Every other
/// foreign ABI has an architecture of its own, and seccompiler's programs end a process that uses one.
fn foreign_abi() -> BpfProgram {
    const LOAD_WORD: u16 = 0x20;
    const JUMP_GREATER_OR_EQUAL: u16 = 0x35;
    const RETURN: u16 = 0x06;
    const NUMBER_OFFSET: u32 = 0;
    const X32_BIT: u32 = 0x4000_0000;
    let enosys = libc::SECCOMP_RET_ERRNO | libc::ENOSYS.unsigned_abs();
    vec![
        sock_filter { code: LOAD_WORD, jt: 0, jf: 0, k: NUMBER_OFFSET },
        sock_filter { code: JUMP_GREATER_OR_EQUAL, jt: 0, jf: 1, k: X32_BIT },
        sock_filter { code: RETURN, jt: 0, jf: 0, k: enosys },
        sock_filter { code: RETURN, jt: 0, jf: 0, k: libc::SECCOMP_RET_ALLOW },
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_program_can_be_built() {
        assert_eq!(programs().unwrap().len(), 3);
    }

    #[test]
    fn vsock_is_the_only_family_that_is_refused() {
        assert_eq!(forbidden().unwrap()[&libc::SYS_socket].len(), 1);
        assert_eq!(libc::AF_VSOCK, 40);
    }

    /// What a thread under the filters is told; filters are a thread's own, and end with it.
    fn filtered<T: Send + 'static>(attempt: impl FnOnce() -> T + Send + 'static) -> T {
        let under_filters = move || {
            nix::sys::prctl::set_no_new_privs().unwrap();
            install().unwrap();
            attempt()
        };
        std::thread::spawn(under_filters).join().unwrap()
    }

    #[test]
    fn sockets_to_the_machine_s_own_host_are_refused() {
        use nix::sys::socket::{AddressFamily, SockFlag, SockType, socket};
        let open = |family| {
            filtered(move || socket(family, SockType::Stream, SockFlag::SOCK_CLOEXEC, None).map(drop))
        };
        assert_eq!(open(AddressFamily::Vsock), Err(nix::Error::EPERM));
        assert_eq!(open(AddressFamily::Inet), Ok(()));
        assert_eq!(open(AddressFamily::Unix), Ok(()));
    }

    #[test]
    fn no_way_to_make_a_set_id_file() {
        use nix::{
            fcntl::{AT_FDCWD, OFlag, open},
            sys::stat::{FchmodatFlags, Mode, fchmodat, mkdirat},
        };
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().to_path_buf();
        std::fs::write(path.join("file"), "").unwrap();
        filtered(move || {
            for bit in [Mode::S_ISUID, Mode::S_ISGID] {
                let mode = Mode::S_IRWXU | bit;
                let chmod = |mode| fchmodat(AT_FDCWD, &path.join("file"), mode, FchmodatFlags::FollowSymlink);
                assert_eq!(chmod(mode), Err(nix::Error::EPERM));
                assert_eq!(chmod(Mode::S_IRWXU), Ok(()));
                for how in [OFlag::O_CREAT, OFlag::O_TMPFILE] {
                    let place = if how == OFlag::O_CREAT { path.join("new") } else { path.clone() };
                    let create = |mode| open(&place, how | OFlag::O_RDWR | OFlag::O_CLOEXEC, mode).map(drop);
                    assert_eq!(create(mode), Err(nix::Error::EPERM));
                    assert_ne!(create(Mode::S_IRWXU), Err(nix::Error::EPERM));
                }
                assert_eq!(mkdirat(AT_FDCWD, &path.join("dir"), mode), Err(nix::Error::EPERM));
                // Without a file to make, what lies in the mode's place means nothing.
                assert!(open(&path.join("file"), OFlag::O_RDONLY | OFlag::O_CLOEXEC, mode).is_ok());
            }
        });
    }

    #[cfg(target_arch = "x86_64")]
    #[test]
    fn another_abi_s_numbers_are_unknown() {
        let program = foreign_abi();
        assert_eq!(program[1].k, 0x4000_0000);
        assert_eq!((program[1].jt, program[1].jf), (0, 1), "at or above the bit: the refusal comes next");
        assert_eq!(program[2].k & libc::SECCOMP_RET_ACTION_FULL, libc::SECCOMP_RET_ERRNO);
    }
}
