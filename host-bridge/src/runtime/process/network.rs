//! `network.mode: open`: a way out of the sandbox, through pasta (the package `passt`), which moves the sandbox's packets
//! over ordinary sockets of the host's.
//!
//! ```text
//! builder ──forks, before its root changes──► waits ──PID 1's pid──► becomes pasta
//!    │ waits until the sandbox has a way out           │
//!    └── its end, whatever ends it ───────────────────►│ SIGKILL
//! ```
//!
//! Outward only: no port of the sandbox's is published, and neither the host's loopback nor its other addresses lead
//! back to the host. One exception: names are asked at [`RESOLVER`], and the host's own resolver answers.

use std::{
    convert::Infallible,
    ffi::CString,
    fs,
    io::{self, Read, Write},
    os::{
        fd::{AsRawFd, OwnedFd},
        unix::{ffi::OsStrExt, net::UnixStream},
    },
    path::Path,
    thread,
    time::{Duration, Instant},
};

use nix::{
    sched::CloneFlags,
    sys::{
        signal::{SigSet, Signal, kill},
        wait::{WaitPidFlag, WaitStatus, waitpid},
    },
    unistd::{Pid, dup2_stderr, dup2_stdin, dup2_stdout, execve},
};

use super::{
    builder::die_with_parent,
    spec::{BuildError, Doing},
    sys,
};

/// The program, and the package that has it.
pub(super) const PASTA: &str = "pasta";
/// Where the sandbox asks for names: link-local, so nobody's otherwise (RFC 3927).
pub(super) const RESOLVER: &str = "169.254.1.53";
/// For pasta to have given the sandbox its interface. It takes some 50 ms.
const PATIENCE: Duration = Duration::from_secs(10);
/// Between two looks.
const PAUSE: Duration = Duration::from_millis(2);

/// pasta, or the process that will be. Dropping it takes the network away, and returns when it is gone.
pub(super) struct Pasta {
    pid: Pid,
    /// Tells it which sandbox; brings what it says.
    channel: UnixStream,
}

impl Drop for Pasta {
    fn drop(&mut self) {
        let _already_gone = kill(self.pid, Signal::SIGKILL);
        let _already_reaped = waitpid(self.pid, None);
    }
}

impl Pasta {
    /// Forks it off. The root must still be the host's, and the user the one who will own the sandbox's user namespace:
    /// nobody else may enter it.
    pub(super) fn fork(program: &Path) -> Result<Self, BuildError> {
        let doing = || "preparing the sandbox's network".to_owned();
        let (channel, theirs) = UnixStream::pair().doing(doing)?;
        if let Some(pid) = sys::fork(CloneFlags::empty()).doing(doing)? {
            return Ok(Self { pid, channel });
        }
        drop(channel);
        let Err(error) = become_pasta(program, &theirs);
        // Which is the channel by now.
        let _nobody_listens = writeln!(io::stderr(), "{error}");
        sys::exit_now(1)
    }

    /// Connects the sandbox. Returns when it has a way out; `proc` is where the host's processes are seen.
    pub(super) fn connect(&mut self, pid_1: Pid, proc: &Path) -> Result<(), BuildError> {
        let doing = || "connecting the sandbox to the network".to_owned();
        writeln!(self.channel, "{pid_1}").doing(doing)?;
        let net = proc.join(pid_1.to_string()).join("net");
        let deadline = Instant::now() + PATIENCE;
        while !has_way_out(&net) {
            let ended = waitpid(self.pid, Some(WaitPidFlag::WNOHANG)).doing(doing)?;
            if ended != WaitStatus::StillAlive {
                return Err(self.failed());
            }
            if Instant::now() > deadline {
                return Err(BuildError::new(format!(
                    "{PASTA} has not connected the sandbox in {PATIENCE:?}"
                )));
            }
            thread::sleep(PAUSE);
        }
        Ok(())
    }

    /// Why it ended.
    fn failed(&mut self) -> BuildError {
        let mut said = String::new();
        let _as_much_as_there_is = self.channel.read_to_string(&mut said);
        // Where no system logger listens, it says so of every line, between them.
        let lines: Vec<&str> =
            said.lines().filter(|line| !line.contains("to syslog") && !line.is_empty()).collect();
        let hint = if said.contains("tun") {
            "may this user open /dev/net/tun? leave network.mode out for a sandbox without a network"
        } else {
            "does this machine have a network itself? leave network.mode out for a sandbox without one"
        };
        BuildError::new(format!("{PASTA} cannot connect the sandbox to the network: {}", lines.join("; ")))
            .with_hint(hint)
    }
}

/// Has this network a default route?
fn has_way_out(net: &Path) -> bool {
    let table = |name: &str| fs::read_to_string(net.join(name)).unwrap_or_default();
    let default = |line: &str| {
        let mut fields = line.split_whitespace();
        fields.nth(1) == Some("00000000") && fields.nth(5) == Some("00000000")
    };
    let default_6 = |line: &str| {
        let mut fields = line.split_whitespace();
        fields.next() == Some("00000000000000000000000000000000")
            && fields.next() == Some("00")
            && fields.last() != Some("lo")
    };
    table("route").lines().any(default) || table("ipv6_route").lines().any(default_6)
}

/// Waits to be told which sandbox. Ends with the builder from the first moment on.
fn become_pasta(program: &Path, channel: &UnixStream) -> Result<Infallible, BuildError> {
    let doing = || "starting it".to_owned();
    let builder: OwnedFd = channel.try_clone().doing(doing)?.into();
    die_with_parent(&builder)?;
    // Descriptors that others wait for to be closed are open here too.
    let quiet: OwnedFd = fs::File::open("/dev/null").doing(doing)?.into();
    dup2_stdin(&quiet).doing(doing)?;
    dup2_stdout(&quiet).doing(doing)?;
    dup2_stderr(channel).doing(doing)?;
    drop((builder, quiet));
    let mut channel = UnixStream::from(sys::keep_only(channel.as_raw_fd()).doing(doing)?);
    let mut pid = String::new();
    while !pid.ends_with('\n') {
        let mut byte = [0];
        channel.read_exact(&mut byte).doing(doing)?;
        pid.push(char::from(byte[0]));
    }
    let pid = pid.trim();
    let mut words = vec!["pasta", "--foreground", "--quiet", "--config-net", "--no-map-gw"];
    words.extend(["--dns-forward", RESOLVER]);
    // Nothing is forwarded by itself, in neither direction.
    words.extend(["-t", "none", "-u", "none", "-T", "none", "-U", "none"]);
    if nix::unistd::geteuid().is_root() {
        // It would be nobody otherwise, who may not enter. Entered, it has the rights that it has there, and no others.
        words.extend(["--runas", "0"]);
    }
    let (user, net) = (format!("/proc/{pid}/ns/user"), format!("/proc/{pid}/ns/net"));
    words.extend(["--userns", &user, "--netns", &net]);
    let text = |bytes: &[u8]| CString::new(bytes).map_err(io::Error::from);
    let arguments: Vec<CString> =
        words.iter().map(|word| text(word.as_bytes())).collect::<Result<_, _>>().doing(doing)?;
    sys::default_signals();
    SigSet::empty().thread_set_mask().doing(doing)?;
    let environment: [CString; 0] = [];
    execve(&text(program.as_os_str().as_bytes()).doing(doing)?, &arguments, &environment).doing(doing)
}

#[cfg(test)]
mod tests {
    use super::*;
    use test_case::test_case;

    const HEAD: &str = "Iface\tDestination\tGateway\tFlags\tRefCnt\tUse\tMetric\tMask\t\tMTU\tWindow\tIRTT\n";

    #[test_case("", "" => false; "nothing at all")]
    #[test_case("eth0\t0007630A\t00000000\t0001\t0\t0\t0\t00FFFFFF\t0\t0\t0\n", "" => false; "its own network")]
    #[test_case("eth0\t00000000\t0207630A\t0003\t0\t0\t0\t00000000\t0\t0\t0\n", "" => true; "a gateway")]
    #[test_case("", "00000000000000000000000000000000 00 00000000000000000000000000000000 00 00000000000000000000000000000000 ffffffff 00000001 00000000 00200200 lo\n" => false; "what every namespace has")]
    #[test_case("", "00000000000000000000000000000000 00 00000000000000000000000000000000 00 fe800000000000000000000000000001 00000400 00000001 00000000 00000003 eth0\n" => true; "a gateway of version 6")]
    fn ways_out(four: &str, six: &str) -> bool {
        let net = tempfile::tempdir().unwrap();
        fs::write(net.path().join("route"), format!("{HEAD}{four}")).unwrap();
        fs::write(net.path().join("ipv6_route"), six).unwrap();
        has_way_out(net.path())
    }
}
