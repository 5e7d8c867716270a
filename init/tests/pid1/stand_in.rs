//! What the sidecar's `main` does, and a relay without a tunnel. The endpoint tells it how to behave.

use std::{
    fs::File,
    io::{Read, Write},
    os::fd::FromRawFd,
    path::Path,
};

use moat_init::relay;

/// `failed: no way` instead of `ready`.
pub(crate) const FAILS: &str = "unix:/fails";
/// Says nothing.
pub(crate) const SILENT: &str = "unix:/silent";
/// Ends without a word.
pub(crate) const DIES: &str = "unix:/dies";

pub(crate) fn init(plan: &str) -> u8 {
    moat_init::harden_process().unwrap();
    match moat_init::startup::from_file(Path::new(plan)) {
        Ok(startup) => moat_init::run(startup),
        Err(error) => {
            eprintln!("moat: {error}");
            moat_shared::exit::SETUP
        }
    }
}

/// Answers every connection, telling whether it was closed to others from the start; dies when it is sent `die`.
pub(crate) fn relay() -> u8 {
    let closed = if nix::sys::prctl::get_dumpable().unwrap() { "" } else { " closed" };
    moat_init::harden_process().unwrap();
    let start = relay::read_start(std::io::stdin()).unwrap();
    let behaves = |how: &str| start.tunnel.endpoint.to_string() == how;
    assert!(start.identity.key_pem.expose().contains(crate::sandbox::KEY));
    #[expect(unsafe_code, reason = "PID 1 hands these two over by number")]
    // SAFETY: the contract of the relay's start; nobody else in this process owns them.
    let (listener, mut ready) = unsafe {
        (std::net::TcpListener::from_raw_fd(relay::LISTENER_FD), File::from_raw_fd(relay::READY_FD))
    };
    if behaves(DIES) {
        return 9;
    }
    eprintln!("relay: a line on stderr");
    if behaves(FAILS) {
        writeln!(ready, "{}no way", relay::FAILED).unwrap();
    } else if !behaves(SILENT) {
        write!(ready, "{}", relay::READY).unwrap();
    }
    let _open = behaves(SILENT).then_some(ready);
    for connection in listener.incoming() {
        let mut connection = connection.unwrap();
        // The whole line: what is left unread would make the kernel reset the connection, and the answer be lost.
        let mut line = [0; 4];
        connection.read_exact(&mut line).unwrap();
        if &line == b"die\n" {
            return 1;
        }
        writeln!(connection, "relay{closed}").unwrap();
    }
    0
}
