//! The sidecar that `moat` carries: small, and at home in an image that has nothing else in it.

use std::{
    fs,
    io::Write,
    path::PathBuf,
    process::{Command, Stdio},
};

use moat_tests::{
    Outcome, Trouble,
    parts::Part,
    rig::{Ran, Rig},
    trouble::ensure,
};

use crate::{
    Test,
    stage::{Stage, discover},
    streaming::carriers,
};

pub(crate) const TESTS: &[Test] = &[
    Test::new("is_small", &[], is_small),
    Test::new("runs_where_nothing_else_is", &[Part::Sandbox], runs_where_nothing_else_is),
    Test::new("looks_no_name_up_through_libc", &[Part::StaticC], looks_no_name_up_through_libc),
    Test::new("takes_little_memory_when_idle", &[Part::Sandbox], takes_little_memory_when_idle),
];

/// 3.5 MiB: what an image may grow by.
const BYTES: usize = 3_670_016;
/// 4 MiB each, for PID 1 and for the relay with an open tunnel.
const RESIDENT_KB: u64 = 4096;
/// What of libc's own resolver and user database is in a static program that uses either.
const LOOKUPS: [&str; 3] = ["nsswitch.conf", "libnss_", "/etc/resolv.conf"];

/// Writes the sidecar into an empty directory of the rig.
fn exported(rig: &Rig) -> Outcome<PathBuf> {
    let directory = rig.user_home().join("root");
    fs::create_dir(&directory)?;
    let path = directory.join("moat-sidecar");
    rig.run(&["sidecar", "export", &path.to_string_lossy()])?.expect_code(0)?;
    Ok(path)
}

fn is_small() -> Outcome {
    let size = fs::read(exported(&Rig::new()?)?)?.len();
    ensure((1 << 20..=BYTES).contains(&size), || format!("{size} bytes, {BYTES} at most"))
}

fn runs_where_nothing_else_is() -> Outcome {
    let rig = Rig::new()?;
    let path = exported(&rig)?;
    let kinds = segments(&fs::read(&path)?)?;
    ensure(!kinds.contains(&INTERPRETER), || "it wants a dynamic linker".to_owned())?;
    let root = path.parent().unwrap_or(&path);
    ensure(fs::read_dir(root)?.count() == 1, || "the root is not empty but for the sidecar".to_owned())?;
    let output = Command::new("unshare")
        .args(["-r", "chroot"])
        .arg(root)
        .args(["/moat-sidecar", "version"])
        .env_clear()
        .env("PATH", std::env::var_os("PATH").unwrap_or_default())
        .output()?;
    let ran = Ran::from(output).expect_code(0)?;
    ensure(ran.out.starts_with("moat-sidecar ") && ran.err.is_empty(), || format!("{ran:?}"))
}

/// `PT_LOAD`, of which every program has some.
const LOADED: u32 = 1;
/// `PT_INTERP`.
const INTERPRETER: u32 = 3;

/// The types of an ELF file's segments.
fn segments(elf: &[u8]) -> Outcome<Vec<u32>> {
    let word = |at: usize, length: usize| -> Outcome<usize> {
        let bytes = elf.get(at..at + length).ok_or_else(|| Trouble::new("the ELF header is cut"))?;
        Ok(bytes.iter().rev().fold(0, |sum, &byte| sum << 8 | usize::from(byte)))
    };
    ensure(elf.starts_with(b"\x7fELF\x02\x01"), || "no ELF file of 64 bits, little end first".to_owned())?;
    let (table, size, count) = (word(0x20, 8)?, word(0x36, 2)?, word(0x38, 2)?);
    let kinds = (0..count).map(|number| Ok(u32::try_from(word(table + number * size, 4)?)?));
    let kinds = kinds.collect::<Outcome<Vec<u32>>>()?;
    ensure(kinds.contains(&LOADED), || format!("the table of segments was misread: {kinds:?}"))?;
    Ok(kinds)
}

/// Static glibc would load the image's own libraries for names, users and groups.
fn looks_no_name_up_through_libc() -> Outcome {
    let rig = Rig::new()?;
    let marks = |program: &[u8]| -> Vec<&str> {
        LOOKUPS.into_iter().filter(|mark| memchr::memmem::find(program, mark.as_bytes()).is_some()).collect()
    };
    let found = marks(&fs::read(exported(&rig)?)?);
    ensure(found.is_empty(), || format!("libc's lookups are in it: {found:?}"))?;
    // Each of these would have been found.
    for (header, call) in
        [("netdb.h", "getaddrinfo(v[0],0,0,0)"), ("pwd.h", "!getpwnam(v[0])"), ("grp.h", "!getgrnam(v[0])")]
    {
        let program =
            compiled(&rig, &format!("#include <{header}>\nint main(int c,char**v){{return {call};}}"))?;
        ensure(marks(&program) == LOOKUPS, || format!("{call} leaves other marks: {:?}", marks(&program)))?;
    }
    Ok(())
}

fn compiled(rig: &Rig, source: &str) -> Outcome<Vec<u8>> {
    let program = rig.user_home().join("program");
    let mut compiler = Command::new("cc");
    compiler.args(["-static", "-x", "c", "-", "-o"]).arg(&program);
    let mut compiler = compiler.stdin(Stdio::piped()).stderr(Stdio::piped()).spawn()?;
    if let Some(mut stdin) = compiler.stdin.take() {
        stdin.write_all(source.as_bytes())?;
    }
    Ran::from(compiler.wait_with_output()?).expect_code(0)?;
    Ok(fs::read(program)?)
}

fn takes_little_memory_when_idle() -> Outcome {
    let stage = Stage::new()?;
    let inside = stage.rig.console()?;
    let answer = inside.answer(&discover("local"))?;
    ensure(answer.status == 200, || format!("{answer:?}"))?;
    let all: Vec<(String, u64)> = carriers(&stage, &inside)
        .into_iter()
        .map(|(pid, _, resident)| Ok((mode(pid)?, resident)))
        .collect::<Outcome<_>>()?;
    for wanted in ["init", "relay"] {
        let resident = all.iter().find(|(mode, _)| mode == wanted).map(|(_, resident)| *resident);
        ensure(resident.is_some_and(|resident| resident <= RESIDENT_KB), || {
            format!("{wanted}: {resident:?} KiB, {RESIDENT_KB} at most: {all:?}")
        })?;
    }
    Ok(())
}

/// The first argument of a process.
fn mode(pid: i32) -> Outcome<String> {
    let line = fs::read(format!("/proc/{pid}/cmdline"))?;
    Ok(line.split(|&byte| byte == 0).nth(1).map(String::from_utf8_lossy).unwrap_or_default().into_owned())
}
