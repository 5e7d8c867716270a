//! The system calls that nix does not offer, each behind a safe function. The only unsafe code of this crate.
#![expect(unsafe_code, reason = "system calls that neither std nor nix offer")]

use std::{
    ffi::CString,
    io::{self, IoSlice, IoSliceMut},
    mem,
    os::{
        fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd},
        unix::ffi::OsStrExt,
    },
    path::Path,
};

use nix::{
    sched::CloneFlags,
    sys::socket::{ControlMessage, ControlMessageOwned, MsgFlags, recvmsg, sendmsg},
    unistd::Pid,
};

/// Flags of `mount_setattr`.
pub(super) mod attribute {
    pub(crate) const READ_ONLY: u64 = 0x1;
    pub(crate) const NO_SUID: u64 = 0x2;
    pub(crate) const NO_DEV: u64 = 0x4;
    pub(crate) const NO_EXEC: u64 = 0x8;
    pub(super) const ID_MAPPED: u64 = 0x0010_0000;
}

const OPEN_TREE_CLONE: libc::c_uint = 1;
const OPEN_TREE_CLOEXEC: libc::c_uint = libc::O_CLOEXEC as libc::c_uint;
const RECURSIVE: libc::c_uint = libc::AT_RECURSIVE as libc::c_uint;
const EMPTY_PATH: libc::c_uint = libc::AT_EMPTY_PATH as libc::c_uint;
const MOVE_MOUNT_FROM_EMPTY_PATH: libc::c_uint = 0x04;
const MOVE_MOUNT_TO_EMPTY_PATH: libc::c_uint = 0x40;

/// `struct mount_attr` of linux/mount.h.
#[repr(C)]
struct MountAttr {
    set: u64,
    clear: u64,
    propagation: u64,
    userns: u64,
}

/// The window's size, as `struct winsize` has it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub(crate) struct Size {
    pub(crate) rows: u16,
    pub(crate) columns: u16,
}

fn checked(result: libc::c_long) -> io::Result<RawFd> {
    if result < 0 {
        return Err(io::Error::last_os_error());
    }
    RawFd::try_from(result).map_err(io::Error::other)
}

fn text(path: &Path) -> io::Result<CString> {
    CString::new(path.as_os_str().as_bytes()).map_err(io::Error::from)
}

/// `fork` into new namespaces. `None` is the child. Only for a process with one thread.
pub(super) fn fork(namespaces: CloneFlags) -> io::Result<Option<Pid>> {
    let flags = libc::c_long::from(namespaces.bits()) | libc::c_long::from(libc::SIGCHLD);
    // SAFETY: without CLONE_VM this is fork(2): the child gets a copy of everything, and no other thread exists that
    // could hold a lock. A null stack means that the child goes on on the copy of this one.
    let pid = checked(unsafe { libc::syscall(libc::SYS_clone, flags, 0, 0, 0, 0) })?;
    Ok((pid > 0).then(|| Pid::from_raw(pid)))
}

/// Holds a process: its number means nobody else from now on.
pub(super) fn pidfd(pid: Pid) -> io::Result<OwnedFd> {
    // SAFETY: integers only.
    let fd = checked(unsafe { libc::syscall(libc::SYS_pidfd_open, pid.as_raw(), 0) })?;
    // SAFETY: the kernel has just made this descriptor for us.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// Leaves at once: no destructors, no buffers. For forked children.
pub(super) fn exit_now(code: u8) -> ! {
    // SAFETY: _exit(2) takes an integer and does not return.
    unsafe { libc::_exit(i32::from(code)) }
}

/// A detached copy of the mounts at an open path and below.
pub(super) fn clone_tree(at: &OwnedFd) -> io::Result<OwnedFd> {
    let flags = OPEN_TREE_CLONE | OPEN_TREE_CLOEXEC | RECURSIVE | EMPTY_PATH;
    let (at, here) = (at.as_raw_fd(), c"".as_ptr());
    // SAFETY: the path is a static C string.
    let fd = checked(unsafe { libc::syscall(libc::SYS_open_tree, at, here, flags) })?;
    // SAFETY: the kernel has just made this descriptor for us.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// Puts a detached tree of mounts on `target`.
pub(super) fn attach_tree(tree: &OwnedFd, target: &OwnedFd) -> io::Result<()> {
    let (tree, target) = (tree.as_raw_fd(), target.as_raw_fd());
    let (here, flags) = (c"".as_ptr(), MOVE_MOUNT_FROM_EMPTY_PATH | MOVE_MOUNT_TO_EMPTY_PATH);
    // SAFETY: both paths are one static C string.
    checked(unsafe { libc::syscall(libc::SYS_move_mount, tree, here, target, here, flags) }).map(drop)
}

/// Adds flags to the mount at `path`, and to all below.
pub(super) fn restrict(path: &Path, attributes: u64, recursive: bool) -> io::Result<()> {
    let path = text(path)?;
    let flags = if recursive { RECURSIVE } else { 0 };
    set_attributes(
        libc::AT_FDCWD,
        &path,
        flags,
        &MountAttr { set: attributes, clear: 0, propagation: 0, userns: 0 },
    )
}

/// Adds flags to a detached tree, and shows its files with other owners: those of the map of `namespace`.
pub(super) fn restrict_tree(tree: &OwnedFd, attributes: u64, namespace: Option<&OwnedFd>) -> io::Result<()> {
    let (mapped, userns) = match namespace {
        Some(fd) => (attribute::ID_MAPPED, u64::try_from(fd.as_raw_fd()).map_err(io::Error::other)?),
        None => (0, 0),
    };
    let wanted = MountAttr { set: attributes | mapped, clear: 0, propagation: 0, userns };
    set_attributes(tree.as_raw_fd(), c"", EMPTY_PATH | RECURSIVE, &wanted)
}

fn set_attributes(
    at: RawFd,
    path: &std::ffi::CStr,
    flags: libc::c_uint,
    wanted: &MountAttr,
) -> io::Result<()> {
    let size = mem::size_of::<MountAttr>();
    // SAFETY: `path` and `wanted` outlive the call, and `size` is that of `wanted`.
    let result =
        unsafe { libc::syscall(libc::SYS_mount_setattr, at, path.as_ptr(), flags, &raw const *wanted, size) };
    checked(result).map(drop)
}

/// Takes the interface `lo` of this network namespace up.
pub(super) fn loopback_up(socket: BorrowedFd<'_>) -> io::Result<()> {
    // SAFETY: an all-zero ifreq is valid: it holds integers and byte arrays.
    let mut request: libc::ifreq = unsafe { mem::zeroed() };
    request.ifr_name[0] = b'l'.cast_signed();
    request.ifr_name[1] = b'o'.cast_signed();
    request.ifr_ifru.ifru_flags = libc::c_short::try_from(libc::IFF_UP).map_err(io::Error::other)?;
    // SAFETY: SIOCSIFFLAGS reads one ifreq, which outlives the call.
    checked(unsafe { libc::ioctl(socket.as_raw_fd(), libc::SIOCSIFFLAGS, &raw const request) }.into())
        .map(drop)
}

/// Unlocks a new terminal pair, sets its size, and opens its other end.
pub(super) fn open_peer(master: BorrowedFd<'_>, size: Size) -> io::Result<OwnedFd> {
    let unlocked: libc::c_int = 0;
    // SAFETY: TIOCSPTLCK reads one int, which outlives the call.
    checked(unsafe { libc::ioctl(master.as_raw_fd(), libc::TIOCSPTLCK, &raw const unlocked) }.into())?;
    set_size(master, size)?;
    let flags = libc::O_RDWR | libc::O_NOCTTY | libc::O_CLOEXEC;
    // SAFETY: TIOCGPTPEER takes its argument by value and returns a descriptor.
    let fd = checked(unsafe { libc::ioctl(master.as_raw_fd(), libc::TIOCGPTPEER, flags) }.into())?;
    // SAFETY: the kernel has just made this descriptor for us.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// Sets a terminal's size.
pub(crate) fn set_size(terminal: BorrowedFd<'_>, size: Size) -> io::Result<()> {
    let window = libc::winsize { ws_row: size.rows, ws_col: size.columns, ws_xpixel: 0, ws_ypixel: 0 };
    // SAFETY: TIOCSWINSZ reads one winsize, which outlives the call.
    checked(unsafe { libc::ioctl(terminal.as_raw_fd(), libc::TIOCSWINSZ, &raw const window) }.into())
        .map(drop)
}

/// A terminal's size.
pub(crate) fn size(terminal: BorrowedFd<'_>) -> io::Result<Size> {
    let mut window = libc::winsize { ws_row: 0, ws_col: 0, ws_xpixel: 0, ws_ypixel: 0 };
    // SAFETY: TIOCGWINSZ writes one winsize, which outlives the call.
    checked(unsafe { libc::ioctl(terminal.as_raw_fd(), libc::TIOCGWINSZ, &raw mut window) }.into())?;
    Ok(Size { rows: window.ws_row, columns: window.ws_col })
}

/// Makes `terminal` the controlling terminal of this session, which has none.
pub(super) fn take_terminal(terminal: BorrowedFd<'_>) -> io::Result<()> {
    // SAFETY: TIOCSCTTY takes its argument by value.
    checked(unsafe { libc::ioctl(terminal.as_raw_fd(), libc::TIOCSCTTY, 0) }.into()).map(drop)
}

/// Marks every descriptor from 3 on as not to survive exec.
pub(super) fn close_on_exec_from_3() -> io::Result<()> {
    // SAFETY: close_range with CLOEXEC sets a flag on descriptors and closes none.
    checked(unsafe { libc::syscall(libc::SYS_close_range, 3, libc::c_uint::MAX, libc::CLOSE_RANGE_CLOEXEC) })
        .map(drop)
}

/// Closes every descriptor from 3 on but this one, which gets another number. For a process that is about to execute
/// something else, or to end: whoever owned the others must not use them again.
pub(super) fn keep_only(kept: RawFd) -> io::Result<OwnedFd> {
    const FIRST: RawFd = 3;
    if kept != FIRST {
        // SAFETY: dup3 takes numbers; whatever had the second is not used again.
        checked(unsafe { libc::dup3(kept, FIRST, libc::O_CLOEXEC) }.into())?;
    }
    // SAFETY: close_range takes numbers; what it closes is not used again.
    checked(unsafe { libc::syscall(libc::SYS_close_range, FIRST + 1, libc::c_uint::MAX, 0) })?;
    // SAFETY: it is open, and this is its only owner.
    Ok(unsafe { OwnedFd::from_raw_fd(FIRST) })
}

/// Gives every signal its default action again: what is ignored here would be ignored after exec.
pub(super) fn default_signals() {
    for signal in 1..=libc::SIGRTMAX() {
        // SAFETY: SIG_DFL runs no code of ours. KILL, STOP and the C library's own answer EINVAL and stay as they are.
        unsafe { libc::signal(signal, libc::SIG_DFL) };
    }
}

/// Takes over a descriptor that this process inherited under a number it was told.
pub(super) fn inherited(number: RawFd) -> io::Result<OwnedFd> {
    nix::fcntl::fcntl(borrowed(number), nix::fcntl::FcntlArg::F_GETFD)?;
    // SAFETY: it is open, and nobody else in this process, which has just started, knows of it.
    Ok(unsafe { OwnedFd::from_raw_fd(number) })
}

fn borrowed(number: RawFd) -> BorrowedFd<'static> {
    // SAFETY: only used to ask the kernel whether the descriptor is open; a closed one answers EBADF.
    unsafe { BorrowedFd::borrow_raw(number) }
}

/// Sends one message and descriptors with it.
pub(super) fn send(socket: BorrowedFd<'_>, message: &[u8], descriptors: &[RawFd]) -> io::Result<()> {
    let rights = [ControlMessage::ScmRights(descriptors)];
    let rights = if descriptors.is_empty() { &[][..] } else { &rights[..] };
    sendmsg::<()>(socket.as_raw_fd(), &[IoSlice::new(message)], rights, MsgFlags::MSG_NOSIGNAL, None)?;
    Ok(())
}

/// Receives one message and the descriptors that came with it. No bytes: the other end is gone.
pub(super) fn receive(socket: BorrowedFd<'_>, into: &mut [u8]) -> io::Result<(usize, Vec<OwnedFd>)> {
    let mut room = nix::cmsg_space!([RawFd; 3]);
    let mut slices = [IoSliceMut::new(into)];
    let message = recvmsg::<()>(
        socket.as_fd().as_raw_fd(),
        &mut slices,
        Some(&mut room),
        MsgFlags::MSG_CMSG_CLOEXEC | MsgFlags::MSG_DONTWAIT,
    )?;
    let mut descriptors = Vec::new();
    for part in message.cmsgs()? {
        if let ControlMessageOwned::ScmRights(numbers) = part {
            // SAFETY: the kernel has just made these descriptors for us.
            descriptors.extend(numbers.into_iter().map(|number| unsafe { OwnedFd::from_raw_fd(number) }));
        }
    }
    Ok((message.bytes, descriptors))
}
