//! Between the user's terminal or pipes and the sandbox's: bytes as they are, and a copy of the output for the log.
//!
//! One thread per direction, with blocking reads: stdin may be anything, and a file cannot be waited for otherwise.
//! The output's threads end when the sandbox does. The input's may wait for a key that never comes; it holds nothing
//! that outlives the process.

use std::{
    fs::File,
    io::{self, Read, Write},
    os::fd::AsFd,
    sync::{Arc, Mutex, PoisonError},
    thread,
};

use tokio::sync::oneshot;

use super::{
    log::{Log, Stream},
    terminal::Raw,
};
use crate::{
    cli::print,
    runtime::{Io, Window, process},
};

/// Output is passed on in pieces of at most this size.
const PIECE: usize = 64 * 1024;

/// The user's side of the sandbox.
#[derive(Debug)]
pub(crate) struct Attached {
    terminal: Option<(Raw, Box<dyn Window>)>,
    outputs: Vec<oneshot::Receiver<()>>,
    /// Where notes go when there is nobody to read them.
    notes: Option<Mutex<Stream>>,
}

/// Connects the sandbox with this process's stdin, stdout and stderr, and with a log if there is one.
pub(crate) fn attach(io: Io, log: Option<&Log>) -> io::Result<Attached> {
    match io {
        Io::Terminal { bytes, window } => {
            let raw = Raw::enter()?;
            input(bytes.try_clone()?)?;
            let outputs = vec![output(bytes, io::stdout(), log.map(Log::stream))?];
            Ok(Attached { terminal: Some((raw, window)), outputs, notes: None })
        }
        Io::Pipes { stdin, stdout, stderr } => {
            input(stdin)?;
            let outputs = vec![
                output(stdout, io::stdout(), log.map(Log::stream))?,
                output(stderr, io::stderr(), log.map(Log::stream))?,
            ];
            Ok(Attached { terminal: None, outputs, notes: None })
        }
    }
}

/// Connects the sandbox with its log alone: its stdin has ended.
pub(crate) fn to_log(io: Io, log: &Log) -> io::Result<Attached> {
    let outputs = match io {
        Io::Terminal { bytes, .. } => vec![output(bytes, io::sink(), Some(log.stream()))?],
        Io::Pipes { stdin, stdout, stderr } => {
            drop(stdin);
            vec![
                output(stdout, io::sink(), Some(log.stream()))?,
                output(stderr, io::sink(), Some(log.stream()))?,
            ]
        }
    };
    Ok(Attached { terminal: None, outputs, notes: Some(Mutex::new(log.stream())) })
}

/// All that a sandbox has said that has ended. Its stdin was nobody's.
pub(crate) async fn all_said(io: Io, log: &Log) -> io::Result<String> {
    let said = Said::default();
    let (outputs, _window) = match io {
        Io::Terminal { bytes, window } => {
            (vec![output(bytes, said.clone(), Some(log.stream()))?], Some(window))
        }
        Io::Pipes { stdin, stdout, stderr } => {
            drop(stdin);
            let both = [stdout, stderr].map(|from| output(from, said.clone(), Some(log.stream())));
            (both.into_iter().collect::<io::Result<_>>()?, None)
        }
    };
    Attached { terminal: None, outputs, notes: None }.finish().await;
    Ok(String::from_utf8_lossy(&said.0.lock().unwrap_or_else(PoisonError::into_inner)).into_owned())
}

/// What it said, up to a bound.
#[derive(Debug, Clone, Default)]
struct Said(Arc<Mutex<Vec<u8>>>);

impl Write for Said {
    fn write(&mut self, piece: &[u8]) -> io::Result<usize> {
        let mut said = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let room = PIECE.saturating_sub(said.len());
        said.extend(piece.iter().take(room));
        Ok(piece.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Attached {
    /// Tells the user something beside what the sandbox prints.
    pub(crate) fn note(&self, text: &str) {
        let Some(notes) = &self.notes else { return print::note(&self.line(text)) };
        let written =
            notes.lock().unwrap_or_else(PoisonError::into_inner).push(format!("{text}\n").as_bytes());
        if let Err(error) = written {
            tracing::error!("a note was not written to the log: {error}");
        }
    }

    /// The user's window changed.
    pub(crate) fn resize(&self) {
        if let Some((_, window)) = &self.terminal {
            let set = process::size(io::stdout().as_fd()).and_then(|size| window.resize(size));
            if let Err(error) = set {
                tracing::warn!("the window's size was not passed on: {error}");
            }
        }
    }

    /// Text as this moment's terminal wants its line ends.
    fn line(&self, text: &str) -> String {
        if self.terminal.is_some() { format!("\r{}\r", text.replace('\n', "\r\n")) } else { text.to_owned() }
    }

    /// Waits for the rest of the output of a sandbox that has ended, and gives the terminal back.
    pub(crate) async fn finish(self) {
        for output in self.outputs {
            // An error is the thread's end as well.
            let _ended = output.await.is_err();
        }
    }
}

fn input(mut to: File) -> io::Result<()> {
    let copy = move || {
        let mut stdin = io::stdin().lock();
        // Ends with stdin, or with the sandbox: whoever goes first, `to` is closed, which is the sandbox's end of file.
        let _ended = copy_each(&mut stdin, |piece| to.write_all(piece));
    };
    thread::Builder::new().name("stdin".into()).spawn(copy).map(drop)
}

fn output<W: Write + Send + 'static>(
    mut from: File,
    mut to: W,
    mut log: Option<Stream>,
) -> io::Result<oneshot::Receiver<()>> {
    let (ended, end) = oneshot::channel();
    let copy = move || {
        let copied = copy_each(&mut from, |piece| {
            if let Some(Err(error)) = log.as_mut().map(|log| log.push(piece)) {
                tracing::error!("output was not written to the log: {error}");
            }
            to.write_all(piece).and_then(|()| to.flush())
        });
        if let Err(error) = copied {
            // EIO is how a terminal says that its last user is gone; EPIPE, that nobody reads our output any more.
            let end = error.raw_os_error() == Some(libc::EIO) || error.kind() == io::ErrorKind::BrokenPipe;
            if !end {
                tracing::error!("output was lost: {error}");
            }
        }
        drop((from, log));
        let _nobody_waits = ended.send(());
    };
    thread::Builder::new().name("output".into()).spawn(copy)?;
    Ok(end)
}

/// Passes on what comes, as it comes.
fn copy_each(from: &mut impl Read, mut pass: impl FnMut(&[u8]) -> io::Result<()>) -> io::Result<()> {
    let mut piece = vec![0; PIECE];
    loop {
        match from.read(&mut piece) {
            Ok(0) => return Ok(()),
            Ok(length) => pass(&piece[..length])?,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
}
