//! A real guest: a virtual machine without KVM and without any network device, whose PID 1 is the real sidecar and whose
//! one way out is a vsock device.
//!
//! ```text
//! host   moat's bridge ◄── <vsock>_<port> ◄── vhost-device-vsock ◄─┐
//!        test ── stdin, stdout of QEMU ──┐                         │ virtio-vsock
//! guest  fixture client ◄── virtio-serial┘   relay ── CID 2:<port> ┘
//! ```
//!
//! The guest's first program is a script (`initramfs`) that loads drivers and replaces itself by the sidecar, which
//! gets plan and key as in a container: as the first bytes of its stdin, which is a virtio-serial port. They are kept
//! nowhere. What the machine needs is installed by `.ci/run`.
//!
//! Never this machine's own vsock: the guest's is its own, and the host's end of it is a unix socket ("hybrid").

pub(crate) mod archive;
mod device;
pub mod host;
mod initramfs;
mod monitor;
pub mod register;

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    thread,
    time::Duration,
};

pub use self::{
    device::{Device, VSOCK, installed_program},
    initramfs::AGENT,
};
use self::{
    monitor::Monitor,
    register::{Registration, startup},
};
use crate::{
    Outcome, Trouble,
    clock::eventually,
    inside::Inside,
    rig::{Rig, target_directory},
};

/// The port of the tunnel, whoever listens.
pub const PORT: u32 = 5000;
/// From the start of the machine to the first answer of the program in it: seconds without KVM, more on a busy machine.
pub const BOOT: Duration = Duration::from_secs(120);

/// What may differ from guest to guest.
#[derive(Debug, Clone)]
pub struct Settings {
    /// What the guest's clock says when it starts; the host's time otherwise.
    pub clock: Option<&'static str>,
    /// Is there a vsock device?
    pub device: bool,
    /// The sidecar listens and the bridge dials; otherwise the other way round.
    pub listens: bool,
}

impl Default for Settings {
    fn default() -> Self {
        Self { clock: None, device: true, listens: false }
    }
}

/// The kernel, unpacked and not installed.
pub(crate) struct Kernel {
    image: PathBuf,
    pub(crate) modules: PathBuf,
}

/// The machine's program.
pub const QEMU: &str = "qemu-system-x86_64";

/// What `.ci/run` puts into `target/clients/guest`.
fn installed() -> Option<PathBuf> {
    target_directory().map(|target| target.join("clients/guest")).filter(|path| path.exists())
}

pub(crate) fn kernel() -> Option<Kernel> {
    let root = installed()?;
    let entries = fs::read_dir(root.join("boot")).ok()?.flatten();
    entries.filter_map(|entry| entry.file_name().into_string().ok()).find_map(|name| {
        let version = name.strip_prefix("vmlinuz-")?;
        let modules = root.join("lib/modules").join(version);
        modules.exists().then(|| Kernel { image: root.join("boot").join(&name), modules })
    })
}

/// Can this machine start a guest?
#[must_use]
pub fn here() -> bool {
    let runs = |program: &str| {
        let asked = Command::new(program).arg("--version").stdin(Stdio::null()).output();
        asked.is_ok_and(|asked| asked.status.success())
    };
    cfg!(target_arch = "x86_64")
        && kernel().is_some()
        && device::program().is_some()
        && runs(QEMU)
        && archive::busybox().is_ok()
}

/// What every guest of the tests has: the kernel with these files and options, no network device, its console in the file
/// `console` of its directory, its monitor at the socket `monitor`. `command` starts [`QEMU`].
///
/// # Errors
/// When there is no kernel.
pub fn qemu(
    mut command: Command,
    directory: &Path,
    megabytes: u32,
    files: &Path,
    options: &str,
) -> Outcome<Command> {
    let kernel = kernel().ok_or_else(|| Trouble::new("no kernel for a guest (see .ci/run)"))?;
    // Never KVM: where this machine is a guest itself, it may be there and not work.
    command
        .args(["-M", "q35,accel=tcg", "-cpu", "max", "-smp", "1", "-m", &megabytes.to_string()])
        .args(["-nodefaults", "-no-user-config", "-no-reboot", "-display", "none", "-nic", "none"])
        .arg("-object")
        .arg(format!("memory-backend-memfd,id=mem0,size={megabytes}M,share=on"))
        .args(["-numa", "node,memdev=mem0"])
        .arg("-serial")
        .arg(format!("file:{}", directory.join("console").display()))
        .arg("-qmp")
        .arg(format!("unix:{},server=on,wait=off", directory.join("monitor").display()))
        .arg("-append")
        .arg(format!("console=ttyS0 quiet reboot=t panic=-1 {options}"))
        .arg("-kernel")
        .arg(kernel.image)
        .arg("-initrd")
        .arg(files)
        // Of this process's environment nothing but what finds programs; a rig finds its own by the mark in a path.
        .env_clear()
        .env("PATH", std::env::var_os("PATH").unwrap_or_default());
    Ok(command)
}

/// What was said on the console of the guest of this directory.
fn console(directory: &Path) -> String {
    let console = fs::read(directory.join("console"));
    console.map(|bytes| String::from_utf8_lossy(&bytes).into_owned()).unwrap_or_default()
}

/// The same of a guest that ends by itself.
fn until_it_ends(mut machine: Child, directory: &Path) -> Outcome<String> {
    let ended = eventually("the guest ends", BOOT, || machine.try_wait().ok().flatten());
    if ended.is_err() {
        machine.kill()?;
        machine.wait()?;
    }
    let said = console(directory);
    ended.map(|_| said.clone()).map_err(|trouble| Trouble::new(format!("{trouble}\n{said}")))
}

/// A guest that runs.
#[derive(Debug)]
pub struct Guest {
    /// The program in it.
    pub inside: Inside,
    /// All around it.
    pub machine: Machine,
}

impl Guest {
    /// Registers a run with the rig's bridge, which is started if it is not there, and starts a guest for it.
    ///
    /// # Errors
    /// When it does not come up; what the guest's kernel and the sidecar said is in the text.
    pub fn start(rig: &Rig, settings: &Settings) -> Outcome<Self> {
        let (machine, command, plan) = Machine::prepare(rig, settings)?;
        let (inside, dialled) = thread::scope(|scope| {
            let dialled = scope.spawn(|| if settings.listens { machine.dialled() } else { Ok(()) });
            (Inside::start_after(command, &plan, BOOT), dialled.join())
        });
        let told = |trouble: Trouble| {
            Trouble::new(format!("{trouble}\nthe guest's console:\n{}", machine.console()))
        };
        let inside = inside.map_err(told)?;
        dialled.map_err(|_| Trouble::new("the dialling thread ended"))??;
        Ok(Self { inside, machine })
    }

    /// The same, for a guest whose sidecar is to give up: what its console said.
    ///
    /// # Errors
    /// When the guest does not end by itself.
    pub fn fail(rig: &Rig, settings: &Settings) -> Outcome<String> {
        use std::io::Write;
        let (machine, mut command, plan) = Machine::prepare(rig, settings)?;
        let mut child = command.stdin(Stdio::piped()).stdout(Stdio::null()).spawn()?;
        // Kept open: the end of it would end the guest as well.
        let mut stdin = child.stdin.take();
        if let Some(stdin) = &mut stdin {
            stdin.write_all(&plan)?;
        }
        until_it_ends(child, &machine.directory)
    }

    /// The program's end of it; all around it lives as long.
    #[must_use]
    pub fn into_inside(self) -> Inside {
        self.inside.beside(self.machine)
    }
}

/// All around a guest. Fields are dropped in their order.
#[derive(Debug)]
pub struct Machine {
    /// Its vsock device, if it has one.
    pub device: Option<Device>,
    directory: PathBuf,
    registration: Registration,
}

impl Machine {
    /// All but the guest itself, the command that starts it, and what the sidecar reads first.
    fn prepare(rig: &Rig, settings: &Settings) -> Outcome<(Self, Command, Vec<u8>)> {
        let kernel = kernel().ok_or_else(|| Trouble::new("no kernel for a guest (see .ci/run)"))?;
        let image = initramfs::image(rig, &kernel.modules)?;
        let directory = tempfile::Builder::new().prefix("g").rand_bytes(4).tempdir_in(rig.root())?.keep();
        let registration = Registration::of(rig, directory.join(VSOCK).display(), settings.listens)?;
        let device = settings.device.then(|| Device::start(&directory)).transpose()?;
        let mut command = qemu(Command::new(QEMU), &directory, 384, &image, "")?;
        command
            .args(["-chardev", "stdio,id=program,signal=off", "-device", "virtio-serial-pci"])
            .args(["-device", "virtserialport,chardev=program,name=program"])
            // Where a device can be taken out and put in.
            .args(["-device", "pcie-root-port,id=pluggable,chassis=1"]);
        if let Some(device) = &device {
            command
                .arg("-chardev")
                .arg(format!("socket,id={0},path={1}", device.name, device.socket.display()))
                .arg("-device")
                .arg(format!("vhost-user-vsock-pci,chardev={0},id=vsock-{0},bus=pluggable", device.name));
        }
        if let Some(clock) = settings.clock {
            command.args(["-rtc", &format!("base={clock},clock=vm")]);
        }
        let plan = startup(&registration, settings.listens)?;
        Ok((Self { device, directory, registration }, command, plan))
    }

    /// Has the bridge dial as soon as the sidecar runs.
    fn dialled(&self) -> Outcome {
        let runs = || self.console().contains("the sidecar starts").then_some(());
        eventually("the sidecar runs", BOOT, runs)?;
        self.registration.dial()
    }

    /// What kernel, script and sidecar said on the console.
    #[must_use]
    pub fn console(&self) -> String {
        console(&self.directory)
    }

    /// From now on nobody listens where the guest dials, until the answer is dropped.
    ///
    /// # Errors
    /// When it is so already.
    pub fn vanish(&self) -> Outcome<Vanished> {
        let listens = listens_at(&self.directory.join(VSOCK));
        let away = self.directory.join("away");
        fs::rename(&listens, &away)?;
        Ok(Vanished { listens, away })
    }

    /// The guest stands still until this is dropped, and does not know for how long.
    ///
    /// # Errors
    /// When the machine's monitor does not answer.
    pub fn pause(&self) -> Outcome<Paused> {
        let mut monitor = self.monitor()?;
        monitor.ask("stop", "")?;
        Ok(Paused(monitor))
    }

    /// Its device's process ends at once.
    ///
    /// # Errors
    /// When there is none.
    pub fn kill_device(&mut self) -> Outcome {
        self.device.as_mut().ok_or_else(|| Trouble::new("no device"))?.kill()
    }

    /// Another vsock device in the place of the one that is there, whose process ends if it has not.
    ///
    /// # Errors
    /// When the guest does not let go of it.
    pub fn replace_device(&mut self) -> Outcome {
        let Some(old) = self.device.take() else { return Err(Trouble::new("there is no device to replace")) };
        let name = old.name.clone();
        drop(old);
        let mut monitor = self.monitor()?;
        monitor.ask("device_del", &format!("\"id\":\"vsock-{name}\""))?;
        monitor.event("DEVICE_DELETED", &format!("vsock-{name}"))?;
        let device = Device::start(&self.directory)?;
        let path = device.socket.display();
        let backend = format!(
            "{{\"type\":\"socket\",\"data\":{{\"addr\":{{\"type\":\"unix\",\"data\":{{\"path\":\"{path}\"}}}},\"server\":false}}}}"
        );
        monitor.ask("chardev-add", &format!("\"id\":\"{}\",\"backend\":{backend}", device.name))?;
        let settings = format!(
            "\"driver\":\"vhost-user-vsock-pci\",\"chardev\":\"{0}\",\"id\":\"vsock-{0}\",\"bus\":\"pluggable\"",
            device.name
        );
        monitor.ask("device_add", &settings)?;
        self.device = Some(device);
        Ok(())
    }

    fn monitor(&self) -> Outcome<Monitor> {
        Monitor::open(&self.directory.join("monitor"))
    }

    /// When the sidecar was started, in seconds since the guest's kernel was.
    ///
    /// # Errors
    /// When the console does not say it.
    pub fn sidecar_started(&self) -> Outcome<f64> {
        let console = self.console();
        let line = console.lines().find_map(|line| line.split_once(initramfs::STARTED));
        let text = line.and_then(|(_, rest)| rest.split_whitespace().next());
        Ok(text.ok_or_else(|| Trouble::new(format!("the console does not say when: {console}")))?.parse()?)
    }
}

/// The socket that the device connects to when the guest dials the bridge's port.
fn listens_at(device: &Path) -> PathBuf {
    let mut name = device.as_os_str().to_owned();
    name.push(format!("_{PORT}"));
    name.into()
}

/// Nobody listens.
#[derive(Debug)]
pub struct Vanished {
    listens: PathBuf,
    away: PathBuf,
}

impl Drop for Vanished {
    fn drop(&mut self) {
        // If it fails, the test that wants somebody to listen fails.
        let _put_back = fs::rename(&self.away, &self.listens);
    }
}

/// The guest stands still.
#[derive(Debug)]
pub struct Paused(Monitor);

impl Drop for Paused {
    fn drop(&mut self) {
        let _goes_on = self.0.ask("cont", "");
    }
}
