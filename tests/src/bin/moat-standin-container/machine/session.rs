//! A program in a guest and the command in the foreground that started it: the frames of [`wire`](super::wire), with this
//! process's own ends on the host's side, and with the program's on the guest's.

use std::{
    fs::File,
    io::{Read, Write},
    os::{fd::OwnedFd, unix::net::UnixStream},
    path::Path,
    process::{Child, Command, Stdio},
    sync::{Arc, Mutex, PoisonError},
    thread::{self, JoinHandle},
};

use nix::sys::signalfd::SignalFd;

use super::wire::{FRAME, Frame};
use crate::{
    Answer,
    foreground::code,
    terminal::{Pair, Size, own_size, set_size},
};

/// A connection that several write to.
#[derive(Clone)]
struct Sender(Arc<Mutex<UnixStream>>);

impl Sender {
    fn new(connection: &UnixStream) -> Answer<Self> {
        Ok(Self(Arc::new(Mutex::new(connection.try_clone()?))))
    }

    fn send(&self, frame: &Frame) -> std::io::Result<()> {
        frame.write(&mut *self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// All that can be read, in frames.
    fn copy(&self, from: &mut impl Read, frame: fn(Vec<u8>) -> Frame) {
        let mut piece = vec![0; FRAME];
        while let Ok(length @ 1..) = from.read(&mut piece) {
            let bytes = piece.get(..length).unwrap_or_default();
            if self.send(&frame(bytes.to_vec())).is_err() {
                return;
            }
        }
    }
}

/// On the host: stdin, stdout and stderr of this process are the program's. Its exit code.
pub(super) fn attach(mut connection: &UnixStream, resizes: Option<SignalFd>) -> Answer<u8> {
    let sender = Sender::new(connection)?;
    let input = sender.clone();
    thread::spawn(move || {
        input.copy(&mut std::io::stdin().lock(), Frame::Input);
        // If it is gone, so is who would read it.
        let _gone = input.send(&Frame::Input(Vec::new()));
    });
    if let Some(resizes) = resizes {
        thread::spawn(move || {
            while let Ok(Some(_)) = resizes.read_signal() {
                let size = own_size().and_then(|size| Ok(serde_json::to_vec(&size)?));
                let _gone = size.map(|size| sender.send(&Frame::Size(size)));
            }
        });
    }
    loop {
        // Where nobody reads it is lost, as it is with the tool.
        let _nobody_reads = match Frame::read(&mut connection)? {
            Frame::Output(bytes) => put(&mut std::io::stdout().lock(), &bytes),
            Frame::Errors(bytes) => put(&mut std::io::stderr().lock(), &bytes),
            Frame::Exit(code) => return Ok(code),
            Frame::Input(_) | Frame::Size(_) => Ok(()),
        };
    }
}

fn put(to: &mut impl Write, bytes: &[u8]) -> std::io::Result<()> {
    to.write_all(bytes)?;
    to.flush()
}

/// In the guest: starts what `command` makes, given the path of its terminal, which it has if that is to be of some size.
/// Returns when it has ended and everything is said.
pub(super) fn serve(
    connection: &UnixStream,
    size: Option<Size>,
    command: impl FnOnce(Option<&Path>) -> Answer<Command>,
    started: impl FnOnce(&Child) -> Answer,
) -> Answer {
    let sender = Sender::new(connection)?;
    let pair = size.is_some().then(Pair::new).transpose()?;
    let path = pair.as_ref().map(Pair::path).transpose()?;
    if let (Some(path), Some(size)) = (&path, &size) {
        set_size(path, size);
    }
    let mut command = command(path.as_deref())?;
    match &pair {
        Some(pair) => pair.give(&mut command)?,
        None => drop(command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped())),
    }
    let mut child = command.spawn()?;
    // The command keeps what it gave the child.
    drop(command);
    started(&child)?;
    let (input, outputs) = ends(&mut child, pair, &sender)?;
    let mut frames = connection.try_clone()?;
    thread::spawn(move || take(&mut frames, input, path.as_deref()));
    let status = child.wait()?;
    for output in outputs {
        let _panicked = output.join();
    }
    Ok(sender.send(&Frame::Exit(code(status)))?)
}

/// Where its input goes, and the threads that send what it writes.
fn ends(child: &mut Child, pair: Option<Pair>, sender: &Sender) -> Answer<(File, Vec<JoinHandle<()>>)> {
    let sends = |mut from: File, frame: fn(Vec<u8>) -> Frame| {
        let sender = sender.clone();
        thread::spawn(move || sender.copy(&mut from, frame))
    };
    let Some(Pair { ours, theirs: _ }) = pair else {
        let missing = || std::io::Error::other("a pipe is missing");
        let input: OwnedFd = child.stdin.take().ok_or_else(missing)?.into();
        let output: OwnedFd = child.stdout.take().ok_or_else(missing)?.into();
        let errors: OwnedFd = child.stderr.take().ok_or_else(missing)?.into();
        let outputs = vec![sends(output.into(), Frame::Output), sends(errors.into(), Frame::Errors)];
        return Ok((input.into(), outputs));
    };
    Ok((ours.try_clone()?, vec![sends(ours, Frame::Output)]))
}

/// What comes from the host. Its end is the input's.
fn take(frames: &mut UnixStream, input: File, terminal: Option<&Path>) {
    let mut input = Some(input);
    while let Ok(frame) = Frame::read(frames) {
        match frame {
            Frame::Input(bytes) => {
                input = input.filter(|mut to| !bytes.is_empty() && to.write_all(&bytes).is_ok());
            }
            Frame::Size(line) => {
                if let (Some(terminal), Ok(size)) = (terminal, serde_json::from_slice(&line)) {
                    set_size(terminal, &size);
                }
            }
            _ => {}
        }
    }
}
