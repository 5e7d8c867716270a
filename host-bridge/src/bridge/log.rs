//! `proxy/daemon.log`: what the bridge does, at info level. Panics go there too.

use std::{
    fs::{self, File},
    io,
    sync::Mutex,
};

use tracing::level_filters::LevelFilter;

use crate::{disk, home::Home};

/// A log of this size becomes `daemon.log.1` when a bridge starts.
const ROTATE: u64 = 10 << 20;

/// Opens the log for appending.
pub(crate) fn open(home: &Home) -> io::Result<File> {
    let path = home.daemon_log();
    let file = disk::append(&path)?;
    if file.metadata()?.len() <= ROTATE {
        return Ok(file);
    }
    let mut old = path.clone().into_os_string();
    old.push(".1");
    fs::rename(&path, old)?;
    disk::append(&path)
}

/// From now on everything that is traced goes there.
pub(crate) fn start(home: &Home, verbose: bool) -> io::Result<()> {
    let level = if verbose { LevelFilter::DEBUG } else { LevelFilter::INFO };
    let subscriber = tracing_subscriber::fmt()
        .with_writer(Mutex::new(open(home)?))
        .with_ansi(false)
        .with_max_level(level)
        .finish();
    tracing::subscriber::set_global_default(subscriber).map_err(io::Error::other)?;
    std::panic::set_hook(Box::new(|panic| {
        tracing::error!(trace = %std::backtrace::Backtrace::force_capture(), "{panic}");
    }));
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_large_log_is_put_aside() {
        let dir = tempfile::tempdir().unwrap();
        let home = Home::at(dir.path());
        fs::create_dir(home.proxy()).unwrap();
        open(&home).unwrap().set_len(ROTATE).unwrap();
        assert_eq!(open(&home).unwrap().metadata().unwrap().len(), ROTATE);
        open(&home).unwrap().set_len(ROTATE + 1).unwrap();
        assert_eq!(open(&home).unwrap().metadata().unwrap().len(), 0);
        assert_eq!(fs::metadata(dir.path().join("proxy/daemon.log.1")).unwrap().len(), ROTATE + 1);
    }
}
