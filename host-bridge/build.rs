//! Builds the static sidecar and hands its path to `include_bytes!`, so that `moat` is one file to install.
//!
//! `MOAT_SIDECAR=<path>` embeds that file instead. `MOAT_SIDECAR_ALSO=<architecture>` builds and embeds a second one, for
//! sandboxes of another architecture; a path in it embeds that file. A profile (`-Cprofile-generate`, `-Cprofile-use`) that
//! `moat` is built with is the sidecar's as well. Commit and time of the build go to `moat version`.
#![expect(clippy::disallowed_methods, reason = "a build script is told everything by its environment")]

use std::{
    env, fs,
    path::{Path, PathBuf},
    process::{Command, ExitCode},
};

use sha2::{Digest, Sha256};

/// What of cargo's own environment is settings of the user's, and therefore goes to the inner cargo as well.
const KEPT: [&str; 9] = [
    "CARGO_HOME",
    "CARGO_HTTP_",
    "CARGO_MAKEFLAGS",
    "CARGO_NET_",
    "CARGO_REGISTR",
    "CARGO_SOURCE_",
    "CARGO_TERM_",
    "CARGO_BUILD_JOBS",
    "CARGO_TARGET_",
];

/// What would change the sidecar's code (it has flags of its own, and no linter or coverage tool around it), and what
/// cargo tells this script alone: it differs from profile to profile, and build scripts of dependencies that read it
/// (ring's does) would have the sidecar built anew for each.
const CLEARED: [&str; 14] = [
    "RUSTFLAGS",
    "RUSTDOCFLAGS",
    "RUSTC_WORKSPACE_WRAPPER",
    "CARGO_TARGET_DIR",
    "LLVM_PROFILE_FILE",
    "CLIPPY_ARGS",
    "DEBUG",
    "HOST",
    "NUM_JOBS",
    "OPT_LEVEL",
    "OUT_DIR",
    "PROFILE",
    "RUSTC_LINKER",
    "TARGET",
];

fn main() -> ExitCode {
    println!("cargo::rerun-if-changed=build.rs");
    println!("cargo::rerun-if-env-changed=MOAT_SIDECAR");
    println!("cargo::rerun-if-env-changed=MOAT_SIDECAR_ALSO");
    println!("cargo::rerun-if-env-changed=SOURCE_DATE_EPOCH");
    println!("cargo::rerun-if-env-changed=CARGO_ENCODED_RUSTFLAGS");
    provenance();
    match files() {
        Ok(files) => {
            for (variable, path, digest) in files {
                println!("cargo::rustc-env={variable}_FILE={}", path.display());
                println!("cargo::rustc-env={variable}_DIGEST={digest}");
            }
            ExitCode::SUCCESS
        }
        Err(text) => {
            for line in text.lines() {
                println!("cargo::error={line}");
            }
            ExitCode::FAILURE
        }
    }
}

/// What is embedded: under which name, which file, and its digest.
fn files() -> Result<[(&'static str, PathBuf, String); 2], String> {
    let (own, also) = (sidecar()?, also()?);
    let (of_own, of_also) = (digest(&own)?, digest(&also)?);
    Ok([("MOAT_SIDECAR", own, of_own), ("MOAT_SIDECAR_ALSO", also, of_also)])
}

/// Its SHA-256, so that no start has to make it.
fn digest(path: &Path) -> Result<String, String> {
    let bytes = fs::read(path).map_err(|e| format!("{}: {e}", path.display()))?;
    Ok(Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect())
}

/// The file to embed.
fn sidecar() -> Result<PathBuf, String> {
    if let Some(path) = given("MOAT_SIDECAR")? {
        return Ok(path);
    }
    if required("CARGO_CFG_TARGET_OS")? != "linux" {
        return nothing();
    }
    of_source(&required("CARGO_CFG_TARGET_ARCH")?)
}

/// The second one, where one is asked for.
fn also() -> Result<PathBuf, String> {
    match env::var("MOAT_SIDECAR_ALSO").unwrap_or_default().as_str() {
        "" => nothing(),
        architecture @ ("aarch64" | "x86_64") => of_source(architecture),
        path if path.contains('/') => given("MOAT_SIDECAR_ALSO")?.map_or_else(nothing, Ok),
        other => {
            Err(format!("MOAT_SIDECAR_ALSO={other}: must be aarch64, x86_64 or the path of a moat-sidecar"))
        }
    }
}

/// The file that a variable names.
fn given(variable: &str) -> Result<Option<PathBuf>, String> {
    let Some(path) = env::var_os(variable).filter(|path| !path.is_empty()) else { return Ok(None) };
    let found =
        fs::canonicalize(&path).map_err(|e| format!("{variable}={}: {e}", Path::new(&path).display()))?;
    println!("cargo::rerun-if-changed={}", found.display());
    Ok(Some(found))
}

/// Nothing is embedded; `runtime::embed` says so when it is asked for.
fn nothing() -> Result<PathBuf, String> {
    let none = PathBuf::from(required("OUT_DIR")?).join("no-sidecar");
    fs::write(&none, []).map_err(|e| format!("{}: {e}", none.display()))?;
    Ok(none)
}

/// Built from the source beside this crate.
fn of_source(architecture: &str) -> Result<PathBuf, String> {
    let out = PathBuf::from(required("OUT_DIR")?);
    let manifest = PathBuf::from(required("CARGO_MANIFEST_DIR")?);
    let workspace = manifest.parent().unwrap_or(&manifest).to_path_buf();
    for part in ["sidecar", "init", "shared", "Cargo.lock", "Cargo.toml"] {
        println!("cargo::rerun-if-changed={}", workspace.join(part).display());
    }
    if !workspace.join("sidecar/Cargo.toml").is_file() {
        return Err("the sidecar's source is not here: set MOAT_SIDECAR to a built moat-sidecar".to_owned());
    }
    build(&workspace, &out, architecture)
}

/// Runs the inner cargo, in a target directory of its own (the outer one is locked) that all profiles share.
fn build(workspace: &Path, out: &Path, architecture: &str) -> Result<PathBuf, String> {
    let triple = format!("{architecture}-unknown-linux-gnu");
    let target = target_dir(out).join("moat-sidecar-build");
    let mut cargo = Command::new(required("CARGO")?);
    cargo
        .current_dir(workspace)
        .args(["build", "--package", "moat-sidecar", "--profile", "sidecar", "--target", &triple])
        .arg("--target-dir")
        .arg(&target);
    // The outer cargo has brought the lock file up to date; the sidecar is built from exactly that.
    if workspace.join("Cargo.lock").is_file() {
        cargo.arg("--locked");
    }
    for (name, _) in env::vars_os() {
        let text = name.to_string_lossy();
        let own = text.starts_with("CARGO") && !KEPT.iter().any(|kept| text.starts_with(kept));
        let flags = text.starts_with("CARGO_TARGET_") && text.ends_with("_RUSTFLAGS");
        if own || flags || CLEARED.contains(&text.as_ref()) {
            cargo.env_remove(&name);
        }
    }
    cargo.env("CARGO_ENCODED_RUSTFLAGS", flags());
    let linker = format!("CARGO_TARGET_{}_LINKER", triple.to_uppercase().replace('-', "_"));
    if is_foreign(architecture) && env::var_os(&linker).is_none() {
        // As Debian and Fedora name their cross compilers.
        cargo.env(linker, format!("{architecture}-linux-gnu-gcc"));
    }
    let status = cargo.status().map_err(|e| format!("cargo cannot be started: {e}"))?;
    if !status.success() {
        let advice = advice(&triple, architecture);
        return Err(format!(
            "the sidecar for {triple} was not built ({status}); its errors are above{advice}"
        ));
    }
    let built = target.join(&triple).join("sidecar").join("moat-sidecar");
    if built.is_file() { Ok(built) } else { Err(format!("{} is missing", built.display())) }
}

/// The sidecar's own flags, as cargo encodes them: a static file, and the profile that `moat` itself is built with or writes.
fn flags() -> String {
    let outer = env::var("CARGO_ENCODED_RUSTFLAGS").unwrap_or_default();
    let profile = outer.split('\x1f').filter(|flag| flag.starts_with("-Cprofile-"));
    // The table by which an unwinder finds its way: a panic aborts.
    let mut flags = vec!["-Clink-arg=-Wl,--no-eh-frame-hdr"];
    flags.extend(profile);
    // What the profile saw once, at the start, is small. By itself LLVM thinks of that in large programs only.
    if outer.contains("-Cprofile-use") {
        flags.push("-Cllvm-args=-pgso-lwss-only=false");
    }
    // Counters keep code that is never called, and of that some is in no static C library. Such a sidecar runs here only.
    if !outer.contains("-Cprofile-generate") {
        flags.push("-Ctarget-feature=+crt-static");
    }
    flags.join("\x1f")
}

/// Does this machine need a cross compiler for it?
fn is_foreign(architecture: &str) -> bool {
    !env::var("HOST")
        .is_ok_and(|host| host.starts_with(&format!("{architecture}-")) && host.contains("linux"))
}

/// What is commonly missing where the static build fails.
fn advice(triple: &str, architecture: &str) -> String {
    let mut advice = String::new();
    let rustc = env::var_os("RUSTC").unwrap_or_else(|| "rustc".into());
    let libdir = said(Command::new(rustc).args(["--print", "target-libdir", "--target", triple]));
    if libdir.is_none_or(|path| !Path::new(&path).is_dir()) {
        advice.push_str(&format!(
            "\nRust's standard library for {triple} is missing: rustup target add {triple}"
        ));
    }
    if is_foreign(architecture) {
        advice.push_str(&format!(
            "\na cross compiler is needed: {architecture}-linux-gnu-gcc with its C library (Debian: \
             gcc-{0}-linux-gnu, libc6-dev-{1}-cross)",
            architecture.replace('_', "-"),
            if architecture == "aarch64" { "arm64" } else { "amd64" },
        ));
        return advice;
    }
    let libc = said(Command::new("cc").arg("-print-file-name=libc.a"));
    if libc.is_none_or(|path| !Path::new(&path).is_absolute()) {
        advice.push_str(
            "\nthe static C library is missing: install libc6-dev (Debian), glibc-static (Fedora) or \
             glibc (Arch), and a C compiler",
        );
    }
    advice.push_str("\nor set MOAT_SIDECAR to a built moat-sidecar");
    advice
}

/// The outer cargo's target directory: the nearest one above that cargo has tagged, which it does only with one that it made; else
/// the one that `<profile>/build/<package>/out` is in.
fn target_dir(out: &Path) -> &Path {
    let tagged = out.ancestors().skip(1).find(|dir| dir.join("CACHEDIR.TAG").is_file());
    tagged.or_else(|| out.ancestors().nth(4)).unwrap_or(out)
}

/// Commit and time of the build.
fn provenance() {
    let git = |args: &[&str]| said(Command::new("git").args(args));
    let commit = git(&["rev-parse", "--short=12", "HEAD"]).unwrap_or_else(|| "unknown".to_owned());
    println!("cargo::rustc-env=MOAT_COMMIT={commit}");
    let log = git(&["rev-parse", "--git-path", "logs/HEAD"]).filter(|log| Path::new(log).is_file());
    if let Some(log) = log {
        println!("cargo::rerun-if-changed={log}");
    }
    let seconds = env::var("SOURCE_DATE_EPOCH").ok().unwrap_or_else(|| {
        std::time::UNIX_EPOCH.elapsed().map_or_else(|_| "0".to_owned(), |since| since.as_secs().to_string())
    });
    println!("cargo::rustc-env=MOAT_BUILT={seconds}");
}

/// What a command says on stdout, if it succeeds and says anything.
fn said(command: &mut Command) -> Option<String> {
    let output = command.output().ok().filter(|output| output.status.success())?;
    let text = String::from_utf8(output.stdout).ok()?.trim().to_owned();
    (!text.is_empty()).then_some(text)
}

fn required(name: &str) -> Result<String, String> {
    env::var(name).map_err(|e| format!("{name}: {e}"))
}
