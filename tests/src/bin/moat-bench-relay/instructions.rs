//! `instructions`: what one `tools/call` costs either end in instructions of user space, counted by callgrind. Noise
//! of the machine hardly changes them, so they can be compared with those of another day.
//!
//! Both ends run under callgrind twice, with few calls and with more; the difference, divided, is one call.

use std::{collections::BTreeMap, fs, path::Path, process::Command, time::Duration};

use moat_tests::{Outcome, Trouble, clock::eventually, listen::runtime, rig::Rig, trouble::ensure};
use serde::{Deserialize, Serialize};

use crate::{
    options::Options,
    ours::Home,
    report::{Bound, Report},
    target::Target,
    upstream::{ECHO, Upstream},
};

const FEW: u32 = 200;
const MANY: u32 = 1200;
const PATIENCE: Duration = Duration::from_secs(60);
/// Where the numbers are kept.
const KEPT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/instructions.json");

/// The numbers of the repository.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Kept {
    /// Parts of a number by which a new one may be off, either way: who makes it faster writes it down.
    tolerance: f64,
    /// Instructions of one call, by end.
    call: BTreeMap<String, f64>,
}

pub(crate) fn run(options: &Options, report: &mut Report) -> Outcome {
    let valgrind = Command::new("valgrind").arg("--version").output();
    ensure(valgrind.is_ok_and(|said| said.status.success()), || "valgrind is not installed".to_owned())?;
    let (few, many) = (count(FEW, None)?, count(MANY, options.profiles.as_deref())?);
    let mut kept: Kept = serde_json::from_slice(&fs::read(KEPT)?)?;
    for (end, few) in few {
        let many = many.get(&end).copied().unwrap_or_default();
        let call = ((many - few) / f64::from(MANY - FEW)).round();
        let before = kept.call.insert(end.clone(), call);
        report.one(format!("instructions.call.{end}"), "", call, None);
        if let Some(before) = before.filter(|_| !options.keep) {
            let off = (call / before - 1.0).abs();
            report.one(
                format!("instructions.call.{end}.off_by"),
                "",
                off,
                Some(Bound::AtMost(kept.tolerance)),
            );
        }
    }
    if options.keep {
        fs::write(KEPT, serde_json::to_string_pretty(&kept)? + "\n")?;
    }
    Ok(())
}

/// Instructions of each end that has answered so many calls.
fn count(calls: u32, profiles: Option<&Path>) -> Outcome<BTreeMap<String, f64>> {
    let files = tempfile::Builder::new().prefix("mp-").tempdir_in("/tmp")?;
    let rig = Rig::new()?;
    let upstream = Upstream::start(&rig.authority, files.path())?;
    let mut home = Home::new(rig, &upstream)?;
    let out = |end: &str| files.path().join(format!("callgrind.{end}"));
    let wrapper = |end: &str| {
        let to = format!("--callgrind-out-file={}", out(end).display());
        ["valgrind", "--tool=callgrind", "--quiet", &to].map(str::to_owned).to_vec()
    };
    home.rig.prefix = wrapper("bridge");
    {
        let (bridge, _) = home.bridge()?;
        let run = bridge.register(&upstream.url(false))?;
        let (target, _) = bridge.relay(&run, &wrapper("sidecar"))?;
        runtime()?.block_on(ask(&target, calls))?;
        bridge.traced(&run, calls as usize)?;
    }
    let ends = ["bridge", "sidecar"];
    let counted = ends.map(|end| Ok((end.to_owned(), total(&out(end))?))).into_iter().collect();
    if let Some(directory) = profiles {
        for end in ends {
            fs::copy(out(end), directory.join(format!("callgrind.{end}")))?;
        }
    }
    counted
}

async fn ask(target: &Target, calls: u32) -> Outcome {
    let session = target.initialize().await?;
    let request = target.call(session.as_deref(), ECHO);
    let mut connection = target.connect().await?;
    for _ in 0..calls {
        connection.send(&request).await?;
        let mut head = connection.head().await?;
        ensure(head.status == 200, || format!("status {}", head.status))?;
        connection.skip(&mut head.body).await?;
    }
    Ok(())
}

/// What callgrind wrote down when the process ended.
fn total(file: &Path) -> Outcome<f64> {
    eventually("callgrind writes its numbers", PATIENCE, || {
        let text = fs::read_to_string(file).ok()?;
        let line = text.lines().find_map(|line| line.strip_prefix("totals: "))?;
        line.trim().parse().ok()
    })
    .map_err(|trouble| Trouble::new(format!("{}: {trouble}", file.display())))
}
