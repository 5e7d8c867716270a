//! Whether bytes that come in chunks are UTF-8.

use super::Fault;

/// Follows UTF-8 over chunks.
#[derive(Debug, Default)]
pub(super) struct Utf8 {
    /// The start of a character whose rest has not come.
    partial: Vec<u8>,
}

impl Utf8 {
    pub(super) fn push(&mut self, mut bytes: &[u8]) -> Result<(), Fault> {
        while !self.partial.is_empty() {
            let Some((first, rest)) = bytes.split_first() else { return Ok(()) };
            self.partial.push(*first);
            bytes = rest;
            match std::str::from_utf8(&self.partial) {
                Ok(_) => self.partial.clear(),
                Err(error) if error.error_len().is_none() => {}
                Err(_) => return Err(Fault::Utf8),
            }
        }
        match std::str::from_utf8(bytes) {
            Ok(_) => Ok(()),
            Err(error) if error.error_len().is_none() => {
                self.partial.extend_from_slice(&bytes[error.valid_up_to()..]);
                Ok(())
            }
            Err(_) => Err(Fault::Utf8),
        }
    }

    pub(super) fn finish(&self) -> Result<(), Fault> {
        if self.partial.is_empty() { Ok(()) } else { Err(Fault::Utf8) }
    }
}
