//! What benchmarks measure with: this machine and what others do on it, processes from outside, medians.

use std::{
    fs, thread,
    time::{Duration, Instant},
};

use nix::{
    sys::{
        resource::{Usage, UsageWho, getrusage},
        time::TimeValLike,
    },
    unistd::{SysconfVar, sysconf},
};

use crate::{Outcome, Trouble};

/// The machine at a moment.
#[derive(Debug)]
pub struct Machine {
    at: Instant,
    /// Of all processes and the kernel, since the machine started.
    busy_ms: f64,
    own_ms: f64,
}

/// What was not ours.
#[derive(Debug, Clone, Copy)]
pub struct Others {
    /// Processors' worth of time.
    pub used: f64,
    /// How many processors there are.
    pub processors: f64,
}

impl Machine {
    /// Now. `more` are processes of ours that are not our children's children: their time is ours too.
    ///
    /// # Errors
    /// When /proc cannot be read.
    pub fn now(more: &[u32]) -> Outcome<Self> {
        let text = fs::read_to_string("/proc/stat")?;
        let all = text.lines().next().and_then(|line| line.strip_prefix("cpu "));
        let fields = all.ok_or_else(|| Trouble::new("/proc/stat has no line for all processors"))?;
        let ticks = fields.split_whitespace().map(str::parse).collect::<Result<Vec<f64>, _>>()?;
        // user nice system idle iowait irq softirq steal; guest time is in user time already.
        let busy: f64 = [0, 1, 2, 5, 6, 7].iter().filter_map(|field| ticks.get(*field)).sum();
        let own = |who| Ok::<_, Trouble>(processor_ms(&getrusage(who)?));
        let more: f64 = more.iter().filter_map(|pid| processor_time(*pid).ok()).map(ms).sum();
        Ok(Self {
            at: Instant::now(),
            busy_ms: busy * ms(tick()?),
            own_ms: own(UsageWho::RUSAGE_SELF)? + own(UsageWho::RUSAGE_CHILDREN)? + more,
        })
    }

    /// What others did since then. The kernel's clearing away counts as others: it is little.
    ///
    /// # Errors
    /// When /proc cannot be read.
    pub fn others(&self, more: &[u32]) -> Outcome<Others> {
        let now = Self::now(more)?;
        let theirs = (now.busy_ms - self.busy_ms) - (now.own_ms - self.own_ms);
        let processors = f64::from(u32::try_from(thread::available_parallelism()?.get())?);
        Ok(Others { used: (theirs / ms(now.at - self.at)).max(0.0), processors })
    }
}

/// A median between its quartiles.
#[derive(Debug, Clone, Copy)]
pub struct Spread {
    /// The first quartile.
    pub low: f64,
    /// The median.
    pub median: f64,
    /// The third quartile.
    pub high: f64,
}

impl Spread {
    /// Of these values.
    ///
    /// # Errors
    /// When there are none.
    pub fn of(values: impl IntoIterator<Item = f64>) -> Outcome<Self> {
        let mut values: Vec<f64> = values.into_iter().collect();
        values.sort_by(f64::total_cmp);
        let at = |quarter: usize| values.get(values.len() * quarter / 4).copied();
        match (at(1), at(2), at(3)) {
            (Some(low), Some(median), Some(high)) => Ok(Self { low, median, high }),
            _ => Err(Trouble::new("nothing was measured")),
        }
    }
}

/// Milliseconds.
#[must_use]
pub fn ms(time: Duration) -> f64 {
    time.as_secs_f64() * 1000.0
}

/// Processor time of a finished or own process, in milliseconds.
#[must_use]
pub fn processor_ms(usage: &Usage) -> f64 {
    let micros = usage.user_time().num_microseconds() + usage.system_time().num_microseconds();
    ms(Duration::from_micros(micros.unsigned_abs()))
}

/// A field of `/proc/PID/status` that counts kilobytes, in bytes: `VmRSS`, `VmHWM`, `RssAnon`.
///
/// # Errors
/// When the process is gone.
pub fn memory(pid: u32, field: &str) -> Outcome<u64> {
    let text = fs::read_to_string(format!("/proc/{pid}/status"))?;
    let value = text.lines().find_map(|line| line.strip_prefix(field)?.strip_prefix(':'));
    let value = value.ok_or_else(|| Trouble::new(format!("no {field} of {pid}")))?;
    Ok(value.trim().trim_end_matches(" kB").parse::<u64>()? * 1024)
}

/// Processor time that a process took so far, in user and kernel mode, all of its threads.
///
/// # Errors
/// When the process is gone.
pub fn processor_time(pid: u32) -> Outcome<Duration> {
    let text = fs::read_to_string(format!("/proc/{pid}/stat"))?;
    let after_name = text.rsplit(')').next().unwrap_or_default();
    let fields = after_name.split_whitespace().skip(11).take(2);
    let ticks: u32 = fields.map(str::parse::<u32>).sum::<Result<_, _>>()?;
    Ok(tick()? * ticks)
}

/// The unit in which /proc counts time.
fn tick() -> Outcome<Duration> {
    let per_second = sysconf(SysconfVar::CLK_TCK)?.unwrap_or(100);
    Ok(Duration::from_secs(1) / u32::try_from(per_second)?)
}
