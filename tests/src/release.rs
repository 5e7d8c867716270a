//! The `moat` that is released, as cargo builds it ([`plain`]) and laid out by a profile of what a call runs through ([`guided`];
//! rustc book, "Profile-guided Optimization").
//!
//! ```text
//! instrumented moat, with its sidecar ──training──► *.profraw ──llvm-profdata──► calls-*.profdata
//!                                                                                     │
//! moat, with its sidecar ◄──────────────────── the same source, built again ──────────┘
//! ```
//!
//! The latter is in `guided/` of cargo's target directory, and is made again only when its source has changed. Not for tests: theirs
//! is a debug build.

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    time::{Instant, UNIX_EPOCH},
};

use crate::{Outcome, Trouble, rig, trouble::ensure};

/// The first LLVM that reads what rustc's instrumentation writes, a raw profile of version 10.
const LLVM: u32 = 19;
const REMEDY: &str = "rustup component add llvm-tools, install your distribution's LLVM (Debian: apt-get install llvm-19), or name one in LLVM_PROFDATA";

/// Builds it. `train` is given the instrumented `moat` and must put it, and the sidecar that it carries, to work; `tell`
/// says what is going on.
///
/// # Errors
/// When this is not Linux, `llvm-profdata` is missing or too old, the training fails, or anything cannot be built.
pub fn guided(train: impl FnOnce(&Path) -> Outcome, tell: impl Fn(&str)) -> Outcome<PathBuf> {
    ensure(cfg!(target_os = "linux"), || "a profile can be made on Linux only".to_owned())?;
    let merger = Merger::find()?;
    let directory =
        rig::target_directory().ok_or_else(|| Trouble::new("where is this binary?"))?.join("guided");
    let host = host()?;
    let started = Instant::now();
    let step = |what: &str| tell(&format!("{what} ({} s)", started.elapsed().as_secs()));

    step("moat with counters");
    let raw = directory.join("raw");
    let counting =
        moat(&directory.join("counting"), &host, &format!("-Cprofile-generate={}", raw.display()))?;
    let built = fs::metadata(&counting)?.modified()?.duration_since(UNIX_EPOCH)?.as_nanos();
    // Cargo does not look into the file, but a flag that has changed has it build again.
    let profile = directory.join(format!("calls-{built}.profdata"));
    let last = directory.join("release");
    if !profile.is_file() {
        step("its training");
        clear(&raw)?;
        train(&counting)?;
        let written = fs::read_dir(&raw).map_or(0, Iterator::count);
        ensure(written >= 2, || {
            format!("{}: of the bridge and the sidecar, {written} wrote counters", raw.display())
        })?;
        // What an older profile gave is never used again.
        clear(&last)?;
        for entry in fs::read_dir(&directory)? {
            let path = entry?.path();
            if path.extension().is_some_and(|extension| extension == "profdata") {
                fs::remove_file(path)?;
            }
        }
        merger.merge(&raw, &profile)?;
    }
    step("moat by its profile");
    let built = moat(&last, &host, &format!("-Cprofile-use={}", profile.display()))?;
    let moat = directory.join("moat");
    // One that runs can be replaced, but not written to.
    let new = directory.join("moat.new");
    fs::copy(built, &new)?;
    fs::rename(new, &moat)?;
    Ok(moat)
}

/// Builds it as `cargo install` does, without a profile.
///
/// # Errors
/// When it cannot be built.
pub fn plain() -> Outcome<PathBuf> {
    let target = rig::target_directory().ok_or_else(|| Trouble::new("where is this binary?"))?;
    cargo(&mut rig::cargo(), &target)?;
    Ok(target.join("release").join("moat"))
}

/// Builds `moat` with this flag; `build.rs` has the sidecar built with it as well.
fn moat(target: &Path, host: &str, flag: &str) -> Outcome<PathBuf> {
    let mut with = rig::cargo();
    // With a target named, build scripts and macros are not built with the flag.
    with.args(["--config", &format!("build.target={host:?}")]);
    with.env("CARGO_ENCODED_RUSTFLAGS", flag).env_remove("RUSTFLAGS").env_remove("MOAT_SIDECAR");
    cargo(&mut with, target)?;
    Ok(target.join(host).join("release").join("moat"))
}

fn cargo(cargo: &mut Command, target: &Path) -> Outcome {
    cargo.args([
        "build",
        "--release",
        "--locked",
        "--package",
        "moat-host-bridge",
        "--bin",
        "moat",
        "--target-dir",
    ]);
    // The caller's output is the caller's; cargo's own goes to stderr.
    let status = cargo.arg(target).stdin(Stdio::null()).stdout(Stdio::null()).status()?;
    ensure(status.success(), || format!("moat cannot be built ({status})"))
}

fn clear(directory: &Path) -> Outcome {
    match fs::remove_dir_all(directory) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(error.into()),
        _ => Ok(()),
    }
}

/// What rustc says of itself.
fn rustc(arguments: &[&str]) -> Outcome<String> {
    let rustc = std::env::var_os("RUSTC").unwrap_or_else(|| "rustc".into());
    let output = Command::new(rustc).args(arguments).output()?;
    ensure(output.status.success(), || String::from_utf8_lossy(&output.stderr).into_owned())?;
    Ok(String::from_utf8(output.stdout)?.trim().to_owned())
}

/// The triple of this machine.
fn host() -> Outcome<String> {
    let said = rustc(&["-vV"])?;
    let host = said.lines().find_map(|line| line.strip_prefix("host: "));
    host.map(str::to_owned).ok_or_else(|| Trouble::new("rustc -vV does not say the host"))
}

/// `llvm-profdata`, which makes a profile of what the counters wrote.
struct Merger(PathBuf);

impl Merger {
    /// The one that `LLVM_PROFDATA` names; else the first that is new enough, of rustup's, the distribution's, the path's.
    fn find() -> Outcome<Self> {
        let given = std::env::var_os("LLVM_PROFDATA").map(PathBuf::from);
        let candidates = given.map_or_else(Self::known, |given| Ok(vec![given]))?;
        candidates.into_iter().find(|path| version(path) >= Some(LLVM)).map(Self).ok_or_else(|| {
            Trouble::new(format!("a profile wants llvm-profdata of LLVM {LLVM} or newer: {REMEDY}"))
        })
    }

    fn known() -> Outcome<Vec<PathBuf>> {
        let beside_rustc = PathBuf::from(rustc(&["--print", "target-libdir"])?).with_file_name("bin");
        let of_llvm = |entry: fs::DirEntry| {
            let version: u32 = entry.file_name().to_str()?.strip_prefix("llvm-")?.parse().ok()?;
            Some((version, entry.path().join("bin")))
        };
        let installed = fs::read_dir("/usr/lib").into_iter().flatten().flatten();
        let mut installed: Vec<(u32, PathBuf)> = installed.filter_map(of_llvm).collect();
        installed.sort_by(|one, other| other.cmp(one));
        let directories = std::iter::once(beside_rustc).chain(installed.into_iter().map(|(_, path)| path));
        Ok(directories
            .map(|path| path.join("llvm-profdata"))
            .chain([PathBuf::from("llvm-profdata")])
            .collect())
    }

    /// Makes one file of all that the counters wrote.
    fn merge(&self, raw: &Path, profile: &Path) -> Outcome {
        let made = profile.with_extension("new");
        let output = Command::new(&self.0).args(["merge", "-o"]).arg(&made).arg(raw).output()?;
        ensure(output.status.success(), || {
            let said = String::from_utf8_lossy(&output.stderr);
            format!("{} made no profile: {}\n{REMEDY}", self.0.display(), said.trim())
        })?;
        Ok(fs::rename(made, profile)?)
    }
}

/// The LLVM that it belongs to.
fn version(profdata: &Path) -> Option<u32> {
    let output = Command::new(profdata).args(["merge", "--version"]).output().ok()?;
    let said = String::from_utf8(output.stdout).ok()?;
    let (_, version) = said.split_once("LLVM version ")?;
    version.split('.').next()?.trim().parse().ok()
}
