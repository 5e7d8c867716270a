//! The person at the terminal: told what happens, sent to a browser, and listened to while they paste.

use std::{ffi::OsString, io::BufRead, process::Child};

use tokio::sync::mpsc;
use url::Url;

use super::super::super::{print, text::visible};
use crate::{
    env::Environment,
    oauth::{browser, grant::Host},
};

/// The person at the terminal, and their browser.
pub(super) struct Terminal {
    pub(super) env: Environment,
    pub(super) opener: Option<Vec<OsString>>,
    pub(super) device_first: bool,
    pub(super) lines: Option<mpsc::Receiver<String>>,
    pub(super) opened: Option<Child>,
}

impl Host for Terminal {
    fn say(&mut self, text: &str) {
        print::note(&visible_lines(text));
    }

    fn visit(&mut self, url: &Url, port: u16) -> bool {
        print::note(&format!("Open this URL in your browser to authorize:\n\n  {url}\n"));
        if let Some(opener) = &self.opener {
            match browser::open(opener, url, &self.env) {
                Ok(child) => {
                    self.opened = Some(child);
                    return true;
                }
                Err(error) => print::note(&format!("The browser could not be opened: {error}")),
            }
        }
        print::note(&format!(
            "If that browser is on another machine, paste the address that it ends on here (it starts with \
             http://127.0.0.1:{port}), or let the port through first:\n  ssh -L {port}:127.0.0.1:{port} <this host>"
        ));
        self.lines = lines_of_stdin();
        false
    }

    async fn pasted(&mut self) -> String {
        let line = match &mut self.lines {
            Some(lines) => lines.recv().await,
            None => None,
        };
        match line {
            Some(line) => line,
            None => {
                // The end of what is piped in ends the reading, and nothing else.
                self.lines = None;
                std::future::pending().await
            }
        }
    }

    fn prefers_device(&self) -> bool {
        self.device_first
    }
}

impl Drop for Terminal {
    fn drop(&mut self) {
        if let Some(child) = &mut self.opened {
            // It may be the browser itself: it is not waited for. If it has ended, nothing of it is left.
            let _still_there = child.try_wait().is_err();
        }
    }
}

/// Line by line, beside everything else. The thread ends with the process.
fn lines_of_stdin() -> Option<mpsc::Receiver<String>> {
    /// An address with a code and a state.
    const LINE: u64 = 64 * 1024;
    let (sender, lines) = mpsc::channel(1);
    let read = move || {
        let mut input = std::io::stdin().lock();
        loop {
            let mut line = String::new();
            match std::io::Read::take(&mut input, LINE).read_line(&mut line) {
                Ok(read) if read > 0 && sender.blocking_send(line).is_ok() => {}
                _ => return,
            }
        }
    };
    std::thread::Builder::new().spawn(read).ok().map(|_| lines)
}

/// What a server may have said, line by line without control characters.
fn visible_lines(text: &str) -> String {
    text.split('\n').map(|line| visible(line).into_owned()).collect::<Vec<_>>().join("\n")
}
